"""Drawn products in MVTec AD's layout, to compare ways of choosing a detector on objects and textures of several kinds.

    python benchmarks/objects.py --out DIR [--product buttons] [--train 140]

- buttons: one large button with four holes, turned freely, on cloth
- tray: two-coloured capsules in six wells, all the same way round
- weave: twill of two colours that fills the image
- board: solder pads, traces, parts and printed marks, always in the same places

Sound ones vary as on a line: pose, colour from lot to lot and from part to part, level and gradient of the light, focus,
the sensor's noise. A defect changes the object, which is drawn again; from kind to kind the amounts run evenly from
barely visible to clear, and the mask holds the pixels that the change makes visible before the photograph is taken
(more than 5 of 255 in a colour channel). An image depends on the seed, its product, part, kind and number alone, not on
how many are drawn.

How clear defects are was set once, with one detector: PatchCore as it comes (EfficientNet-Lite0, strides 8 and 16, 256 px,
coreset 1 %, 3x3 mean, not whitened), fitted to the first 60 training images, should be neither perfect nor at chance on a
product, with an image AUROC between .7 and .97. With the amounts of all kinds from 0 to 1 it had .929 on buttons and .888
on tray, which stayed; .651 on weave and .699 on board, whose amounts were raised as a whole (the `strength` of the product):
.736 and .765.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _board import BOARD
from _buttons import BUTTONS
from _drawing import Grid, Product, between, changed, photograph
from _tray import TRAY
from _weave import WEAVE
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image

PRODUCTS: dict[str, Product] = {"buttons": BUTTONS, "tray": TRAY, "weave": WEAVE, "board": BOARD}
SIZE = 320
TRAIN, GOOD, DEFECTIVE = 140, 40, 40
LEAST = 12 / SIZE**2
"""Share of the image that a defect's mask covers at least; smaller ones are drawn again."""
TRIES = 50
GOLDEN = (5**0.5 - 1) / 2

Pixels = NDArray[np.uint8]


def main() -> None:
    """Draw the products that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder in which each product gets one of its own")
    parser.add_argument("--product", choices=PRODUCTS, help="default: all")
    parser.add_argument("--train", type=int, default=TRAIN, help="good images to train on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for product in [given.product] if given.product else PRODUCTS:
        try:
            print(draw(product, given.out, train=given.train, seed=given.seed))
        except (FileExistsError, ValueError) as error:
            parser.error(str(error))


def draw(
    product: str,
    out: Path,
    *,
    train: int = TRAIN,
    good: int = GOOD,
    defective: int = DEFECTIVE,
    size: int = SIZE,
    seed: int = 0,
) -> Path:
    """Write a product into `out/product` and return that folder.

    `train` and `good` count the good images of train/ and test/; the `defective` ones of test/ are shared out evenly among
    the product's kinds of defects.

    Raises:
        FileExistsError: `out/product` exists.
        ValueError: no such product, a count below 1, a negative seed, or images so small that a defect stays invisible.
    """
    if product not in PRODUCTS:
        raise ValueError(f"unknown product {product}; there are {', '.join(PRODUCTS)}")
    counts = {"train": train, "good": good, "defective": defective, "size": size}
    for name, number in counts.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1")
    if seed < 0:
        raise ValueError("seed must be at least 0")
    folder = out / product
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or name another folder")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{product}-") as temporary:
        whole = Path(temporary) / product
        _write(product, whole, counts=(train, good, defective), size=size, seed=seed)
        whole.rename(folder)
    return folder


def _write(product: str, folder: Path, *, counts: tuple[int, int, int], size: int, seed: int) -> None:
    train, good, defective = counts
    for part, count in (("train", train), ("test", good)):
        for number in range(count):
            _save(good_image(product, part, number, size=size, seed=seed), folder / part / "good" / f"{number:03}.png")
    kinds = list(PRODUCTS[product].defects)
    for index in range(defective):
        kind, number = kinds[index % len(kinds)], index // len(kinds)
        image, mask = defective_image(product, kind, number, size=size, seed=seed)
        _save(image, folder / "test" / kind / f"{number:03}.png")
        _save(mask, folder / "ground_truth" / kind / f"{number:03}_mask.png")


def _save(image: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=3)


def _generator(*key: str | int) -> Generator:
    """A generator of its own for each key."""
    return default_rng([byte for part in key for byte in (*str(part).encode(), 0)])


def good_image(product: str, part: str, number: int, *, size: int = SIZE, seed: int = 0) -> Pixels:
    """Image [size, size, 3] of a sound product; `part` is train or test."""
    rng = _generator(seed, product, part, number)
    drawn = PRODUCTS[product]
    return photograph(drawn.render(drawn.sound(rng), Grid.of(size)), rng)


def defective_image(product: str, kind: str, number: int, *, size: int = SIZE, seed: int = 0) -> tuple[Pixels, Pixels]:
    """Image [size, size, 3] of a damaged product and its mask [size, size], 0 or 255."""
    rng = _generator(seed, product, kind, number)
    drawn, grid = PRODUCTS[product], Grid.of(size)
    scene = drawn.sound(rng)
    sound = drawn.render(scene, grid)
    # A golden-ratio sequence is even however many are drawn; kinds start apart.
    start = list(drawn.defects).index(kind) / len(drawn.defects)
    amount = between(*drawn.strength, (start + number * GOLDEN) % 1.0)
    for _ in range(TRIES):
        damaged = drawn.render(drawn.defects[kind](scene, rng, amount), grid)
        mask = changed(sound, damaged)
        if (mask > 0).mean() >= LEAST:
            return photograph(damaged, rng), mask
    raise ValueError(f"{product}: {kind} {number} stays invisible at {size} px")


if __name__ == "__main__":
    main()
