"""What few good images mean for a study is said before it is run, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detectors.data.samples import GOOD, Dataset, Sample
from detectors.data.splits import Protocol, Splits, make_splits
from detectors.errors import InputError
from studies.file.few import with_few
from tests.helpers.builders import BACKBONE, make_config


def splits_of(train: int, *, labelled: int = 0) -> Splits:
    def samples(folder: str, kind: str, count: int) -> tuple[Sample, ...]:
        keys = [f"{folder}/{kind}/{index:03}.png" for index in range(count)]
        return tuple(Sample(key=key, file=Path("data") / key, defect_type=kind) for key in keys)

    test = (*samples("test", GOOD, labelled), *samples("test", "dent", labelled))
    dataset = Dataset("folder", "widget", Path("data"), samples("train", GOOD, train), test)
    protocol: Protocol = "holdout" if labelled else "synthetic"
    return make_splits(dataset, protocol=protocol, image_size=(32, 32), nested_below=40 if labelled else 0)


def config(root: Path, detector: str | list[str] = "patchcore", **changes: Any) -> Any:
    search = {
        "search": {"smoothing_sigma": {"float": [1.0, 8.0]}},
        "fixed": {"backbone": BACKBONE, "layers": [8, 16]},
    }
    return make_config(root, detector=detector, **{**search, "recipes": 2, "budget": {"trials": 30}, **changes})


@pytest.mark.parametrize(("count", "images"), [(1, "1 good image:"), (2, "2 good images:"), (3, "3 good images:")])
def test_one_to_three_images_are_not_searched(tmp_path: Path, count: int, images: str) -> None:
    changed, lines = with_few(config(tmp_path), splits_of(count))
    assert (changed.budget.trials, changed.rerank, changed.advice) == (1, 0, False)
    first, copies = lines
    assert first.startswith(images)
    assert "nothing is searched" in first
    assert "no threshold can be promised" in first
    assert "turned and mirrored copies" in copies
    assert not [line for line in lines if "\n" in line]


@pytest.mark.parametrize(
    ("detector", "learns"),
    [("fastflow", "learns by gradient"), ("padim", "learns what is normal at each position")],
)
def test_what_learns_more_is_refused_one_to_three_and_warned_of_up_to_sixteen(
    tmp_path: Path, detector: str, learns: str
) -> None:
    with pytest.raises(InputError) as error:
        with_few(config(tmp_path, detector), splits_of(2))
    assert "\n" not in str(error.value)
    assert f"2 good images are too few for {detector}, which {learns}" in str(error.value)
    assert "`study run patchcore --images DIR`" in str(error.value)
    same, lines = with_few(config(tmp_path, detector), splits_of(9))
    assert same.budget.trials == 30
    assert [line for line in lines if line.startswith(f"{detector} {learns}: 8 good images are few for that")]


def test_up_to_sixteen_the_certainty_is_said(tmp_path: Path) -> None:
    # One of eight is for test; the threshold rests on the others, out of fold.
    same, lines = with_few(config(tmp_path), splits_of(8))
    assert same.budget.trials == 30
    assert lines[0] == (
        "7 good images: a ranking of settings from so few is weak, and a threshold supports 12 % false alarms (1 % needs 99)"
    )
    _, labelled = with_few(config(tmp_path), splits_of(8, labelled=10))
    assert "a threshold supports 5 % false alarms" in labelled[0]
    _, without = with_few(config(tmp_path, turned_copies=False), splits_of(8))
    assert len(without) == 1


def test_more_than_sixteen_and_stored_studies_are_as_they_were(tmp_path: Path) -> None:
    same = config(tmp_path)
    assert with_few(same, splits_of(20)) == (same, ())
    stored = config(tmp_path, recipes=1)
    assert with_few(stored, splits_of(8)) == (stored, ())
