"""Reading images and masks: every way in which a file can be odd or bad."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from detectors.data import images
from detectors.data.images import (
    IMAGE_SUFFIXES,
    MIN_SIDE,
    is_image,
    open_image,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)
from detectors.errors import InputError

HEIGHT, WIDTH = 20, 28
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = RGB[:, :, 0]


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- formats and modes


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_is_read_by_a_decoder_that_is_open(tmp_path, suffix):
    gray = suffix in {".pgm", ".pbm"}
    image = Image.fromarray(GRAY if gray else RGB)
    path = save(image.convert("1") if suffix == ".pbm" else image, tmp_path / f"x{suffix}")
    read = read_image(path)
    assert read.shape == (HEIGHT, WIDTH, 3)
    assert read.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.PNG", True), ("a.b.jpeg", True), ("._a.png", False), (".png", False), ("Thumbs.db", False), ("a.txt", False)],
)
def test_is_image_goes_by_name(name, expected):
    assert is_image(Path(name)) is expected


def test_color_image_is_read_exactly(tmp_path):
    assert np.array_equal(read_image(save(Image.fromarray(RGB), tmp_path / "x.png")), RGB)


def test_gray_is_repeated(tmp_path):
    read = read_image(save(Image.fromarray(GRAY), tmp_path / "x.png"))
    assert np.array_equal(read, np.repeat(GRAY[:, :, None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_gray_keeps_the_upper_byte(tmp_path, suffix):
    deep = GRAY.astype(np.uint16) * 256 + 77
    read = read_image(save(Image.fromarray(deep), tmp_path / f"x{suffix}"))
    assert np.array_equal(read, np.repeat(GRAY[:, :, None], 3, axis=2))


def test_big_endian_16_bit_tiff(tmp_path):
    path = save(Image.fromarray((GRAY.astype(np.uint16) * 256).astype(">u2")), tmp_path / "x.tif")
    assert path.read_bytes()[:2] == b"MM"
    assert open_image(path).mode == "I;16B"
    assert np.array_equal(read_image(path)[:, :, 0], GRAY)


def test_32_bit_gray_is_clipped_not_wrapped(tmp_path):
    deep = np.full((HEIGHT, WIDTH), 70_000, dtype=np.int32)
    deep[0, 0] = -5
    read = read_image(save(Image.fromarray(deep), tmp_path / "x.tif"))
    assert read[0, 0, 0] == 0
    assert read[1, 1, 0] == 255


def test_float_image_is_refused_with_its_name(tmp_path):
    path = save(Image.fromarray(GRAY.astype(np.float32)), tmp_path / "x.tif")
    with pytest.raises(InputError, match="float images") as error:
        read_image(path)
    assert str(path) in one_line(error)
    with pytest.raises(InputError, match=r"upload 3: float images"):
        read_image(path.read_bytes(), name="upload 3")


def test_palette(tmp_path):
    image = Image.fromarray(GRAY // 64).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 0, 255, 255, 255])
    read = read_image(save(image, tmp_path / "x.png"))
    table = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 0], [255, 255, 255]], dtype=np.uint8)
    assert np.array_equal(read, table[GRAY // 64])


def test_palette_with_transparency_keeps_its_colors(tmp_path):
    image = Image.fromarray(RGB).convert("P")
    colors = np.asarray(image.convert("RGB"))
    path = save(image, tmp_path / "x.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(path), colors)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path, mode):
    opaque = Image.fromarray(RGB).convert(mode[:-1])
    expected = np.asarray(opaque.convert("RGB"))
    image = opaque.copy()
    image.putalpha(Image.fromarray(GRAY))
    assert np.array_equal(read_image(save(image, tmp_path / "x.png")), expected)


def test_cmyk_jpeg_has_the_right_colors(tmp_path):
    red = Image.new("RGB", (WIDTH, HEIGHT), (250, 5, 5)).convert("CMYK")
    path = save(red, tmp_path / "x.jpg", quality=95)
    assert open_image(path).mode == "CMYK"
    assert np.abs(read_image(path).astype(int) - [250, 5, 5]).max() <= 4


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (WIDTH, HEIGHT), level) for level in (40, 200)]
    path = save(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (read_image(path) == 40).all()
    path = save(frames[0], tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    assert (read_image(path) == 40).all()


# --- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_orientation_is_undone(tmp_path, orientation, suffix):
    # How a camera held in that way stores the upright image.
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / f"x{suffix}", exif=exif, **options)
    assert np.array_equal(read_image(path), RGB)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_cost_the_image():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "maker"
    exif[ExifTags.Base.XResolution] = (72, 1)
    data = encode(Image.fromarray(RGB), "PNG", exif=exif)
    start = data.index(b"eXIf") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(start, start + length, 3):
            damaged[position] = rng.integers(256)
        damaged[start + length : start + length + 4] = zlib.crc32(damaged[start - 4 : start + length]).to_bytes(
            4, "big"
        )
        read = read_image(bytes(damaged))
        assert sorted(read.shape) == [3, HEIGHT, WIDTH]


def test_exif_tag_of_the_wrong_type_is_ignored():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    data = bytearray(encode(Image.fromarray(RGB), "JPEG", exif=exif, quality=100, subsampling=0))
    entry = data.index(struct.pack(">HH", ExifTags.Base.Orientation, 3))
    data[entry + 2 : entry + 4] = struct.pack(">H", 2)  # text instead of a number
    stored = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(read_image(bytes(data)), stored)


# --- bad files


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file") as error:
        read_image(tmp_path / "x.png")
    assert str(tmp_path / "x.png") in one_line(error)


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_not_an_image(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(InputError, match="not a readable image") as error:
            read_image(source)
        text = one_line(error)
        assert text.count(str(path)) == (source is path)
        assert "0x" not in text


def test_formats_that_run_other_programs_stay_shut():
    eps = encode(Image.fromarray(RGB), "EPS")
    with pytest.raises(InputError, match="unknown format"):
        read_image(eps, name="upload")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated_file(kind):
    data = encode(Image.fromarray(RGB), kind)
    with pytest.raises(InputError, match=r"^upload: not a readable image"):
        read_image(data[: len(data) // 2], name="upload")


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "TGA"]),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.1, 1),
)
def test_damaged_bytes_are_read_or_refused_never_a_crash(kind, damage, keep):
    data = bytearray(encode(Image.fromarray(RGB), kind))
    for place, value in damage:
        data[int(place**2 * len(data))] = value  # headers, which come first, are hit more often
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = read_or_refuse(bytes(data[: int(keep * len(data))]))
    if isinstance(outcome, InputError):
        assert "\n" not in str(outcome)
    else:
        assert outcome.dtype == np.uint8
        assert outcome.ndim == 3


def read_or_refuse(data: bytes) -> np.ndarray | InputError:
    try:
        return read_image(data)
    except InputError as error:
        return error


@pytest.mark.parametrize(("width", "height"), [(1, 1), (MIN_SIDE - 1, 100), (100, MIN_SIDE - 1)])
def test_too_small(width, height):
    with pytest.raises(InputError, match=f"{width} x {height} pixels is too small"):
        read_image(encode(Image.new("L", (width, height)), "PNG"))


def test_smallest_size_is_read():
    assert read_image(encode(Image.new("L", (MIN_SIDE, MIN_SIDE)), "PNG")).shape == (MIN_SIDE, MIN_SIDE, 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(10_001, 10_000), (13_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_image_bomb_is_refused_before_it_is_decoded(width, height):
    with pytest.raises(InputError, match="100 megapixels"):
        read_image(bomb(width, height), name="upload")


def test_file_of_too_many_bytes(tmp_path, monkeypatch):
    path = save(Image.fromarray(RGB), tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="more than an image may have"):
        read_image(path)


# --- masks

DEFECT = np.zeros((HEIGHT, WIDTH), dtype=bool)
DEFECT[4:12, 6:16] = True


@pytest.mark.parametrize("value", [1, 128, 255])
def test_any_gray_marks_a_defect(tmp_path, value):
    path = save(Image.fromarray((DEFECT * value).astype(np.uint8)), tmp_path / "x.png")
    mask = read_mask(path, (HEIGHT, WIDTH))
    assert mask.dtype == bool
    assert np.array_equal(mask, DEFECT)


@pytest.mark.parametrize("value", [1, 255, 256, 65_535])
def test_16_bit_masks(tmp_path, value):
    path = save(Image.fromarray((DEFECT * value).astype(np.uint16)), tmp_path / "x.png")
    assert np.array_equal(read_mask(path, (HEIGHT, WIDTH)), DEFECT)


def test_1_bit_and_float_masks(tmp_path):
    path = save(Image.fromarray(DEFECT), tmp_path / "x.png")
    assert np.array_equal(read_mask(path, (HEIGHT, WIDTH)), DEFECT)
    path = save(Image.fromarray(DEFECT.astype(np.float32) / 2), tmp_path / "x.tif")
    assert np.array_equal(read_mask(path, (HEIGHT, WIDTH)), DEFECT)


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 0, 1), (0, 2, 0)])
def test_color_masks(tmp_path, color):
    path = save(Image.fromarray(DEFECT[:, :, None] * np.array(color, dtype=np.uint8)), tmp_path / "x.png")
    assert np.array_equal(read_mask(path, (HEIGHT, WIDTH)), DEFECT)


def test_palette_mask(tmp_path):
    mask = Image.fromarray(DEFECT.astype(np.uint8)).convert("P")
    mask.putpalette([0, 0, 0, 128, 0, 0])
    assert np.array_equal(read_mask(save(mask, tmp_path / "x.png"), (HEIGHT, WIDTH)), DEFECT)


def test_what_is_transparent_is_not_marked(tmp_path):
    rgba = np.full((HEIGHT, WIDTH, 4), 255, dtype=np.uint8)
    rgba[:, :, 3] = DEFECT * 255
    assert np.array_equal(read_mask(save(Image.fromarray(rgba), tmp_path / "x.png"), (HEIGHT, WIDTH)), DEFECT)


def test_jpeg_mask_is_free_of_ringing(tmp_path):
    path = save(Image.fromarray(DEFECT.astype(np.uint8) * 255), tmp_path / "x.jpg", quality=60)
    assert (np.asarray(Image.open(path))[~DEFECT] > 0).any()
    assert np.array_equal(read_mask(path, (HEIGHT, WIDTH)), DEFECT)


def test_mask_of_another_size(tmp_path):
    path = save(Image.fromarray(DEFECT), tmp_path / "x.png")
    with pytest.raises(
        InputError, match=rf"the mask is {WIDTH} x {HEIGHT} but its image is {HEIGHT} x {WIDTH}"
    ) as error:
        read_mask(path, (WIDTH, HEIGHT))
    assert str(path) in one_line(error)


# --- sizes


def test_resized_image_keeps_a_flat_color():
    flat = np.full((40, 60, 3), (10, 200, 90), dtype=np.uint8)
    resized = resize_image(flat, (16, 24))
    assert resized.shape == (16, 24, 3)
    assert (resized == (10, 200, 90)).all()


def test_resized_mask_takes_the_majority():
    mask = np.zeros((40, 40), dtype=bool)
    mask[:, :21] = True  # more than half of the sixth column of 4, all of the first five
    resized = resize_mask(mask, (10, 10))
    assert resized[:, :5].all()
    assert not resized[:, 5:].any()


def test_resized_mask_of_a_thin_defect_is_not_empty():
    mask = np.zeros((400, 400), dtype=bool)
    mask[200, 37:90] = True
    resized = resize_mask(mask, (40, 40))
    assert 0 < resized.sum() <= 8
    assert set(np.nonzero(resized)[0]) == {20}


def test_empty_mask_stays_empty():
    assert not resize_mask(np.zeros((400, 400), dtype=bool), (40, 40)).any()
