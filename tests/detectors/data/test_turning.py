"""Turned copies of few good images: which turns there are, and that they are told apart wherever images are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detectors.data.samples import ImageSet, Sample
from detectors.data.turning import OF_ANY_SHAPE, OF_SQUARES, References, with_turned_copies
from detectors.errors import InputError


def write(folder: Path, name: str, size: tuple[int, int], *, seed: int = 0) -> Sample:
    """An image of random pixels whose left upper corner is white; `size` is height and width."""
    pixels = np.random.default_rng(seed).integers(0, 100, (*size, 3), dtype=np.uint8)
    pixels[:2, :2] = 255
    Image.fromarray(pixels).save(folder / name)
    return Sample(key=name, file=folder / name)


def images(folder: Path, *sizes: tuple[int, int], image_size: tuple[int, int] = (16, 16)) -> ImageSet:
    samples = tuple(write(folder, f"{index}.png", size, seed=index) for index, size in enumerate(sizes))
    return ImageSet("train", samples, image_size)


def white_corner(rgb: NDArray[np.uint8]) -> tuple[bool, bool]:
    """Whether the white corner is at the bottom, and whether it is at the right."""
    row, column = np.argwhere(rgb.min(axis=2) == 255).mean(axis=0)
    return bool(row > len(rgb) / 2), bool(column > rgb.shape[1] / 2)


def test_square_images_have_the_whole_group_of_turns(tmp_path: Path) -> None:
    turned = with_turned_copies(images(tmp_path, (16, 16)))
    assert turned.copies == len(OF_SQUARES) == 7
    shown = [turned.image_set.load(index)[0] for index in range(8)]
    assert len({rgb.tobytes() for rgb in shown}) == 8
    # Every corner comes up twice: once as it is turned and once as it is mirrored.
    corners = [white_corner(rgb) for rgb in shown]
    assert sorted(corners) == sorted(2 * [(False, False), (False, True), (True, False), (True, True)])
    # The group is closed: whatever is turned again is there.
    for rgb in shown:
        assert np.rot90(rgb).tobytes() in {other.tobytes() for other in shown}
        assert rgb[:, ::-1].tobytes() in {other.tobytes() for other in shown}
    assert (np.sort(shown[3], axis=None) == np.sort(shown[0], axis=None)).all()


@pytest.mark.parametrize(
    ("sizes", "image_size"), [([(16, 16), (16, 20)], (16, 16)), ([(16, 16)], (16, 24)), ([(24, 16)], (24, 16))]
)
def test_others_have_half_a_turn_and_both_mirrorings(
    tmp_path: Path, sizes: list[tuple[int, int]], image_size: tuple[int, int]
) -> None:
    turned = with_turned_copies(images(tmp_path, *sizes, image_size=image_size))
    assert turned.copies == len(OF_ANY_SHAPE) == 3
    first = turned.image_set.load(0)[0]
    copies = {turned.image_set.load(index)[0].tobytes() for index in turned.rows([0])[1:]}
    assert copies == {other.tobytes() for other in (first[::-1, ::-1], first[:, ::-1], first[::-1])}


def test_the_copies_of_an_image_are_found_by_its_index(tmp_path: Path) -> None:
    plain = images(tmp_path, (16, 20), (16, 20), (16, 20))
    turned = with_turned_copies(plain)
    assert turned.image_set.samples[:3] == plain.samples
    rows = turned.rows([2, 0])
    assert [turned.image_set.samples[row].key for row in rows] == [
        "2.png",
        "0.png",
        *(f"2.png#turn{turn}" for turn in OF_ANY_SHAPE),
        *(f"0.png#turn{turn}" for turn in OF_ANY_SHAPE),
    ]
    assert sorted(turned.rows(range(3))) == list(range(12))
    assert References(plain).rows([2, 0]) == [2, 0]


def test_a_mask_is_turned_with_its_image(tmp_path: Path) -> None:
    sample = write(tmp_path, "0.png", (16, 16))
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:2, :2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    defective = replace(sample, defect_type="dent", mask_file=tmp_path / "mask.png")
    for turn in OF_SQUARES:
        rgb, turned = ImageSet("test", (replace(defective, turn=turn),), (16, 16)).load(0)
        assert turned is not None
        assert (turned == (rgb.min(axis=2) == 255)).all()


def test_turned_images_are_other_images_and_those_as_they_are_keep_their_digest(tmp_path: Path) -> None:
    plain = images(tmp_path, (16, 16))
    (sample,) = plain.samples
    turned = {ImageSet("train", (replace(sample, turn=turn),), (16, 16)).digest for turn in range(8)}
    assert len(turned) == 8
    assert plain.digest in turned


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = ImageSet("train", (Sample(key="0.png", file=tmp_path / "0.png"),), (16, 16))
    with pytest.raises(InputError, match=r"0\.png"):
        with_turned_copies(missing)
