"""Other paintings of the same cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detectors.data.mvtec import read_mvtec
from detectors.data.painting.recipe import CELLS, Painting, again, painting
from detectors.data.repainting import repainted
from detectors.data.splits import make_splits


def test_the_cell_stays_and_all_else_is_drawn_anew() -> None:
    for number in range(len(CELLS)):
        before = painting(number, image="a.png", side=256, seed=0)
        after = again(before, image="a.png", side=256, seed=1)
        assert after.cell == before.cell
        assert (after.area, after.opacity, after.seed) != (before.area, before.opacity, before.seed)
        assert again(before, image="a.png", side=256, seed=1) == after
        assert again(before, image="a.png", side=256, seed=2) != after
        # Within the bands of the grade, as `painting` draws them.
        assert again(after, image="a.png", side=256, seed=0).cell == before.cell


def test_a_set_keeps_its_good_images_its_order_and_its_weights(tiny_mvtec: Path) -> None:
    dataset = read_mvtec(tiny_mvtec, "widget")
    before = make_splits(dataset, protocol="synthetic", image_size=(64, 64)).validation
    assert before is not None
    after = repainted(before, seed=5)
    assert [sample.key for sample in after.samples] == [sample.key for sample in before.samples]
    assert after.digest != before.digest
    assert before.painted is not None
    assert after.painted is not None
    assert after.painted.cells == before.painted.cells
    assert (after.painted.sources == before.painted.sources).all()
    for one, other in zip(before.samples, after.samples, strict=True):
        assert (one == other) == (not isinstance(one.recipe, Painting))
    place = int(before.painted.painted[0])
    assert (np.asarray(before.load(place)[0]) != np.asarray(after.load(place)[0])).any()


def test_real_defects_stay_as_they_are(tiny_mvtec: Path) -> None:
    validation = make_splits(read_mvtec(tiny_mvtec, "widget"), protocol="holdout", image_size=(64, 64)).validation
    assert validation is not None
    assert repainted(validation, seed=1) is validation
