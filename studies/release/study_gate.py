"""The gate on the test images of a study; each scoring is a line in that study's ledger."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from detectors.data.splits import Splits
from detectors.errors import InputError
from detectors.runtime.latency import DeviceLock
from studies.file import datasets
from studies.home import Home
from studies.release.gate import Contender, Gate
from studies.search.ledger_count import count_ledger
from studies.search.view import StudyView
from studies.worker.ledger import LedgerLine, append_to_ledger
from studies.worker.trial import environment


def open_gate(
    view: StudyView, product: str, home: Home, device: torch.device, tell: Callable[[str], None] = lambda text: None
) -> Gate:
    """The gate on a study's own test images.

    Args:
        product: in a study of several products, which one.
        tell: called with a line about each step.

    Raises:
        InputError: the images are not those that the study was run with.
    """
    config = view.config
    images = datasets.load(config, home)
    part = next(part for part in images.parts if product in ("", part.category))
    name = "test" if part.splits.keeps_test else "validation"
    key = f"{product}/{name}" if product else name
    if part.splits.test.digest != view.header.identity["data"].get(key):
        raise InputError(
            f"the test images of {part.dataset.name}/{part.category} in {part.dataset.root} are not those that the "
            f"study was run with{images.copies_remark}; restore them, or run a new study (--fresh)"
        )
    return Gate(
        config=config.gate,
        test=part.splits.test,
        data=f"{part.dataset.name}/{part.category}",
        device=device,
        lock=DeviceLock(home.locks, device),
        seed=config.sampler.seed,
        environment=environment(device),
        scored=lambda contender, auroc: _write_ledger(view, home, part.splits, contender, auroc, tell),
        study=f"{view.study.study_name}/{product}" if product else view.study.study_name,
        in_sample=part.splits.in_sample,
        nested=(estimate.metrics if (estimate := view.nested()) else {}) if view.is_nested else None,
        progress=tell,
    )


def _write_ledger(
    view: StudyView,
    home: Home,
    splits: Splits,
    contender: Contender,
    auroc: float | None,
    tell: Callable[[str], None],
) -> None:
    """Record a scoring in the ledger of the study whose test images they are, whichever study the model comes from."""
    line = LedgerLine(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        study_uid=view.header.uid,
        study=view.config.name,
        trial=contender.trial,
        purpose="gate",
        protocol=splits.protocol,
        test_digest=splits.test.digest,
        image_auroc=auroc,
        host=platform.node(),
        model=contender.version,
    )
    append_to_ledger(home, line)
    for fault in count_ledger(view.study, home, view.header.uid):
        tell(f"the ledger of the test images is at fault: {fault}")
