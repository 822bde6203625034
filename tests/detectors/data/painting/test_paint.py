"""Painted defects: exact masks, the wanted size, the same pixels everywhere, on the object, on any image."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.data.painting.paint import paint
from detectors.data.painting.recipe import CELLS, KINDS, LARGEST_AREA, Painting, painting
from detectors.data.synthetic_defects import VISIBLE_CHANGE
from detectors.errors import InputError
from tests.detectors.data.test_synthetic_defects import disc, texture


def visible(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (np.abs(after.astype(int) - before.astype(int)) > VISIBLE_CHANGE).any(axis=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_what_changed_visibly_and_the_image_stays(kind):
    for image in (texture(96, 130), disc(128)[0]):
        before = image.copy()
        for seed in range(12):
            painted, mask = paint(image, Painting(kind, area=0.02, opacity=0.7, seed=seed))
            assert (painted.dtype, painted.shape, mask.dtype) == (np.uint8, image.shape, bool)
            assert mask.any()
            np.testing.assert_array_equal(mask, visible(image, painted))
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("area", [0.001, 0.01, 0.1])
def test_a_full_defect_has_about_the_wanted_size(kind, area):
    image = texture(200, 260)
    covered = [paint(image, Painting(kind, area=area, opacity=1.0, seed=seed))[1].mean() for seed in range(12)]
    # Part of a shape may lie beyond the border, and its soft rim shows as well.
    assert 0.4 * area <= np.median(covered) <= 1.8 * area
    assert max(covered) <= 2.5 * area


@pytest.mark.parametrize("kind", KINDS)
def test_a_faint_defect_changes_less(kind):
    image = texture(128, 128).astype(int)

    def change(opacity: float) -> float:
        painted = [paint(image.astype(np.uint8), Painting(kind, 0.03, opacity, seed))[0] for seed in range(8)]
        return float(np.mean([np.abs(one - image).sum() for one in painted]))

    assert change(0.2) < 0.6 * change(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_on_an_object_before_a_plain_ground_the_defect_touches_it(kind):
    image, inside = disc(128)
    grown = np.zeros_like(inside)
    for y in range(-4, 5):
        for x in range(-4, 5):
            grown |= np.roll(inside, (y, x), (0, 1))  # the coarse mask of the object has cells of two pixels
    for seed in range(12):
        assert (paint(image, Painting(kind, 0.01, 0.8, seed))[1] & grown).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_even_an_image_of_one_colour_shows_a_defect(kind, level):
    image = np.full((40, 60, 3), level, dtype=np.uint8)
    painted, mask = paint(image, Painting(kind, 0.01, 0.3, seed=3))
    assert mask.any()
    np.testing.assert_array_equal(mask, visible(image, painted))


@given(
    kind=st.sampled_from(list(KINDS)),
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    area=st.floats(1e-5, 0.5),
    opacity=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_any_image_of_any_shape_can_be_painted(kind, size, area, opacity, seed):
    image = texture(*size)
    painted, mask = paint(image, Painting(kind, area, opacity, seed))
    assert mask.any()
    np.testing.assert_array_equal(mask, visible(image, painted))


def test_a_gray_image_stays_gray():
    image = texture(96, 96, gray=True)
    for kind in KINDS:
        painted = paint(image, Painting(kind, 0.05, 1.0, seed=1))[0].astype(int)
        assert np.ptp(painted, axis=2).max() <= 1, kind


def test_the_pixels_are_those_of_this_version():
    """Another digest means other pixels: raise `VERSION` and say so, or stored features and studies are of other images."""
    total = hashlib.sha256()
    for kind in KINDS:
        for image in (texture(96, 130), disc(128)[0]):
            painted, mask = paint(image, Painting(kind, 0.02, 0.65, seed=7))
            total.update(painted.tobytes() + mask.tobytes())
    assert total.hexdigest() == "e25a3e7c3ebb2f9c94f484ee2b579f6bcb7592bbdc75f6425da783738e34b6c1"


# --- recipes


def test_every_cell_comes_equally_often_and_neighbours_differ():
    recipes = [painting(number, image="a.png", side=256, seed=0) for number in range(3 * len(CELLS))]
    assert set(Counter(recipe.cell for recipe in recipes).values()) == {3}
    assert len({recipe.cell for recipe in recipes}) == len(CELLS)
    assert all(first.kind != second.kind for first, second in pairwise(recipes))
    few = recipes[:18]
    assert {recipe.kind for recipe in few} == set(KINDS)
    assert {recipe.grade[0] for recipe in few} == {"0", "1", "2", "3"}


def test_sizes_go_from_one_position_of_a_map_to_a_tenth_of_the_image():
    for side in (64, 256, 512):
        areas = [painting(number, image=f"{number}", side=side, seed=1).area for number in range(4 * len(CELLS))]
        assert min(areas) >= min((8 / side) ** 2, LARGEST_AREA / 2) - 1e-6
        assert max(areas) <= LARGEST_AREA
        assert max(areas) > 0.8 * LARGEST_AREA
    opacities = [painting(number, image=f"{number}", side=256, seed=1).opacity for number in range(4 * len(CELLS))]
    assert 0.2 <= min(opacities) < 0.25
    assert 0.95 < max(opacities) <= 1.0


def test_another_seed_or_image_changes_the_recipe_and_not_its_cell():
    first, image, seed = (
        painting(5, image="a.png", side=256, seed=0),
        painting(5, image="b.png", side=256, seed=0),
        painting(5, image="a.png", side=256, seed=1),
    )
    assert len({first.identity, image.identity, seed.identity}) == 3
    assert {first.cell, image.cell, seed.cell} == {first.cell}
    assert first == painting(5, image="a.png", side=256, seed=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "dent"}, "dent"),
        ({"area": 0.0}, "area"),
        ({"area": 0.6}, "area"),
        ({"opacity": 0.0}, "opacity"),
        ({"opacity": 1.1}, "opacity"),
        ({"seed": -1}, "seed"),
    ],
)
def test_an_impossible_recipe_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        Painting(**{"kind": "stain", "area": 0.01, "opacity": 1.0, "seed": 0, **values})


@pytest.mark.parametrize("image", [np.zeros((4, 40, 3), np.uint8), np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3))])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(InputError, match="uint8"):
        paint(image, Painting("stain", 0.01, 1.0, 0))
