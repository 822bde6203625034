"""Copies among images are found by their pixels, whatever the files are called and how they are saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectors.data import copies
from detectors.data.copies import content_groups, pixel_digests
from detectors.data.samples import Sample
from detectors.data.synthetic_defects import DefectRecipe

RNG = np.random.default_rng(0)


def pixels(*, gray: bool = False) -> np.ndarray:
    return RNG.integers(0, 256, (24, 32) if gray else (24, 32, 3), dtype=np.uint8)


def saved(path: Path, values: np.ndarray, **how: object) -> Sample:
    Image.fromarray(values).save(path, **how)
    return Sample(key=path.name, file=path)


def test_the_same_pixels_are_one_content_in_any_lossless_format(tmp_path: Path):
    first, other = pixels(), pixels()
    samples = [
        saved(tmp_path / "a.png", first),
        saved(tmp_path / "other.png", other),
        saved(tmp_path / "b.bmp", first),
        saved(tmp_path / "c.png", first, compress_level=0),
        saved(tmp_path / "d.tif", first, compression="tiff_lzw"),
        saved(tmp_path / "e.webp", first, lossless=True),
    ]
    assert len({sample.file.read_bytes() for sample in samples}) == len(samples)
    assert content_groups(samples) == [0, 1, 0, 0, 0, 0]


def test_gray_and_colour_with_the_same_pixels_are_one_content(tmp_path: Path):
    gray = pixels(gray=True)
    colour = np.repeat(gray[:, :, None], 3, axis=2)
    assert content_groups([saved(tmp_path / "gray.png", gray), saved(tmp_path / "colour.png", colour)]) == [0, 0]


def test_one_pixel_or_another_shape_is_another_content(tmp_path: Path):
    first = pixels()
    changed = first.copy()
    changed[0, 0, 0] ^= 1
    turned = first.reshape(32, 24, 3)
    samples = [
        saved(tmp_path / f"{name}.png", values) for name, values in zip("abc", (first, changed, turned), strict=True)
    ]
    assert content_groups(samples) == [0, 1, 2]


def test_a_jpeg_with_other_metadata_is_the_same_content(tmp_path: Path):
    plain = saved(tmp_path / "a.jpg", pixels(), quality=90)
    noted = tmp_path / "b.jpg"
    start = plain.file.read_bytes()
    noted.write_bytes(start[:2] + b"\xff\xfe\x00\x06note" + start[2:])
    assert content_groups([plain, Sample(key="b", file=noted)]) == [0, 0]


def test_a_painted_sample_is_the_image_that_it_is_painted_into(tmp_path: Path):
    good = saved(tmp_path / "a.png", pixels())
    painted = replace(good, key="a.png#scar", recipe=DefectRecipe(kind="scar", seed=1))
    assert content_groups([good, painted]) == [0, 0]


def test_files_that_are_no_images_are_compared_by_their_bytes_and_missing_ones_never(tmp_path: Path):
    for name, content in {"a": b"no image", "b": b"no image", "c": b"none either"}.items():
        (tmp_path / name).write_bytes(content)
    samples = [Sample(key=name, file=tmp_path / name) for name in ("a", "gone", "b", "c", "lost")]
    assert content_groups(samples) == [0, 1, 0, 2, 3]
    assert content_groups([]) == []


def test_what_is_known_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    samples = [saved(tmp_path / f"{index}.png", pixels()) for index in range(4)]
    (tmp_path / "bad.png").write_bytes(b"no image")
    samples.append(Sample(key="bad.png", file=tmp_path / "bad.png"))
    known: dict[str, str] = {}
    seen: list[tuple[int, int]] = []
    groups = content_groups(samples, known, progress=lambda *done: seen.append(done))
    assert len(known) == 5
    assert seen == [(done, 5) for done in range(1, 6)]
    monkeypatch.setattr(copies, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    assert content_groups(samples, known) == groups == [0, 1, 2, 3, 4]
    assert pixel_digests([samples[0].file], known) == [known[copies.file_sha256(samples[0].file)]]


def test_a_changed_file_is_decoded_again(tmp_path: Path):
    samples = [saved(tmp_path / "a.png", pixels()), saved(tmp_path / "b.png", pixels())]
    known: dict[str, str] = {}
    assert content_groups(samples, known) == [0, 1]
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert content_groups(samples, known) == [0, 0]
