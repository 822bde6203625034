"""Synthetic defects: exact masks, the same pixels everywhere, on the object, on any image."""

from __future__ import annotations

import hashlib
import time
from math import floor, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.data import synthetic_defects
from detectors.data.images import is_image, read_image
from detectors.data.synthetic_defects import (
    DEFECT_KINDS,
    SYNTHESIS_VERSION,
    VISIBLE_CHANGE,
    DefectRecipe,
    apply_defect,
    foreground,
    perlin_noise,
)
from detectors.errors import InputError

SEEDS = range(25)


def texture(height: int, width: int, *, gray: bool = False) -> NDArray[np.uint8]:
    """A weave-like image from integer arithmetic alone."""
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    channels = [(y * y * a + x * b + (x ^ y) * 3) % 251 for a, b in ((3, 7), (5, 2), (1, 11))]
    return np.stack(channels[:1] * 3 if gray else channels, axis=2).astype(np.uint8)


def disc(side: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A dark disc, slightly off the middle, on a light ground with a few levels of noise; and where it is."""
    y, x = np.ogrid[:side, :side]
    inside = (y - 0.4 * side) ** 2 + (x - 0.6 * side) ** 2 < (side / 6) ** 2
    noise = np.random.default_rng(0).integers(0, 8, size=(side, side, 1))
    return (np.where(inside, 70, 200)[:, :, None] + noise).astype(np.uint8).repeat(3, axis=2), inside


def visible(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (np.abs(after.astype(int) - before.astype(int)) > VISIBLE_CHANGE).any(axis=2)


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_mask_is_exactly_what_changed(kind: str) -> None:
    for image in (texture(96, 130), disc(128)[0]):
        image.flags.writeable = False
        for seed in SEEDS:
            painted, mask = apply_defect(image, DefectRecipe(kind, seed))
            assert painted.dtype == np.uint8
            assert painted.shape == image.shape
            assert mask.dtype == bool
            assert mask.any()
            assert not mask.all()
            np.testing.assert_array_equal(mask, visible(image, painted))
            np.testing.assert_array_equal(painted[~mask], image[~mask])


def test_results_do_not_share_memory_with_the_image() -> None:
    image = texture(64, 64)
    before = image.copy()
    painted, mask = apply_defect(image, DefectRecipe("cutpaste", 1))
    painted[:] = 0
    mask[:] = False
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_same_recipe_same_pixels_other_seed_other_pixels(kind: str) -> None:
    image = texture(80, 80)
    first, again, other = (apply_defect(image, DefectRecipe(kind, seed))[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# Stored features are found again by `DefectRecipe.identity`: other pixels than these need a new SYNTHESIS_VERSION.
GOLDEN = {"cutpaste": "cfbd91a61d71dec6", "scar": "dbc9c4c14e2b8e3b", "perlin": "f0ffaf8ebaa8a9bd"}


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_pixels_of_this_synthesis_version(kind: str) -> None:
    total = hashlib.sha256()
    for image in (texture(96, 130), texture(40, 40, gray=True), disc(128)[0]):
        for seed in range(4):
            painted, mask = apply_defect(image, DefectRecipe(kind, seed))
            total.update(painted.tobytes() + mask.tobytes())
    assert SYNTHESIS_VERSION == 1
    assert total.hexdigest()[:16] == GOLDEN[kind]


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(DEFECT_KINDS),
    seed=st.integers(0, 2**63),
    size=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_an_image_of_one_colour_shows_the_defect(
    kind: str, seed: int, size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    image = np.full((*size, 3), colour, dtype=np.uint8)
    painted, mask = apply_defect(image, DefectRecipe(kind, seed))
    assert mask.any()
    np.testing.assert_array_equal(mask, visible(image, painted))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(DEFECT_KINDS),
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    levels=st.sampled_from([(0, 256), (0, 2), (250, 256)]),
)
def test_any_noise_image_has_a_mask(kind: str, seed: int, size: tuple[int, int], levels: tuple[int, int]) -> None:
    image = np.random.default_rng(seed).integers(*levels, size=(*size, 3)).astype(np.uint8)
    _, mask = apply_defect(image, DefectRecipe(kind, seed))
    assert mask.any()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@pytest.mark.parametrize("size", [(8, 4096), (4096, 8), (8, 8), (2100, 1900)])
def test_extreme_sizes(kind: str, size: tuple[int, int]) -> None:
    image = texture(*size)
    painted, mask = apply_defect(image, DefectRecipe(kind, 5))
    assert painted.shape == image.shape
    assert mask.any()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_gray_stays_gray(kind: str) -> None:
    for seed in SEEDS:
        painted, _ = apply_defect(texture(64, 64, gray=True), DefectRecipe(kind, seed))
        assert (painted[..., 0] == painted[..., 1]).all()
        assert (painted[..., 0] == painted[..., 2]).all()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_defects_lie_on_the_object(kind: str) -> None:
    image, inside = disc(64)
    assert inside.mean() < 0.1
    masks = [apply_defect(image, DefectRecipe(kind, seed))[1] for seed in SEEDS]
    assert all((mask & inside).any() for mask in masks)


def test_defects_of_a_texture_go_everywhere() -> None:
    image = texture(64, 64)
    assert foreground(image) is None
    seen = sum(apply_defect(image, DefectRecipe("cutpaste", seed))[1].astype(int) for seed in range(150))
    assert (np.asarray(seen)[::8, ::8] > 0).all()


def test_foreground_finds_a_disc_and_no_object_where_there_is_none() -> None:
    image, inside = disc(256)
    found = foreground(image)
    assert found is not None
    assert found.shape == (64, 64)
    wanted = inside.reshape(64, 4, 64, 4).mean(axis=(1, 3)) > 0.5
    assert (found != wanted).mean() < 0.01
    assert foreground(np.full((50, 50, 3), 90, dtype=np.uint8)) is None
    half = np.zeros((64, 64, 3), dtype=np.uint8)
    half[:, 32:] = 200
    assert foreground(half) is None


def test_cutpaste_keeps_the_papers_area_and_aspect() -> None:
    image = np.full((256, 256, 3), 120, dtype=np.uint8)
    for seed in range(60):
        mask = apply_defect(image, DefectRecipe("cutpaste", seed))[1]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
        assert mask.sum() == height * width
        assert 0.019 < mask.mean() < 0.155
        assert 0.28 < height / width < 3.5


@pytest.mark.parametrize("side", [256, 512])
def test_scars_keep_the_papers_size_and_scale_with_the_image(side: int) -> None:
    image = np.full((side, side, 3), 120, dtype=np.uint8)
    areas = [float(apply_defect(image, DefectRecipe("scar", seed))[1].mean()) * 256**2 for seed in range(80)]
    assert max(areas) < 16 * 25 * 1.1
    assert 50 < np.median(areas) < 300
    slanted = 0
    for seed in range(20):
        mask = apply_defect(image, DefectRecipe("scar", seed))[1]
        box = mask[np.ix_(mask.any(axis=1), mask.any(axis=0))]
        slanted += int(box.mean() < 0.9)
    assert slanted > 10


def test_perlin_noise_matches_the_textbook_formula() -> None:
    size, cells, seed = (23, 31), (3.4, 2.0), 11
    noise = perlin_noise(size, cells, np.random.Generator(np.random.PCG64(seed)))
    shape = floor(22.5 * cells[0] / size[0]) + 2, floor(30.5 * cells[1] / size[1]) + 2
    picked = np.random.Generator(np.random.PCG64(seed)).integers(16, size=shape)
    gradients = synthetic_defects._DIRECTIONS[picked].astype(float)
    np.testing.assert_allclose((gradients**2).sum(axis=2), 1, atol=1e-6)

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    for row, column in [(0, 0), (22, 30), (7, 19), (13, 4), (20, 28)]:
        y, x = (row + 0.5) * cells[0] / size[0], (column + 0.5) * cells[1] / size[1]
        i, j = floor(y), floor(x)
        total = 0.0
        for a in (0, 1):
            for b in (0, 1):
                weight = (fade(y - i) if a else 1 - fade(y - i)) * (fade(x - j) if b else 1 - fade(x - j))
                gx, gy = gradients[i + a, j + b]
                total += weight * (gx * (x - j - b) + gy * (y - i - a))
        assert noise[row, column] == pytest.approx(total * sqrt(2), abs=1e-5)


def test_perlin_masks_are_not_rectangles() -> None:
    image = np.full((128, 128, 3), 120, dtype=np.uint8)
    filled = []
    for seed in SEEDS:
        mask = apply_defect(image, DefectRecipe("perlin", seed))[1]
        filled.append(float(mask[np.ix_(mask.any(axis=1), mask.any(axis=0))].mean()))
    assert np.median(filled) < 0.85


@pytest.mark.parametrize("level", [0, 127, 128, 255])
def test_when_no_attempt_shows_a_blot_is_painted(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    monkeypatch.setattr(synthetic_defects, "MAX_ATTEMPTS", 0)
    image = np.full((32, 48, 3), level, dtype=np.uint8)
    painted, mask = apply_defect(image, DefectRecipe("scar", 0))
    assert mask.sum() == 2 * 3
    np.testing.assert_array_equal(mask, visible(image, painted))


def test_recipe_identity_names_kind_seed_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [DefectRecipe(kind, seed) for kind in DEFECT_KINDS for seed in (0, 1)]
    identities = [recipe.identity for recipe in recipes]
    assert len(set(identities)) == len(recipes)
    monkeypatch.setattr(synthetic_defects, "SYNTHESIS_VERSION", SYNTHESIS_VERSION + 1)
    assert not set(identities) & {recipe.identity for recipe in recipes}


def test_bad_recipes_are_refused() -> None:
    with pytest.raises(InputError, match=r"'dent' is unknown; choose one of cutpaste, scar, perlin"):
        DefectRecipe("dent", 0)
    with pytest.raises(InputError, match=r"seed -1 is negative"):
        DefectRecipe("scar", -1)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32), dtype=np.uint8),
        np.zeros((32, 32, 4), dtype=np.uint8),
        np.zeros((32, 32, 3), dtype=np.float32),
        np.zeros((7, 32, 3), dtype=np.uint8),
    ],
)
def test_bad_images_are_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=r"uint8 \[H, W, 3\]"):
        apply_defect(image, DefectRecipe("scar", 0))


@pytest.mark.real_images
@pytest.mark.parametrize(
    ("folder", "has_object"), [("MVTecAD/screw", True), ("VisA/macaroni1", True), ("carpet_tiles/carpet", False)]
)
def test_real_images(real_data: Path, folder: str, has_object: bool) -> None:
    files = sorted(filter(is_image, (real_data / folder / "train" / "good").iterdir()))[:12]
    seconds = []
    for seed, file in enumerate(files):
        image = read_image(file)
        ground = foreground(image)
        assert (ground is not None) == has_object
        for kind in DEFECT_KINDS:
            started = time.perf_counter()
            painted, mask = apply_defect(image, DefectRecipe(kind, seed))
            seconds.append(time.perf_counter() - started)
            np.testing.assert_array_equal(mask, visible(image, painted))
            if ground is not None:
                rows, columns = np.nonzero(mask)
                height, width = mask.shape
                assert ground[rows * ground.shape[0] // height, columns * ground.shape[1] // width].any()
    assert np.median(seconds) < 0.03
