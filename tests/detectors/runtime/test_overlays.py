"""Heat maps, outlines and PNG files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detectors.errors import InputError
from detectors.runtime.overlays import (
    CAPTION_PIXELS,
    CONTOUR,
    OUTLINE,
    SHEET_CELL,
    colour_table,
    contour,
    outline,
    overlay,
    save_png,
    sheet,
    side_by_side,
)

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_normal_regions_look_as_they_do_in_the_photograph():
    scores = np.full((40, 60), 2.0, np.float32)
    before = RGB.copy()
    drawn = overlay(RGB, scores, low=2.0, high=5.0)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, RGB)
    assert np.array_equal(RGB, before)


def test_the_strongest_colour_is_blended_by_the_opacity():
    scores = np.full((40, 60), 9.0, np.float32)
    drawn = overlay(RGB, scores, low=2.0, high=5.0, opacity=0.5)
    wanted = 0.5 * RGB + 0.5 * colour_table()[255]
    assert np.abs(drawn - wanted).max() <= 0.5 + 1e-3
    assert np.array_equal(overlay(RGB, scores, low=2.0, high=5.0, opacity=1.0)[0, 0], colour_table()[255])


def test_colour_rises_with_the_score():
    gray = np.full((1, 256, 3), 128, np.uint8)
    drawn = overlay(gray, np.linspace(0, 1, 256, dtype=np.float32)[None], low=0, high=1, opacity=1.0).astype(int)
    change = np.abs(drawn - 128).sum(axis=2)[0]
    assert change[0] == 0
    assert change[-1] == np.abs(colour_table()[255].astype(int) - 128).sum()
    assert drawn[0, -1].sum() > drawn[0, 128].sum()


def test_a_map_of_another_size_is_laid_over_the_whole_image():
    scores = np.zeros((8, 12), np.float32)
    scores[6:, 10:] = 1
    changed = (overlay(RGB, scores, low=0.5, high=1) != RGB).any(axis=2)
    assert changed.shape == RGB.shape[:2]
    assert changed[35:, 55:].all()
    assert not changed[:25].any()
    assert not changed[:, :40].any()


@pytest.mark.parametrize("value", [0.0, 1.0, 3.0])
def test_a_scale_without_range_divides_by_nothing(value):
    with np.errstate(all="raise"):
        drawn = overlay(RGB, np.full((40, 60), value, np.float32), low=1.0, high=1.0)
    assert np.array_equal(drawn, RGB) == (value <= 1)


@pytest.mark.parametrize(("size", "width"), [(100, 1), (300, 2), (600, 3), (2000, 3)])
def test_an_outline_surrounds_the_mask_and_hides_nothing_of_it(size, width):
    image = np.zeros((size, size, 3), np.uint8)
    mask = np.zeros((size, size), bool)
    mask[40:60, 30:50] = True
    drawn = outline(image, mask)
    coloured = (drawn == OUTLINE).all(axis=2)
    assert not image.any()
    assert not drawn[mask].any()
    assert coloured[50, 30 - width : 30].all()
    assert not coloured[50, 30 - width - 1]
    assert coloured.sum() == 4 * 20 * width + 4 * (width * (width - 1) // 2)


@pytest.mark.parametrize("whole", [True, False])
def test_an_empty_mask_and_a_full_one_have_no_border(whole):
    assert np.array_equal(outline(RGB, np.full(RGB.shape[:2], whole)), RGB)


def test_an_outline_takes_any_colour():
    mask = np.zeros(RGB.shape[:2], bool)
    mask[10:20, 10:20] = True
    assert (outline(RGB, mask, colour=(1, 2, 3))[9, 10:20] == (1, 2, 3)).all()


def test_images_stand_side_by_side_with_gaps():
    row = side_by_side(RGB, RGB[:, :10], RGB[:, :20], gap=3)
    assert row.shape == (40, 60 + 10 + 20 + 2 * 3, 3)
    assert np.array_equal(row[:, :60], RGB)
    assert (row[:, 60:63] == 255).all()
    assert np.array_equal(row[:, 63:73], RGB[:, :10])
    assert np.array_equal(row[:, -20:], RGB[:, :20])
    assert np.array_equal(side_by_side(RGB), RGB)


def test_a_png_holds_every_pixel(tmp_path):
    path = save_png(RGB, tmp_path / "new" / "x.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), RGB)


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.png", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            save_png(RGB, path)


def test_the_colours_rise_in_lightness():
    table = colour_table()
    assert (table.shape, table.dtype) == ((256, 3), np.uint8)
    lightness = table @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -0.5).all()
    assert lightness[-1] - lightness[0] > 150


def test_a_contour_goes_around_what_reaches_the_level():
    scores = np.zeros((20, 30), np.float32)
    scores[8:12, 10:20] = 3
    drawn = contour(RGB, scores, 2.0)  # the map is half the image's size
    changed = (drawn != RGB).any(axis=2)
    assert changed.any()
    assert (drawn[changed] == CONTOUR).all()
    assert not changed[18:22, 24:36].any()
    assert not changed[:12].any()
    assert np.array_equal(contour(RGB, scores, 3.5), RGB)


def test_a_sheet_holds_every_image_with_its_caption(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    files = [
        save_png(np.full((50 + 900 * (number == 1), 60, 3), colour, np.uint8), tmp_path / f"{number}.png")
        for number, colour in enumerate(colours)
    ]
    page = sheet(files, [(f"a long way to {'x' * 90}/{number}.png", "1.5 · good") for number in range(4)])
    assert page.dtype == np.uint8
    assert page.shape[1] > 3 * SHEET_CELL[0]
    for colour in colours:
        assert (page == colour).all(axis=2).sum() >= 15 * 190  # of the tallest, reduced
    assert (page.sum(axis=2) < 100).any()  # the captions' letters
    assert sheet(files[:1], [("a", "b")]).shape[1] < 2 * SHEET_CELL[0]


def test_rows_of_a_sheet_are_as_high_as_their_images(tmp_path):
    files = [
        save_png(np.full((height, 60, 3), 90, np.uint8), tmp_path / f"{number}.png")
        for number, height in enumerate((30, 20, 10, 50))
    ]
    page = sheet(files, [("a", "b")] * 4)
    assert page.shape[0] == 12 + (30 + CAPTION_PIXELS + 12) + (50 + CAPTION_PIXELS + 12)
    second = 12 + 30 + CAPTION_PIXELS + 12
    assert (page[12 : 12 + 30, 12] == 90).all()
    assert (page[second : second + 50, 12] == 90).all()
