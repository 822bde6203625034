"""The parts of the training images that a threshold rests on."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors.data.samples import Sample
from studies.worker.out_of_fold import divide


def named(count: int) -> list[Sample]:
    return [Sample(f"train/good/{index:03d}.png", Path(f"{index:03d}.png")) for index in range(count)]


def parts(count: int, wanted: int | None, *, trained: bool = False, groups: list[int] | None = None):
    return divide(named(count), groups or list(range(count)), wanted, trained=trained)


@pytest.mark.parametrize(
    ("count", "wanted", "folds"),
    [
        (320, None, 10),
        (999, None, 10),
        (1000, None, 5),
        (6, None, 6),
        (4, None, 4),
        (3, None, 0),
        (320, 7, 7),
        (9, 1, 0),
        (9, 0, 0),
    ],
)
def test_every_image_is_held_out_once(count, wanted, folds):
    divided = parts(count, wanted)
    assert len(divided) == folds
    assert sorted(index for part in divided for index in part.held_out) == (list(range(count)) if folds else [])
    for part in divided:
        assert sorted((*part.fitted, *part.held_out)) == list(range(count))
        assert abs(len(part.held_out) - count / folds) < 1


@pytest.mark.parametrize(("count", "left_out"), [(320, 64), (48, 10), (20, 4), (19, 0)])
def test_a_head_that_trains_leaves_a_fifth_out(count, left_out):
    divided = parts(count, None, trained=True)
    assert sum(len(part.held_out) for part in divided) == left_out
    assert len(divided) == (left_out > 0)


def test_copies_lie_in_one_fold():
    groups = [index // 3 for index in range(30)]
    divided = parts(30, 5, groups=groups)
    for part in divided:
        assert not {groups[index] for index in part.fitted} & {groups[index] for index in part.held_out}
    assert parts(30, None, groups=[0] * 30) == []


def test_the_folds_do_not_depend_on_the_order_of_the_images():
    samples = named(40)
    there = divide(samples, list(range(40)), 5, trained=False)
    back = divide(samples[::-1], list(range(40)), 5, trained=False)
    assert {frozenset(samples[i].key for i in part.held_out) for part in there} == {
        frozenset(samples[::-1][i].key for i in part.held_out) for part in back
    }
