"""Ctrl-C after the first trial: there is a detector, and every command that takes it says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import studies
from detectors.runtime.artifact import read_description
from studies.home import Home
from studies.search.notices import Finished, Notice, Remark
from studies.serving.models import find_source
from tests.helpers.builders import BACKBONE
from tests.helpers.command_line import study

SETTINGS: dict[str, Any] = {
    "data.image_size": 64,
    "detector": ["patchcore", "padim"],
    "search": {"smoothing_sigma": {"float": [1.0, 4.0]}},
    "fixed": {"backbone": BACKBONE, "layers": [8, 16]},
    "baselines": [],
}


def run(trials: int, *, until: int | None = None) -> None:
    """Run the study of the folder ``parts``; interrupted after so many trials."""

    def listen(notice: Notice) -> None:
        if isinstance(notice, Finished) and notice.counted == until:
            raise KeyboardInterrupt

    studies.run(
        "parts", trials=trials, settings=SETTINGS, offline=True, executor="inline", device="cpu", progress=listen
    )


@pytest.fixture
def interrupted(new_home: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run(3, until=1)
    return new_home


def test_a_person_who_ends_the_search_has_a_detector(interrupted: Path) -> None:
    told = study("predict", "parts", "part.png", "--out", interrupted / "out")
    assert told.code == 0, told
    assert "provisional: the detector of trial 0" in told.out
    # The folder itself lies here, and the shell completes its name so.
    assert study("predict", "parts/", "part.png", "--out", interrupted / "out").code == 0
    predictor = studies.open_study("parts").detector(device="cpu")
    assert "provisional" in repr(predictor)
    assert predictor.threshold is not None
    shown = study("show", "parts")
    assert "a detector is usable now: `study predict parts" in shown.out
    usable = json.loads(study("show", "parts/", "--json").out)["usable"]
    assert (usable["trial"], usable["provisional"]) == (0, True)
    # Nothing was scored on test for it.
    assert studies.open_study("parts").view.ledger() == []
    (folder,) = usable["detectors"].values()
    provenance = read_description(Path(folder)).provenance
    assert not any(name.startswith("test/") for name in provenance["metrics"])


def test_one_that_is_not_judged_yet_is_told_and_has_its_threshold(new_home: Path) -> None:
    def listen(notice: Notice) -> None:
        if isinstance(notice, Remark) and "usable now" in notice.text:
            raise KeyboardInterrupt

    shutil.rmtree("parts/dent")  # no labelled defect is left
    with pytest.raises(KeyboardInterrupt):
        studies.run(
            "parts", trials=2, settings=SETTINGS, offline=True, executor="inline", device="cpu", progress=listen
        )
    assert "a detector is usable now" in study("show", "parts").out
    present = studies.threshold("parts", device="cpu").products[0].threshold
    assert present is not None
    assert present == studies.load_detector("parts", device="cpu").threshold
    refused = study("promote", "parts")
    assert refused.code == 2
    assert "provisional detector only" in refused.err
    assert "--trial" not in refused.err


def test_its_threshold_can_be_looked_at_and_set(interrupted: Path) -> None:
    found = studies.threshold("parts", device="cpu")
    assert found.provisional
    assert found.products[0].threshold is not None
    assert found.products[0].threshold.rate == 0.01
    told = study("threshold", "parts", "--rate", 0.3, "--device", "cpu")
    assert told.code == 0, told
    assert "provisional: the search has not ended" in told.out
    after = studies.load_detector("parts", device="cpu").threshold
    assert after is not None
    assert after.rate == 0.3
    # The refit after the search is given its threshold by the same rule.
    run(2)
    final = studies.load_detector("parts", device="cpu")
    assert final.provisional == ""
    assert final.threshold is not None
    assert final.threshold.rate == 0.3


def test_it_is_served_as_what_it_is_and_neither_promoted_nor_exported(interrupted: Path) -> None:
    source = find_source("parts", Home(interrupted), open_registry=lambda home: pytest.fail("no registry is asked"))
    assert source.latest().number.startswith("provisional-")
    refused = study("promote", "parts", "--device", "cpu")
    assert refused.code == 2
    assert "provisional detector only" in refused.err
    assert "`study run parts`" in refused.err
    exported = study("export", "parts", "--format", "onnx")
    assert exported.code == 2
    assert "only a detector of a refit is exported" in exported.err
    run(2)
    assert not source.latest().number.startswith("provisional-")
    # What the trials kept is gone.
    assert studies.open_study("parts").view.provisional() == []
