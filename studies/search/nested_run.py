"""After the search of a study without test images: its nested estimate is made, put on record and kept."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime

from detectors.data.copies import content_groups
from detectors.scoring.metrics import UndefinedMetricError
from studies.file.known_pixels import known_pixels
from studies.search.nested import CALLED, NESTED, Estimate, estimate
from studies.search.notices import Remark
from studies.search.opened import OpenStudy
from studies.worker.ledger import LedgerLine, append_to_ledger


def judge_nested(opened: OpenStudy) -> Estimate | None:
    """Make the nested estimate, unless the one that is stored stands or the study keeps images for test.

    Each estimate is a line in the ledger: who goes on searching after a look at it chooses by what judges.
    """
    view, splits = opened.view, opened.plan.splits
    if not opened.plan.images.nested or view.nested() is not None:
        return view.nested()
    assert splits.validation is not None  # of protocol holdout
    samples = splits.validation.samples
    with known_pixels(view.home) as known:
        groups = content_groups(samples, known)
    trials = [trial.frozen for trial in view.trials()]
    try:
        found = estimate(
            view.config,
            trials,
            view.remeasured,
            folder=view.trial_folder,
            samples=samples,
            groups=groups,
            time=time.time(),
        )
    except UndefinedMetricError as error:
        opened.notify(Remark(f"there is no {CALLED}: {error}"))
        return None
    selected = view.selected()
    if found is None or selected is None:
        return None
    line = LedgerLine(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        study_uid=view.header.uid,
        study=view.config.name,
        trial=selected.number,
        purpose=NESTED,
        protocol=splits.protocol,
        test_digest=splits.test.digest,
        image_auroc=found.metrics[f"{NESTED}/image_auroc"],
        host=platform.node(),
    )
    append_to_ledger(view.home, line)
    opened.count_ledger()
    opened.keep_nested(found)
    return found
