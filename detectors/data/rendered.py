"""Photographs of screws, rendered: what demonstrations and tests train on where no real data is at hand.

A screw is an implicit surface `r = R(s, phi)` in its own frame, met by one parallel ray per sample and shaded as worn
metal under a softbox above a white table. Defects change that surface or its metal, so that they shade, stand out
from the silhouette and hide one another as real ones do; their masks compare the picture with and without them.

Notation:
    s, y, z     the screw's frame: along its axis from the head's face to the tip, across, towards the camera
    r, phi      radius and angle about the axis; phi = 0 faces the camera
    X, Y, Z     the camera's frame turned with the screw: along, across, towards the camera
    [N]         samples; SUPERSAMPLING^2 of them make a pixel

Lengths are shares of the picture's width, angles radians, brightness 0 (black) to 1 (white). A picture depends on its
arguments alone; it is computed as float64, so that the last digits in which mathematical libraries and processors
differ vanish when brightness is rounded to 8 bits.

Screws lie as a turntable with `_STOPS` stops presents them, with some play; all else (roll, light, metal, dust) varies
freely. Good and defective pictures draw all of this alike.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import cos, hypot, pi, sin, sqrt, tan, tau
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from detectors.errors import InputError

DEFECT_KINDS: tuple[str, ...] = ("manipulated_front", "scratch_head", "scratch_neck", "thread_side", "thread_top")
RENDERER_VERSION = 1
"""Raised whenever the same arguments would give other pixels."""
CATEGORY = "screw"
SUPERSAMPLING = 2
"""Samples along each side of a pixel."""
VISIBLE_CHANGE = 6.0
"""A pixel belongs to the mask when the changed screw changes it by more than this many of 255 levels, before noise;
so do the gaps of a pixel and the holes between such pixels."""
MIN_MASK_AREA = 3e-4
"""Smallest share of the picture that a mask covers (at least 3 pixels): 31 pixels at 320 x 320."""
MAX_ATTEMPTS = 12
"""A defect too faint to see, or on the side away from the camera, is drawn again, each time a little more severe."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LENGTH = 0.85
_HEAD_END = 0.14
_NECK_END = 0.378
_PITCH = 0.061
_HEAD_RADIUS = 0.130
_NECK_RADIUS = 0.0470
_CREST_RADIUS = 0.0620
_RECESS_RADIUS = 0.060
_TOOTH_HALF_WIDTH = 0.17
"""Half of a thread ridge's foot, in pitches."""
_STOPS = 12
"""Orientations over the full turn. A detector that compares position by position sees each of them several times in 80
pictures; with orientations from a continuum it could learn nothing from so few."""
_SWING = 0.010
"""Standard deviation of the orientation about its stop."""
_SHIFT = 0.003
"""Standard deviation of the position along each side of the picture."""
_TABLE_STEP = 2e-4
_TABLE_START = -0.1
_TOUCH = 2e-4
"""A ray this near to the surface has met it: 0.06 pixels at 320 pixels."""
_MAX_STEPS = 40


def _table(knots: list[tuple[float, float]]) -> Floats:
    """A profile over s, monotone between its knots (s, value), sampled every `_TABLE_STEP` from `_TABLE_START` on."""
    places, values = zip(*knots, strict=True)
    grid = np.arange(_TABLE_START, places[-1], _TABLE_STEP)
    return np.asarray(PchipInterpolator(places, values)(grid), dtype=np.float64)


# Radii fall below zero beyond the tip, so that rays pass there without a special case.
_CORE = _table(
    [
        (-0.1, -0.174),
        (0.0, 0.1262),
        (0.003, 0.1292),
        (0.008, 0.1300),
        (0.014, 0.1285),
        (0.030, 0.1140),
        (0.060, 0.0860),
        (0.080, 0.0680),
        (0.100, 0.0545),
        (0.122, 0.0475),
        (0.140, 0.0470),
        (0.371, 0.0466),
        (0.379, 0.0440),
        (0.388, 0.0372),
        (0.400, 0.0365),
        (0.680, 0.0350),
        (0.740, 0.0285),
        (0.800, 0.0165),
        (0.838, 0.0055),
        (_LENGTH, 0.0),
        (1.2, -0.5),
    ]
)
_TOOTH = _table(
    [
        (-0.1, 0.0),
        (0.376, 0.0),
        (0.386, 0.0080),
        (0.410, 0.0250),
        (0.440, 0.0258),
        (0.680, 0.0258),
        (0.740, 0.0210),
        (0.800, 0.0130),
        (0.835, 0.0040),
        (_LENGTH, 0.0),
        (1.2, 0.0),
    ]
)


@dataclass(frozen=True)
class RenderSpec:
    """How many pictures of which size. Raises `InputError` for what cannot be rendered."""

    size: int = 320
    """Height and width in pixels, 64 to 2048."""
    train: int = 80
    test_good: int = 30
    per_defect: int = 10
    """Pictures of each of `DEFECT_KINDS`."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check_picture(self.size, self.seed)
        for name in ("train", "test_good", "per_defect"):
            count = getattr(self, name)
            if not _is_integer(count) or count < 1:
                raise InputError(f"rendered screws: {name} is {count!r}; ask for a whole number, 1 or more")

    @property
    def identity(self) -> str:
        """16 hex digits that change whenever the rendered pictures may."""
        text = json.dumps({"version": RENDERER_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def total(self) -> int:
        """Pictures in all, without masks."""
        return self.train + self.test_good + self.per_defect * len(DEFECT_KINDS)


# --- one picture -----------------------------------------------------------------------------------------------------


def render_screw(*, seed: int, size: int, defect: str | None = None) -> tuple[NDArray[np.uint8], Mask]:
    """One gray picture uint8 [size, size] and the mask bool [size, size] of its defect (empty for None).

    The same seed gives the same screw, pose, light, dirt and noise, with or without a defect.

    Raises:
        InputError: a size outside 64 to 2048, a negative seed, or a defect that is none of `DEFECT_KINDS`.
    """
    _check_picture(size, seed)
    if defect is not None and defect not in DEFECT_KINDS:
        raise InputError(f"rendered screws: defect {defect!r} is unknown; choose one of {', '.join(DEFECT_KINDS)}")
    clean, flawed, mask = _expose(seed, size, defect)
    noisy = (clean if flawed is None else flawed) * 255.0 + _sensor_noise(_generator(seed, "sensor"), size)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), mask


def _check_picture(size: int, seed: int) -> None:
    if not _is_integer(size) or not 64 <= size <= 2048:
        raise InputError(f"rendered screws: a size of {size!r} pixels is impossible; choose a whole number, 64 to 2048")
    if not _is_integer(seed) or seed < 0:
        raise InputError(f"rendered screws: seed {seed!r} is impossible; use a whole number, 0 or more")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _generator(seed: int, purpose: str, attempt: int = 0) -> np.random.Generator:
    """A stream of its own for each purpose, so that a defect does not change pose, dirt or noise."""
    entropy = [seed, RENDERER_VERSION, attempt, *purpose.encode()]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _sensor_noise(rng: np.random.Generator, size: int) -> Floats:
    """Noise in levels, [size, size]; each picture has its own gain."""
    return rng.standard_normal((size, size)) * rng.uniform(0.7, 1.2)


def _expose(seed: int, size: int, defect: str | None) -> tuple[Floats, Floats | None, Mask]:
    """Noise-free brightness [size, size] without and with the defect, and the mask of what it changed."""
    scene = _draw_scene(_generator(seed, "scene"), _generator(seed, "metal"))
    camera = _Camera(scene, size)
    ground = _draw_ground(_generator(seed, "ground"), scene, size)
    layer = _render(scene, _Damage(), camera)
    shadowed = _shadowed(ground, layer, scene)
    clean = _compose(layer, shadowed)
    if defect is None:
        return clean, None, np.zeros((size, size), dtype=bool)
    least = max(3, round(MIN_MASK_AREA * size * size))
    for attempt in range(MAX_ATTEMPTS):
        damage = _draw_damage(defect, _generator(seed, defect, attempt), attempt / MAX_ATTEMPTS)
        changed = _render(scene, damage, camera, before=layer)
        # The mask is about the screw: a shadow that moves with a bent tip is no defect of the table.
        mask = np.abs(_compose(changed, shadowed) - clean) * 255.0 > VISIBLE_CHANGE
        if int(mask.sum()) >= least:
            flawed = _compose(changed, _shadowed(ground, changed, scene))
            return clean, flawed, ndimage.binary_fill_holes(ndimage.binary_closing(mask)) | mask
    raise RuntimeError(f"no visible {defect} for seed {seed} at {size} pixels")


# --- scene -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """What differs from picture to picture: pose, light, the screw's own tolerances and its metal."""

    angle: float
    """Of the axis in the picture, head to tip; counter-clockwise from right."""
    place: tuple[float, float]
    """Of the screw's middle: right of and above the picture's."""
    tilt: float
    """How far the axis dips from the picture's plane: the screw rests on its head's rim and its tip."""
    scale: float
    phase: float
    """Where the thread starts, in turns."""
    crest: float
    """Relative height of the thread."""
    recess_angle: float
    light: tuple[float, float, float]
    """Unit vector towards the softbox: right, up, towards the camera."""
    key: float
    fill: float
    albedo: float
    tone: float
    """Brightness of the table."""
    grain: Floats
    """[256, 256] smooth noise of unit variance that repeats seamlessly: the metal's unevenness."""


def _draw_scene(rng: np.random.Generator, metal: np.random.Generator) -> _Scene:
    azimuth = rng.normal(2.0, 0.10)
    height = rng.normal(0.80, 0.03)
    noise = metal.standard_normal((256, 256))
    fine, coarse = (ndimage.gaussian_filter(noise, sigma, mode="wrap") for sigma in (1.0, 4.0))
    grain = 3.2 * fine + 6.0 * coarse
    return _Scene(
        angle=(rng.integers(_STOPS) + 0.5) * tau / _STOPS + rng.normal(0.0, _SWING),
        place=(rng.normal(0.0, _SHIFT), rng.normal(0.0, _SHIFT)),
        tilt=rng.normal(0.275, 0.008),
        scale=rng.normal(1.0, 0.005),
        phase=rng.uniform(0.0, 1.0),
        crest=rng.normal(1.0, 0.025),
        recess_angle=rng.uniform(0.0, tau / 6),
        light=_unit(cos(azimuth) * cos(height), sin(azimuth) * cos(height), sin(height)),
        key=rng.normal(0.42, 0.02),
        fill=rng.normal(0.185, 0.008),
        albedo=rng.normal(1.0, 0.02),
        tone=rng.uniform(0.785, 0.820),
        grain=grain / grain.std(),
    )


def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    length = sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


class _Camera:
    """Where the rays of a picture meet the screw's plane; only pixels that may show the screw are kept."""

    def __init__(self, scene: _Scene, size: int) -> None:
        self.size = size
        line = (np.arange(size) + 0.5) / size - 0.5
        c, s = cos(scene.angle), sin(scene.angle)
        x, y = self._turn(scene, line[None, :], -line[:, None])
        kept = (np.abs(y) < _reach(x) + 1.0 / size) & (x > -0.05) & (x < _LENGTH)
        self._pixels: NDArray[np.intp] = np.flatnonzero(kept)
        x, y = x.ravel()[self._pixels], y.ravel()[self._pixels]
        within = ((np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5) / (size * scene.scale)
        right, up = (offset.ravel() for offset in np.meshgrid(within, within))
        self.X: Floats = (x[:, None] + right * c + up * s).ravel()
        """[N] place of each ray along the axis' projection, 0 at the middle of the head's face."""
        self.Y: Floats = (y[:, None] + up * c - right * s).ravel()
        """[N] place across it."""

    @staticmethod
    def _turn(scene: _Scene, right: Floats, up: Floats) -> tuple[Floats, Floats]:
        """X and Y of places in the picture."""
        right, up = (right - scene.place[0]) / scene.scale, (up - scene.place[1]) / scene.scale
        c, s = cos(scene.angle), sin(scene.angle)
        return right * c + up * s + 0.5 * _LENGTH * cos(scene.tilt), up * c - right * s

    def pixels(self, values: Floats) -> Floats:
        """Mean over each pixel's samples, [size, size], of values [N]; 0 where there is no ray."""
        picture = np.zeros(self.size * self.size)
        samples = values.reshape(-1, SUPERSAMPLING**2)
        picture[self._pixels] = sum(samples[:, index] for index in range(SUPERSAMPLING**2)) / SUPERSAMPLING**2
        return picture.reshape(self.size, self.size)


def _reach(X: Floats) -> Floats:
    """Distance [N] from the axis that the screw keeps within, defects included."""
    return np.where(X < _HEAD_END + 0.03, _HEAD_RADIUS + 0.003, _CREST_RADIUS + 0.004)


# --- surface ---------------------------------------------------------------------------------------------------------


class _Relief(NamedTuple):
    """The surface at given places, each [N]."""

    radius: Floats
    crest: Floats
    """Height on the thread's ridge, 0 (core) to 1 (crest)."""
    offset: Floats
    """Distance along the axis to the ridge's middle, in pitches, 0 to 0.5; 0.5 where there is no thread."""


class _Bare(NamedTuple):
    """Metal laid bare by a defect, each [N]."""

    share: Floats
    """0 (untouched) to 1."""
    gloss: Floats
    """Brightness that bare metal adds or, below 0, takes."""


class _Damage:
    """A defect as a change of the screw; this one changes nothing."""

    def region(self) -> tuple[float, float]:
        """The part of the axis, from s to s, outside of which nothing changes."""
        return 0.0, 0.0

    def bend(self, s: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Which place [N] of the sound screw lies here now."""
        return s, y, z

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: _Scene
    ) -> tuple[Floats, Floats]:
        """Core radius and thread height [N] that are left."""
        return core, tooth

    def dent(self, y: Floats, z: Floats, scene: _Scene) -> Floats:
        """Depth [N] below the head's flat face."""
        return np.zeros_like(y)

    def bare(self, s: Floats, y: Floats, z: Floats, scene: _Scene) -> _Bare | None:
        """Metal laid bare on the shaft, cone and thread."""
        return None

    def bare_face(self, y: Floats, z: Floats, scene: _Scene) -> _Bare | None:
        """Metal laid bare on the head's flat face."""
        return None


def _look(table: Floats, s: Floats) -> Floats:
    """A profile [N] at s [N], linear between its samples."""
    place = (np.clip(s, _TABLE_START, 1.19) - _TABLE_START) / _TABLE_STEP
    index = place.astype(np.intp)
    left = table[index]
    return left + (table[index + 1] - left) * (place - index)


def _grain(scene: _Scene, row: Floats, column: Floats) -> Floats:
    """The metal's unevenness [N] at texture coordinates, in cells."""
    return np.asarray(ndimage.map_coordinates(scene.grain, [row, column], order=1, mode="grid-wrap"))


def _smooth_step(low: float, high: float, value: Floats) -> Floats:
    """0 at `low` to 1 at `high` (which may be the smaller), with flat ends."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _relief(s: Floats, y: Floats, z: Floats, scene: _Scene, damage: _Damage) -> _Relief:
    """The surface in the direction of a place [N] that was bent back already."""
    core = _look(_CORE, s)
    tooth, crest, offset = np.zeros_like(core), np.zeros_like(core), np.full_like(core, 0.5)
    threaded = np.flatnonzero(s > _NECK_END - 0.002)
    if threaded.size:
        st = s[threaded]
        turns = st / _PITCH + np.arctan2(y[threaded], z[threaded]) / tau + scene.phase
        off = np.abs(turns - np.rint(turns))
        share = np.clip(1.3 * (1.0 - off / _TOOTH_HALF_WIDTH), 0.0, 1.0)
        tooth[threaded] = _look(_TOOTH, st) * share * scene.crest
        crest[threaded], offset[threaded] = share, off
    left, tooth_left = damage.carve(s, y, z, core, tooth, scene)
    return _Relief(left + tooth_left, crest, offset)


def _field(X: Floats, Y: Floats, Z: Floats, scene: _Scene, damage: _Damage) -> tuple[Floats, Floats]:
    """How far outside of the surface a place [N] lies (below 0: inside), along the radius; and its s."""
    c, t = cos(scene.tilt), sin(scene.tilt)
    s, y, z = damage.bend(X * c - Z * t, Y, X * t + Z * c)
    return np.sqrt(y * y + z * z) - _relief(s, y, z, scene, damage).radius, s


def _march(X: Floats, Y: Floats, scene: _Scene, damage: _Damage) -> Floats:
    """Depth Z [N] where the rays first meet the surface, NaN where they miss it.

    Sphere tracing (Hart, 1996) from a cylinder around the screw, with one secant step where a ray has gone through.
    """
    c, t = cos(scene.tilt), sin(scene.tilt)
    reach = _reach(X)
    depth = np.full_like(X, np.nan)
    start = np.sqrt(np.maximum(reach * reach - Y * Y, 0.0))
    floor = (-0.8 * reach - X * t) / c
    alive = np.arange(X.size)
    # Before the plane of the face (s = 0) there is nothing to meet.
    Z = np.minimum((start - X * t) / c, X * c / t)
    Z_before, f_before = Z + 1e-3, np.full_like(Z, 1e-3)
    for _ in range(_MAX_STEPS):
        f, s = _field(X[alive], Y[alive], Z, scene, damage)
        met = f < _TOUCH
        secant = Z + (Z_before - Z) * (f / np.minimum(f - f_before, -1e-12))
        depth[alive[met]] = np.where(f[met] < 0.0, secant[met], Z[met])
        # The surface's steepness along a ray bounds the step: gentle on cone and neck, steep on the thread's flanks.
        following = Z - np.maximum(f, _TOUCH) / np.where(s > _NECK_END - 0.02, 1.7, 1.25)
        going = ~met & (following > floor[alive])
        alive, Z_before, f_before, Z = alive[going], Z[going], f[going], following[going]
        if not alive.size:
            break
    # Rays still creeping along the surface graze it.
    grazing = f_before < 10.0 * _TOUCH
    depth[alive[grazing]] = Z_before[grazing]
    return depth


# --- light -----------------------------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """The screw without its ground, in pixels [size, size]; and in samples [N], to be changed by a defect."""

    cover: Floats
    """Share of the pixel that the screw covers."""
    glow: Floats
    """Brightness of the screw times `cover`."""
    height: Floats
    """`cover` times the height above the table, 0 at the tip to 1 at the head."""
    samples: Floats
    """[N] brightness, NaN where the ray misses the screw."""


def _render(scene: _Scene, damage: _Damage, camera: _Camera, *, before: _Layer | None = None) -> _Layer:
    """The screw as it is seen. With the sound screw `before`, only the rays near the damage are cast again."""
    X, Y = camera.X, camera.Y
    if before is None:
        samples = _cast(X, Y, scene, damage)
    else:
        low, high = damage.region()
        # A place on the surface appears up to its radius times the sine of the tilt beside its place on the axis.
        margin = (_HEAD_RADIUS if low < _HEAD_END else _CREST_RADIUS) * sin(scene.tilt) + 0.005
        near = (low * cos(scene.tilt) - margin < X) & (high * cos(scene.tilt) + margin > X)
        samples = before.samples.copy()
        samples[near] = _cast(X[near], Y[near], scene, damage)
    hit = ~np.isnan(samples)
    cover = camera.pixels(hit.astype(np.float64))
    height = camera.pixels(np.where(hit, 1.0 - np.clip(X / _LENGTH, 0.0, 1.0), 0.0))
    return _Layer(cover, camera.pixels(np.where(hit, samples, 0.0)), height, samples)


def _cast(X: Floats, Y: Floats, scene: _Scene, damage: _Damage) -> Floats:
    """Brightness [N] that the rays see, NaN where they miss the screw."""
    samples = np.full_like(X, np.nan)
    z = X / sin(scene.tilt)
    candidates = np.flatnonzero(np.abs(z) < _HEAD_RADIUS)
    yc, zc = Y[candidates], z[candidates]
    rim = _relief(np.zeros_like(yc), yc, zc, scene, damage).radius
    face = candidates[np.sqrt(yc * yc + zc * zc) < rim]
    samples[face] = _shade_face(Y[face], z[face], scene, damage)
    rest = np.ones(X.size, dtype=bool)
    rest[face] = False
    others = np.flatnonzero(rest)
    Z = _march(X[others], Y[others], scene, damage)
    met = ~np.isnan(Z)
    hits = others[met]
    samples[hits] = _shade_surface(X[hits], Y[hits], Z[met], scene, damage)
    return samples


def _shade_surface(X: Floats, Y: Floats, Z: Floats, scene: _Scene, damage: _Damage) -> Floats:
    """Brightness [N] of the cone, neck, thread and tip at places in the camera's frame."""
    c, t = cos(scene.tilt), sin(scene.tilt)
    s, y, z = damage.bend(X * c - Z * t, Y, X * t + Z * c)
    here = _relief(s, y, z, scene, damage)
    step = 4e-4
    f = np.sqrt(y * y + z * z) - here.radius
    gradient = np.stack(
        [
            np.sqrt(yy * yy + zz * zz) - _relief(ss, yy, zz, scene, damage).radius - f
            for ss, yy, zz in ((s + step, y, z), (s, y + step, z), (s, y, z + step))
        ]
    )
    turn = np.arctan2(y, z) * (256.0 / tau)
    lathe = _grain(scene, s * 1400.0, turn * 0.06)
    blotch = _grain(scene, s * 260.0, turn)
    on_cone = _smooth_step(_HEAD_END - 0.01, _HEAD_END - 0.03, s)
    gradient[0] += np.sqrt((gradient * gradient).sum(axis=0)) * (0.05 + 0.06 * on_cone) * lathe
    gradient[1] += np.sqrt((gradient * gradient).sum(axis=0)) * 0.04 * blotch
    unevenness = 1.0 + 0.05 * lathe * (0.4 + on_cone) + 0.075 * blotch * (1.0 - 0.4 * on_cone)
    # Grooves see less of the light: the feet of the ridges, the fillet under the head and the neck's shoulder.
    foot = np.clip(here.offset - _TOOTH_HALF_WIDTH, 0.0, None) / 0.07
    shade = 1.0 - 0.42 / (1.0 + foot * foot) * (1.0 - 0.75 * here.crest) * (s > _NECK_END)
    shade *= 1.0 - 0.16 * on_cone - 0.10 * _smooth_step(0.02, 0.0, np.abs(s - 0.118))
    # Oil and soot of the threading die darken the thread, most towards the tip.
    shade *= 1.0 - 0.10 * _smooth_step(0.70, 0.83, s)
    table = 0.20 + 0.14 * _smooth_step(_NECK_END, 0.10, s) + 0.40 * _smooth_step(0.12, 0.0, s)
    value = _metal(gradient, scene, table=table) * unevenness * shade
    return _polish(value, damage.bare(s, y, z, scene))


def _shade_face(y: Floats, z: Floats, scene: _Scene, damage: _Damage) -> Floats:
    """Brightness [N] of the head's flat face and the recess in it."""
    step = 4e-4
    depth = damage.dent(y, z, scene)
    slope_y = (damage.dent(y + step, z, scene) - depth) / step
    slope_z = (damage.dent(y, z + step, scene) - depth) / step
    radius = np.sqrt(y * y + z * z)
    bevel = _smooth_step(0.114, 0.126, radius) * 0.35 / np.maximum(radius, 1e-6)
    rough_y, rough_z = _grain(scene, y * 500.0, z * 500.0), _grain(scene, y * 500.0 + 90.0, z * 500.0 + 40.0)
    ny = slope_y + bevel * y + 0.06 * rough_y
    nz = slope_z + bevel * z + 0.06 * rough_z
    value = _metal(np.stack([np.full_like(y, -1.0), ny, nz]), scene, table=1.0) * (1.0 + 0.07 * rough_y)
    value = _polish(value, damage.bare_face(y, z, scene))
    inside = np.flatnonzero(_recess(y, z, scene) < 0.0)
    value[inside] = _shade_recess(y[inside], z[inside], scene)
    return value


def _recess(y: Floats, z: Floats, scene: _Scene) -> Floats:
    """Distance outside of the six-lobed recess's outline, about; [N], below 0 inside."""
    turn = np.arctan2(y, z) - scene.recess_angle
    return np.sqrt(y * y + z * z) - _RECESS_RADIUS * (0.86 + 0.14 * np.cos(6.0 * turn))


def _shade_recess(y: Floats, z: Floats, scene: _Scene) -> Floats:
    """Brightness [N] seen through the recess's mouth: the far wall, which the flat angle of view always meets."""
    steps = np.linspace(0.0, 2.0 * _RECESS_RADIUS, 25)
    walls = _recess(y[:, None], z[:, None] - steps, scene) >= 0.0
    place = z - steps[np.argmax(walls, axis=1)]
    depth = (z - place) * tan(scene.tilt)
    e = 1e-3
    ny = _recess(y - e, place, scene) - _recess(y + e, place, scene)
    nz = _recess(y, place - e, scene) - _recess(y, place + e, scene)
    value = _metal(np.stack([np.zeros_like(y), ny, nz]), scene, table=0.2)
    return value * (1.15 - 0.85 * np.minimum(depth / 0.028, 1.0))


def _metal(normal: Floats, scene: _Scene, *, table: Floats | float) -> Floats:
    """Brightness [N] of plain metal with the normal [3, N] (along s, y, z), of any length.

    Satin metal mirrors its surroundings, blurred: a softbox, a dim room and the white table below, of which the
    screw's own shadow leaves `table` (0 to 1) to be seen.
    """
    c, t = cos(scene.tilt), sin(scene.tilt)
    ns, ny, nz = normal
    length = np.sqrt(ns * ns + ny * ny + nz * nz)
    X, Y, Z = (ns * c + nz * t) / length, ny / length, (nz * c - ns * t) / length
    a, b = cos(scene.angle), sin(scene.angle)
    right, up, front = scene.light
    lX, lY = right * a + up * b, up * a - right * b
    towards = np.maximum(X * lX + Y * lY + Z * front, 0.0)
    mirrored = 2.0 * Z * (X * lX + Y * lY + Z * front) - front
    lobe = np.exp(7.0 * (mirrored - 1.0))
    glint = np.exp(45.0 * (mirrored - 1.0))
    up_mirrored = 2.0 * Z * Z - 1.0
    around = scene.fill * (0.55 + 0.45 * up_mirrored) + 0.24 * table * _smooth_step(0.2, -0.8, up_mirrored)
    return scene.albedo * (0.165 + around + scene.key * (0.30 * towards + 0.40 * lobe + 0.22 * glint))


def _polish(value: Floats, bare: _Bare | None) -> Floats:
    """Brightness [N] with bare metal laid over it."""
    return value if bare is None else value * (1.0 - 0.35 * bare.share * (bare.gloss > 0)) + bare.share * bare.gloss


def _draw_ground(rng: np.random.Generator, scene: _Scene, size: int) -> Floats:
    """Brightness of the table without the screw, [size, size]: uneven light, clouds, fibres' texture and specks."""
    line = (np.arange(size) + 0.5) / size - 0.5
    right, up = line[None, :], -line[:, None]
    gradient = rng.normal(0.0, 0.012, 2)
    ground = scene.tone + gradient[0] * right + gradient[1] * up - rng.uniform(0.02, 0.06) * (right**2 + up**2)
    for cells, strength in ((7, 0.005), (25, 0.0022), (75, 0.0016)):
        cloud = rng.standard_normal((cells, cells)) * strength
        ground += _stretch(_stretch(cloud, size).T, size)
    for _ in range(int(rng.poisson(5.0))):
        _speck(ground, rng)
    return np.asarray(ground)


def _stretch(values: Floats, rows: int) -> Floats:
    """Linear interpolation of [n, m] to [rows, m]."""
    place = np.linspace(0.0, len(values) - 1.0, rows)
    index = np.minimum(place.astype(np.intp), len(values) - 2)
    share = (place - index)[:, None]
    return values[index] * (1.0 - share) + values[index + 1] * share


def _speck(ground: Floats, rng: np.random.Generator) -> None:
    """Lay one grain of dust or short fibre on the ground, in place."""
    size = ground.shape[0]
    x, y = rng.uniform(-0.5, 0.5, 2)
    radius, turn = rng.uniform(0.0012, 0.0032), rng.uniform(0.0, pi)
    longer, depth = rng.uniform(1.0, 4.0), rng.uniform(0.008, 0.030)
    reach = 3.0 * radius * longer
    columns, rows = (
        slice(max(0, int((at - reach + 0.5) * size)), max(0, int((at + reach + 0.5) * size) + 1)) for at in (x, y)
    )
    line = (np.arange(size) + 0.5) / size - 0.5
    u, v = line[None, columns] - x, line[rows, None] - y
    along, across = (u * cos(turn) + v * sin(turn)) / longer, v * cos(turn) - u * sin(turn)
    ground[rows, columns] -= depth * np.exp(-(along**2 + across**2) / (2.0 * radius * radius))


def _shadowed(ground: Floats, layer: _Layer, scene: _Scene) -> Floats:
    """The ground [size, size] in the screw's soft shadow, widest and darkest at the raised head."""
    size = ground.shape[0]
    right, up, _ = scene.light
    away = hypot(right, up)
    down, across = round(up / away * 0.030 * size), round(-right / away * 0.030 * size)
    margin = max(abs(down), abs(across))
    near = _blur(layer.cover, 0.012 * size)
    wide = _blur(np.pad(0.25 * layer.cover + 1.1 * layer.height, margin), 0.050 * size)
    wide = wide[margin - down : margin - down + size, margin - across : margin - across + size]
    return ground * (1.0 - 0.17 * near) * (1.0 - 0.42 * np.minimum(wide, 1.0))


def _blur(values: Floats, sigma: float) -> Floats:
    """Nearly Gaussian blur: three box filters, whose time does not grow with sigma."""
    width = max(1, round(sqrt(4.0 * sigma * sigma + 1.0)))
    for _ in range(3):
        values = ndimage.uniform_filter(values, width, mode="constant")
    return values


def _compose(layer: _Layer, ground: Floats) -> Floats:
    """Brightness [size, size] behind the lens, which blurs a little; noise-free."""
    return np.asarray(ndimage.gaussian_filter(ground * (1.0 - layer.cover) + layer.glow, 0.45, truncate=3.0))


# --- defects ---------------------------------------------------------------------------------------------------------


def _ragged(scene: _Scene, a: Floats, b: Floats) -> Floats:
    """Noise [N] that frays a defect's edge, at lengths a and b on the surface."""
    return _grain(scene, a * 350.0 + 31.0, b * 350.0 + 77.0)


@dataclass(frozen=True)
class _Stroke:
    """One scratch or pressed mark; its ends lie on the unrolled shaft (s, arc) or on the head's face (y, z)."""

    start: tuple[float, float]
    end: tuple[float, float]
    width: float
    """Half its width."""
    depth: float
    gloss: float
    stripes: float
    """Strength of the tool's marks across it, 0 to 1."""

    def inside(self, a: Floats, b: Floats, scene: _Scene) -> Floats:
        """1 [N] well inside, 0 outside."""
        (a0, b0), (a1, b1) = self.start, self.end
        da, db = a1 - a0, b1 - b0
        share = np.clip(((a - a0) * da + (b - b0) * db) / max(da * da + db * db, 1e-12), 0.0, 1.0)
        away = np.sqrt((a - a0 - share * da) ** 2 + (b - b0 - share * db) ** 2) / self.width
        return _smooth_step(1.15, 0.75, away + 0.14 * _ragged(scene, a, b))

    def shine(self, a: Floats, b: Floats, scene: _Scene) -> Floats:
        """Brightness [N] that its metal adds."""
        marks = 1.0 + self.stripes * np.sin((a + 0.35 * b) * 1100.0)
        return self.gloss * marks * (1.0 + 0.22 * _ragged(scene, 2.0 * b, a))


def _overlay(strokes: tuple[_Stroke, ...], a: Floats, b: Floats, scene: _Scene) -> _Bare:
    """The strokes laid over one another, the deepest part of each winning."""
    share, gloss = np.zeros_like(a), np.zeros_like(a)
    for stroke in strokes:
        inside = stroke.inside(a, b, scene)
        gloss = np.where(inside > share, stroke.shine(a, b, scene), gloss)
        share = np.maximum(share, inside)
    return _Bare(share, gloss)


@dataclass(frozen=True)
class _Scratches(_Damage):
    """Scratches and pressed marks on the shaft around s = `at`, where it has the radius `around`."""

    strokes: tuple[_Stroke, ...]
    at: float
    around: float
    reach: float

    def region(self) -> tuple[float, float]:
        return self.at - self.reach, self.at + self.reach

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: _Scene
    ) -> tuple[Floats, Floats]:
        left = core.copy()
        near = np.flatnonzero(np.abs(s - self.at) < self.reach)
        sn, arc = s[near], np.arctan2(y[near], z[near]) * self.around
        for stroke in self.strokes:
            left[near] -= stroke.depth * stroke.inside(sn, arc, scene)
        return left, tooth

    def bare(self, s: Floats, y: Floats, z: Floats, scene: _Scene) -> _Bare:
        return _overlay(self.strokes, s, np.arctan2(y, z) * self.around, scene)


@dataclass(frozen=True)
class _FaceScratches(_Damage):
    """Scratches and pressed marks on the head's flat face."""

    strokes: tuple[_Stroke, ...]

    def region(self) -> tuple[float, float]:
        return 0.0, 0.0

    def dent(self, y: Floats, z: Floats, scene: _Scene) -> Floats:
        depth = np.zeros_like(y)
        for stroke in self.strokes:
            depth += stroke.depth * stroke.inside(y, z, scene)
        return depth

    def bare_face(self, y: Floats, z: Floats, scene: _Scene) -> _Bare:
        return _overlay(self.strokes, y, z, scene)


@dataclass(frozen=True)
class _Wear(_Damage):
    """Thread crests knocked flat around a place on the thread."""

    at: float
    side: float
    """Angle phi of its middle."""
    length: float
    """Half its extent along the axis."""
    angle: float
    """Half its extent around the axis."""
    loss: float
    """Share of the thread's height that is gone in its middle."""
    cut: float
    """How far it reaches into the core."""
    gloss: float

    def region(self) -> tuple[float, float]:
        return self.at - 2.0 * self.length, self.at + 2.0 * self.length

    def _inside(self, s: Floats, y: Floats, z: Floats, scene: _Scene) -> Floats:
        turn = np.arctan2(y, z) - self.side
        turn -= tau * np.rint(turn / tau)
        away = np.sqrt(((s - self.at) / self.length) ** 2 + (turn / self.angle) ** 2)
        return _smooth_step(1.2, 0.7, away + 0.10 * _ragged(scene, s, turn * _CREST_RADIUS))

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: _Scene
    ) -> tuple[Floats, Floats]:
        gone = self._inside(s, y, z, scene)
        return core - self.cut * gone, tooth * (1.0 - self.loss * gone)

    def bare(self, s: Floats, y: Floats, z: Floats, scene: _Scene) -> _Bare:
        marks = 1.0 + 0.25 * _ragged(scene, 0.5 * s, 2.0 * y)
        return _Bare(self._inside(s, y, z, scene), self.gloss * marks)


@dataclass(frozen=True)
class _BadTip(_Damage):
    """A tip bent aside, pushed back or cut off beyond s = `at`."""

    at: float
    aside: tuple[float, float]
    """How far the end is bent, along y and z."""
    shorter: float
    """Share by which the tip is pushed together."""
    cut: float
    """Where it ends; at or beyond the screw's length: not cut."""
    slant: tuple[float, float]
    """Slope of the cut along y and z."""
    lump: float
    """Height of the burrs."""
    gloss: float

    def region(self) -> tuple[float, float]:
        return self.at, _LENGTH

    def bend(self, s: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        beyond = np.maximum(s - self.at, 0.0)
        curve = (beyond / (_LENGTH - self.at)) ** 2
        return s + beyond * self.shorter, y - self.aside[0] * curve, z - self.aside[1] * curve

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: _Scene
    ) -> tuple[Floats, Floats]:
        damaged = _smooth_step(self.at, self.at + 0.02, s)
        burrs = self.lump * damaged * _grain(scene, s * 170.0 + 11.0, np.arctan2(y, z) * (256.0 / tau) * 0.25)
        ended = np.maximum(s + self.slant[0] * y + self.slant[1] * z - self.cut, 0.0)
        return core + burrs * (core > 0.004) - 8.0 * ended, tooth * (1.0 - 0.5 * damaged)

    def bare(self, s: Floats, y: Floats, z: Floats, scene: _Scene) -> _Bare:
        rubbed = _smooth_step(self.at, self.at + 0.03, s) * _smooth_step(-0.2, 0.9, _ragged(scene, s, y))
        return _Bare(rubbed, np.full_like(s, self.gloss))


def _draw_damage(kind: str, rng: np.random.Generator, boost: float) -> _Damage:
    """A defect of one of `DEFECT_KINDS`; `boost` (0 to 1) raises its severity."""
    severity = min(1.0, rng.uniform(0.0, 1.0) + boost)
    return _DRAWN[kind](rng, severity)


def _marks(
    rng: np.random.Generator, severity: float, middle: tuple[float, float], *, direction: float, size: float
) -> tuple[_Stroke, ...]:
    """Either a few thin scratches or one or two pressed marks around a place; `size` scales them."""
    strength = 0.4 + 0.6 * severity
    pressed = rng.uniform() < 0.6
    strokes = []
    for _ in range(int(rng.integers(1, 3)) if pressed else int(rng.integers(2, 5))):
        half = size * (rng.uniform(0.008, 0.022) if pressed else rng.uniform(0.010, 0.030))
        turn = direction + rng.normal(0.0, 0.35)
        a, b = (at + rng.normal(0.0, 0.010 if pressed else 0.006) * size for at in middle)
        width = size * (rng.uniform(0.012, 0.020) if pressed else rng.uniform(0.0024, 0.0045)) * (0.6 + 0.5 * strength)
        bright = pressed or rng.uniform() < 0.7
        strokes.append(
            _Stroke(
                start=(a - half * cos(turn), b - half * sin(turn)),
                end=(a + half * cos(turn), b + half * sin(turn)),
                width=width,
                depth=(0.0030 if pressed else 0.0014) * strength,
                gloss=strength * (rng.uniform(0.40, 0.62) if bright else rng.uniform(-0.28, -0.16)),
                stripes=rng.uniform(0.1, 0.35) if pressed else 0.0,
            )
        )
    return tuple(strokes)


def _draw_scratch_head(rng: np.random.Generator, severity: float) -> _Damage:
    if rng.uniform() < 0.4:
        turn, radius = rng.uniform(0.0, tau), rng.uniform(0.075, 0.108)
        middle = radius * sin(turn), radius * cos(turn)
        # Foreshortening hides most of a mark on the face: it is drawn larger.
        return _FaceScratches(_marks(rng, severity, middle, direction=rng.uniform(0.0, pi), size=2.0))
    at = rng.uniform(0.010, 0.095)
    around = float(_look(_CORE, np.array([at]))[0])
    middle = at, around * rng.uniform(-0.8, 0.8)
    strokes = _marks(rng, severity, middle, direction=rng.uniform(0.0, pi), size=1.15)
    return _Scratches(strokes, at=at, around=around, reach=0.09)


def _draw_scratch_neck(rng: np.random.Generator, severity: float) -> _Damage:
    at = rng.uniform(_HEAD_END + 0.02, _NECK_END - 0.03)
    middle = at, _NECK_RADIUS * rng.uniform(-0.8, 0.8)
    strokes = _marks(rng, severity, middle, direction=rng.uniform(0.0, pi), size=1.0)
    return _Scratches(strokes, at=at, around=_NECK_RADIUS, reach=0.08)


def _draw_thread_side(rng: np.random.Generator, severity: float) -> _Damage:
    return _Wear(
        at=rng.uniform(0.44, 0.74),
        side=(1.0 if rng.uniform() < 0.5 else -1.0) * rng.uniform(1.15, 1.6),
        length=_PITCH * (rng.uniform(0.5, 0.8) + 1.0 * severity),
        angle=rng.uniform(0.5, 0.8),
        loss=0.65 + 0.35 * severity,
        cut=0.004 * severity * rng.uniform(),
        gloss=0.03 + 0.45 * severity * rng.uniform(0.3, 1.0),
    )


def _draw_thread_top(rng: np.random.Generator, severity: float) -> _Damage:
    return _Wear(
        at=rng.uniform(0.43, 0.74),
        side=rng.uniform(-0.6, 0.6),
        length=_PITCH * (rng.uniform(0.4, 0.6) + 0.8 * severity),
        angle=rng.uniform(0.45, 0.7) + 0.25 * severity,
        loss=0.5 + 0.5 * severity,
        cut=0.003 * severity * rng.uniform(),
        gloss=0.08 + 0.50 * severity * rng.uniform(0.5, 1.0),
    )


def _draw_manipulated_front(rng: np.random.Generator, severity: float) -> _Damage:
    variant = rng.integers(3)
    turn = rng.choice([-1.0, 1.0]) * pi / 2 + rng.normal(0.0, 0.5)
    far = 0.025 + 0.055 * severity if variant == 0 else 0.008 * rng.uniform()
    return _BadTip(
        at=rng.uniform(0.70, 0.75) if variant == 0 else rng.uniform(0.735, 0.770),
        aside=(far * sin(turn), far * cos(turn)),
        shorter=0.35 + 1.2 * severity if variant == 1 else 0.0,
        cut=_LENGTH - 0.030 - 0.075 * severity if variant == 2 else 2.0 * _LENGTH,
        slant=(rng.normal(0.0, 0.7), rng.normal(0.0, 0.4)),
        lump=rng.uniform(0.001, 0.004),
        gloss=rng.uniform(-0.08, 0.05) + 0.30 * severity * rng.uniform(),
    )


_DRAWN: dict[str, Callable[[np.random.Generator, float], _Damage]] = {
    "manipulated_front": _draw_manipulated_front,
    "scratch_head": _draw_scratch_head,
    "scratch_neck": _draw_scratch_neck,
    "thread_side": _draw_thread_side,
    "thread_top": _draw_thread_top,
}


# --- data set --------------------------------------------------------------------------------------------------------

_LICENSE = """These pictures are rendered, not photographed: anomaly-studies computed every one of them.
They show no real product and contain no part of any other data set.

To the extent possible under law, all copyright and related rights are waived: CC0 1.0 Universal,
https://creativecommons.org/publicdomain/zero/1.0/
"""
_RECORD = "rendered.json"
_ABANDONED_SECONDS = 24 * 3600.0


class _Planned(NamedTuple):
    """One picture to render and where it goes."""

    folder: str
    stem: str
    defect: str | None
    seed: int

    @property
    def picture(self) -> str:
        return f"{self.folder}/{self.stem}.png"

    @property
    def mask(self) -> str | None:
        return f"ground_truth/{self.defect}/{self.stem}_mask.png" if self.defect else None


def render_dataset(root: Path, spec: RenderSpec, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Render `root/screw` in MVTec AD's layout and return that folder; at once where it is there already.

    `progress` is told pictures done and pictures in all. The folder appears complete or not at all, whoever else
    renders there at the same time.

    Raises:
        InputError: `root/screw` holds other pictures, or lacks some of its own; `root` cannot be written.
    """
    folder = root / CATEGORY
    if folder.exists() and not _is_empty(folder):
        _check_finished(folder, spec)
        return folder
    partial = root / f".{CATEGORY}-{uuid.uuid4().hex}.partial"
    try:
        _sweep(root)
        partial.mkdir(parents=True)
        _write(partial, spec, progress)
        try:
            partial.rename(folder)
        except OSError:
            # Somebody else was faster: theirs is as good as ours, or this says what is wrong with it.
            if not folder.exists():
                raise
            _check_finished(folder, spec)
    except OSError as error:
        raise InputError(
            f"{root}: rendered screws cannot be written there ({error.strerror}); choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _sweep(root: Path) -> None:
    """Remove what renderings left behind that were killed more than `_ABANDONED_SECONDS` ago."""
    for partial in root.glob(f".{CATEGORY}-*.partial"):
        # Another process may finish and rename its own at any moment.
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _plan(spec: RenderSpec) -> Iterator[_Planned]:
    """Every picture of the data set; more of them leave the first ones as they are."""
    groups: list[tuple[str, str | None, int]] = [("train/good", None, spec.train), ("test/good", None, spec.test_good)]
    groups += [(f"test/{kind}", kind, spec.per_defect) for kind in DEFECT_KINDS]
    for folder, defect, count in groups:
        for index in range(count):
            entropy = np.random.SeedSequence([spec.seed, index, *folder.encode()])
            seed = int(entropy.generate_state(1, np.uint64)[0])
            yield _Planned(folder, f"{index:03d}", defect, seed)


def _write(folder: Path, spec: RenderSpec, progress: Callable[[int, int], None] | None) -> None:
    for done, planned in enumerate(_plan(spec), start=1):
        picture, mask = render_screw(seed=planned.seed, size=spec.size, defect=planned.defect)
        _save(picture, folder / planned.picture)
        if planned.mask:
            _save(mask.astype(np.uint8) * np.uint8(255), folder / planned.mask)
        if progress is not None:
            progress(done, spec.total)
    (folder / "license.txt").write_text(_LICENSE, encoding="utf-8")
    record = {"renderer_version": RENDERER_VERSION, "identity": spec.identity, "spec": asdict(spec)}
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _save(gray: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gray).save(path)


def _check_finished(folder: Path, spec: RenderSpec) -> None:
    """Raise `InputError` unless the folder holds just what `spec` asks for."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        found = record["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder}: holds something else than rendered screws (no readable {_RECORD}); choose another folder"
        ) from None
    if found != spec.identity:
        raise InputError(
            f"{folder}: holds another rendering ({record.get('spec')}, version {record.get('renderer_version')}) "
            f"than asked for ({asdict(spec)}, version {RENDERER_VERSION}); delete it or choose another folder"
        )
    wanted = [name for planned in _plan(spec) for name in (planned.picture, planned.mask) if name]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of its files are gone, the first {missing[0]}; delete the folder to render it again"
        )
