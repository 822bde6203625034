"""A small product that is drawn in a moment: for the tests of detectors and executors, plug-ins' included."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def draw_widget(seed: int, *, dent: bool = False, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A gray disk with noise, uint8 [size, size, 3], and the mask of its dent, if any."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    disk = 200 - 120 * (np.hypot(x, y) < 0.38 * size) + 20 * np.cos(np.arctan2(y, x) * 6)
    mask = np.zeros((size, size), dtype=bool)
    if dent:
        angle, reach = rng.uniform(0, 2 * np.pi), 0.2 * size
        mask = np.hypot(x - reach * np.cos(angle), y - reach * np.sin(angle)) < 0.1 * size
        disk = np.where(mask, 215, disk)
    image = np.clip(disk + rng.normal(0, 6, disk.shape), 0, 255).astype(np.uint8)
    return np.repeat(image[:, :, None], 3, axis=2), mask


def write_widgets(root: Path, *, train: int = 24, good: int = 12, dents: int = 12, size: int = 64) -> Path:
    """A data set of MVTec's layout, root/widget/..., with masks; returns `root`."""
    folder = root / "widget"
    numbers = itertools.count()
    for part, count in (("train/good", train), ("test/good", good), ("test/dent", dents)):
        (folder / part).mkdir(parents=True)
        for index in range(count):
            image, mask = draw_widget(next(numbers), dent=part.endswith("dent"), size=size)
            Image.fromarray(image).save(folder / part / f"{index:03d}.png")
            if mask.any():
                masks = folder / "ground_truth" / "dent"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{index:03d}_mask.png")
    return root
