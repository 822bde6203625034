"""Near copies are found after saving again, a shift and other light; parts that only look alike are not taken for one."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detectors.data import near_copies as module
from detectors.data.images import read_image
from detectors.data.near_copies import near_copies, thumbnail

SIZE = 160


def part(seed: int) -> np.ndarray:
    """A washer in a fixture: the same place and shape each time, with its own scratches, light and camera noise."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (SIZE, SIZE), int(60 + rng.normal(0, 2)))
    draw = ImageDraw.Draw(image)
    x, y = 80 + rng.normal(0, 2, 2)
    draw.ellipse((x - 55, y - 55, x + 55, y + 55), fill=190)
    draw.ellipse((x - 25, y - 25, x + 25, y + 25), fill=60)
    for _ in range(40):
        start = rng.uniform(20, 140, 2)
        end = start + rng.normal(0, 12, 2)
        draw.line((*start, *end), fill=int(rng.integers(60, 240)), width=2)
    noisy = np.asarray(image) + rng.normal(0, 4, (SIZE, SIZE))
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def saved_again(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def save(rgb: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
        return read_image(buffer.getvalue())

    return save


def brighter(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rgb: np.clip(np.round(rgb * factor), 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg 90": saved_again(90),
    "jpeg 50": saved_again(50),
    "shifted down": lambda rgb: np.roll(rgb, 1, axis=0),
    "shifted left and up": lambda rgb: np.roll(rgb, (-1, -1), axis=(0, 1)),
    "2 % brighter": brighter(1.02),
    "10 % darker": brighter(0.9),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_near_copy_is_found_among_parts_in_a_fixture(change):
    parts = [part(seed) for seed in range(30)]
    pairs = near_copies([thumbnail(rgb) for rgb in (*parts, change(parts[7]))])
    assert [(pair.first, pair.second) for pair in pairs] == [(7, 30)]
    assert 0 <= pairs[0].residual <= module.MAX_RESIDUAL


def test_parts_that_look_alike_are_no_near_copies():
    assert near_copies([thumbnail(part(seed)) for seed in range(150)]) == []


def test_every_image_saved_twice_is_found():
    """Also where nearly every image has a near copy, what two images differ by in general is that of different parts."""
    parts = [part(seed) for seed in range(40)]
    both = [thumbnail(rgb) for rgb in parts] + [thumbnail(saved_again(80)(rgb)) for rgb in parts]
    assert {(pair.first, pair.second) for pair in near_copies(both)} == {(index, index + 40) for index in range(40)}


def test_nearest_pairs_come_first():
    parts = [part(seed) for seed in range(10)]
    images = [*parts, saved_again(50)(parts[1]), saved_again(95)(parts[2])]
    pairs = near_copies([thumbnail(rgb) for rgb in images])
    assert [(pair.first, pair.second) for pair in pairs] == [(2, 11), (1, 10)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_images_without_contrast_are_near_copies_of_none(count):
    plain = [np.full((20, 20, 3), 40 + index, dtype=np.uint8) for index in range(count)]
    assert near_copies([thumbnail(rgb) for rgb in plain]) == []


def test_two_images_are_compared_too():
    first = part(0)
    assert len(near_copies([thumbnail(first), thumbnail(saved_again(90)(first))])) == 1
    assert near_copies([thumbnail(first), thumbnail(part(1))]) == []


def test_of_more_images_than_the_bound_the_first_are_compared(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 12)
    monkeypatch.setattr(module, "BLOCK", 5)
    parts = [part(seed) for seed in range(12)]
    parts[11] = saved_again(80)(parts[0])
    pairs = near_copies([thumbnail(rgb) for rgb in (*parts, saved_again(80)(parts[1]))])
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 11)]
