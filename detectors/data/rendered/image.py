"""One image: the screw on its table behind the lens, with and without a defect, and the mask of what that changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from detectors.data.rendered.camera import Camera, Layer, render
from detectors.data.rendered.damage import DEFECT_KINDS, Damage, draw_damage
from detectors.data.rendered.ground import draw_ground, in_shadow
from detectors.data.rendered.screw import Floats, draw_scene
from detectors.errors import InputError

RENDERER_VERSION = 1
"""Raised whenever the same arguments would give other pixels."""
VISIBLE_CHANGE = 6.0
"""A pixel belongs to the mask when the changed screw changes it by more than this many of 255 levels, before noise;
so do the gaps of a pixel and the holes between such pixels."""
MIN_MASK_AREA = 3e-4
"""Smallest share of the image that a mask covers (at least 3 pixels): 31 pixels at 320 x 320."""
MAX_ATTEMPTS = 12
"""A defect too faint to see, or on the side away from the camera, is drawn again, each time a little more severe."""

Mask = NDArray[np.bool_]


def render_screw(*, seed: int, size: int, defect: str | None = None) -> tuple[NDArray[np.uint8], Mask]:
    """One gray image uint8 [size, size] and the mask bool [size, size] of its defect (empty for None).

    The same seed gives the same screw, pose, light, dirt and noise, with or without a defect.

    Raises:
        InputError: a size outside 64 to 2048, a negative seed, or a defect that is none of `DEFECT_KINDS`.
    """
    check_image(size, seed)
    if defect is not None and defect not in DEFECT_KINDS:
        raise InputError(f"rendered screws: defect {defect!r} is unknown; choose one of {', '.join(DEFECT_KINDS)}")
    clean, flawed, mask = _expose(seed, size, defect)
    noisy = (clean if flawed is None else flawed) * 255.0 + _sensor_noise(_generator(seed, "sensor"), size)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), mask


def check_image(size: int, seed: int) -> None:
    """Raise `InputError` for a size or seed that no image can have."""
    if not is_integer(size) or not 64 <= size <= 2048:
        raise InputError(f"rendered screws: a size of {size!r} pixels is impossible; choose a whole number, 64 to 2048")
    if not is_integer(seed) or seed < 0:
        raise InputError(f"rendered screws: seed {seed!r} is impossible; use a whole number, 0 or more")


def is_integer(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _generator(seed: int, purpose: str, attempt: int = 0) -> np.random.Generator:
    """A stream of its own for each purpose, so that a defect does not change pose, dirt or noise."""
    entropy = [seed, RENDERER_VERSION, attempt, *purpose.encode()]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _sensor_noise(rng: np.random.Generator, size: int) -> Floats:
    """Noise in levels, [size, size]; each image has its own gain."""
    return rng.standard_normal((size, size)) * rng.uniform(0.7, 1.2)


def _expose(seed: int, size: int, defect: str | None) -> tuple[Floats, Floats | None, Mask]:
    """Noise-free brightness [size, size] without and with the defect, and the mask of what it changed."""
    scene = draw_scene(_generator(seed, "scene"), _generator(seed, "metal"))
    camera = Camera(scene, size)
    ground = draw_ground(_generator(seed, "ground"), scene, size)
    layer = render(scene, Damage(), camera)
    shadowed = in_shadow(ground, layer, scene)
    clean = _compose(layer, shadowed)
    if defect is None:
        return clean, None, np.zeros((size, size), dtype=bool)
    least = max(3, round(MIN_MASK_AREA * size * size))
    for attempt in range(MAX_ATTEMPTS):
        damage = draw_damage(defect, _generator(seed, defect, attempt), attempt / MAX_ATTEMPTS)
        changed = render(scene, damage, camera, before=layer)
        # The mask is about the screw: a shadow that moves with a bent tip is no defect of the table.
        mask = np.abs(_compose(changed, shadowed) - clean) * 255.0 > VISIBLE_CHANGE
        if int(mask.sum()) >= least:
            flawed = _compose(changed, in_shadow(ground, changed, scene))
            return clean, flawed, ndimage.binary_fill_holes(ndimage.binary_closing(mask)) | mask
    raise RuntimeError(f"no visible {defect} for seed {seed} at {size} pixels")


def _compose(layer: Layer, ground: Floats) -> Floats:
    """Brightness [size, size] behind the lens, which blurs a little; noise-free."""
    return np.asarray(ndimage.gaussian_filter(ground * (1.0 - layer.cover) + layer.glow, 0.45, truncate=3.0))
