"""Defects as changes of the screw: of its surface, so that they shade, stand out and hide one another, or of its metal.

Notation as in the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin, tau
from typing import NamedTuple

import numpy as np

from detectors.data.rendered.screw import (
    CORE,
    CREST_RADIUS,
    HEAD_END,
    LENGTH,
    NECK_END,
    NECK_RADIUS,
    PITCH,
    Floats,
    Scene,
    grain_at,
    profile_at,
    smooth_step,
)

DEFECT_KINDS: tuple[str, ...] = ("manipulated_front", "scratch_head", "scratch_neck", "thread_side", "thread_top")


class Bare(NamedTuple):
    """Metal laid bare by a defect, each [N]."""

    share: Floats
    """0 (untouched) to 1."""
    gloss: Floats
    """Brightness that bare metal adds or, below 0, takes."""


class Damage:
    """A defect as a change of the screw; this one changes nothing."""

    def region(self) -> tuple[float, float]:
        """The part of the axis, from s to s, outside of which nothing changes."""
        return 0.0, 0.0

    def bend(self, s: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Which place [N] of the sound screw lies here now."""
        return s, y, z

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: Scene
    ) -> tuple[Floats, Floats]:
        """Core radius and thread height [N] that are left."""
        return core, tooth

    def dent(self, y: Floats, z: Floats, scene: Scene) -> Floats:
        """Depth [N] below the head's flat face."""
        return np.zeros_like(y)

    def bare(self, s: Floats, y: Floats, z: Floats, scene: Scene) -> Bare | None:
        """Metal laid bare on the shaft, cone and thread."""
        return None

    def bare_face(self, y: Floats, z: Floats, scene: Scene) -> Bare | None:
        """Metal laid bare on the head's flat face."""
        return None


def _ragged(scene: Scene, a: Floats, b: Floats) -> Floats:
    """Noise [N] that frays a defect's edge, at lengths a and b on the surface."""
    return grain_at(scene, a * 350.0 + 31.0, b * 350.0 + 77.0)


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

    def inside(self, a: Floats, b: Floats, scene: Scene) -> Floats:
        """1 [N] well inside, 0 outside."""
        (a0, b0), (a1, b1) = self.start, self.end
        da, db = a1 - a0, b1 - b0
        share = np.clip(((a - a0) * da + (b - b0) * db) / max(da * da + db * db, 1e-12), 0.0, 1.0)
        away = np.sqrt((a - a0 - share * da) ** 2 + (b - b0 - share * db) ** 2) / self.width
        return smooth_step(1.15, 0.75, away + 0.14 * _ragged(scene, a, b))

    def shine(self, a: Floats, b: Floats, scene: Scene) -> Floats:
        """Brightness [N] that its metal adds."""
        marks = 1.0 + self.stripes * np.sin((a + 0.35 * b) * 1100.0)
        return self.gloss * marks * (1.0 + 0.22 * _ragged(scene, 2.0 * b, a))


def _overlay(strokes: tuple[_Stroke, ...], a: Floats, b: Floats, scene: Scene) -> Bare:
    """The strokes laid over one another, the deepest part of each winning."""
    share, gloss = np.zeros_like(a), np.zeros_like(a)
    for stroke in strokes:
        inside = stroke.inside(a, b, scene)
        gloss = np.where(inside > share, stroke.shine(a, b, scene), gloss)
        share = np.maximum(share, inside)
    return Bare(share, gloss)


@dataclass(frozen=True)
class _Scratches(Damage):
    """Scratches and pressed marks on the shaft around s = `at`, where it has the radius `around`."""

    strokes: tuple[_Stroke, ...]
    at: float
    around: float
    reach: float

    def region(self) -> tuple[float, float]:
        return self.at - self.reach, self.at + self.reach

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: Scene
    ) -> tuple[Floats, Floats]:
        left = core.copy()
        near = np.flatnonzero(np.abs(s - self.at) < self.reach)
        sn, arc = s[near], np.arctan2(y[near], z[near]) * self.around
        for stroke in self.strokes:
            left[near] -= stroke.depth * stroke.inside(sn, arc, scene)
        return left, tooth

    def bare(self, s: Floats, y: Floats, z: Floats, scene: Scene) -> Bare:
        return _overlay(self.strokes, s, np.arctan2(y, z) * self.around, scene)


@dataclass(frozen=True)
class _FaceScratches(Damage):
    """Scratches and pressed marks on the head's flat face."""

    strokes: tuple[_Stroke, ...]

    def region(self) -> tuple[float, float]:
        return 0.0, 0.0

    def dent(self, y: Floats, z: Floats, scene: Scene) -> Floats:
        depth = np.zeros_like(y)
        for stroke in self.strokes:
            depth += stroke.depth * stroke.inside(y, z, scene)
        return depth

    def bare_face(self, y: Floats, z: Floats, scene: Scene) -> Bare:
        return _overlay(self.strokes, y, z, scene)


@dataclass(frozen=True)
class _Wear(Damage):
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

    def _inside(self, s: Floats, y: Floats, z: Floats, scene: Scene) -> Floats:
        turn = np.arctan2(y, z) - self.side
        turn -= tau * np.rint(turn / tau)
        away = np.sqrt(((s - self.at) / self.length) ** 2 + (turn / self.angle) ** 2)
        return smooth_step(1.2, 0.7, away + 0.10 * _ragged(scene, s, turn * CREST_RADIUS))

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: Scene
    ) -> tuple[Floats, Floats]:
        gone = self._inside(s, y, z, scene)
        return core - self.cut * gone, tooth * (1.0 - self.loss * gone)

    def bare(self, s: Floats, y: Floats, z: Floats, scene: Scene) -> Bare:
        marks = 1.0 + 0.25 * _ragged(scene, 0.5 * s, 2.0 * y)
        return Bare(self._inside(s, y, z, scene), self.gloss * marks)


@dataclass(frozen=True)
class _BadTip(Damage):
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
        return self.at, LENGTH

    def bend(self, s: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        beyond = np.maximum(s - self.at, 0.0)
        curve = (beyond / (LENGTH - self.at)) ** 2
        return s + beyond * self.shorter, y - self.aside[0] * curve, z - self.aside[1] * curve

    def carve(
        self, s: Floats, y: Floats, z: Floats, core: Floats, tooth: Floats, scene: Scene
    ) -> tuple[Floats, Floats]:
        damaged = smooth_step(self.at, self.at + 0.02, s)
        burrs = self.lump * damaged * grain_at(scene, s * 170.0 + 11.0, np.arctan2(y, z) * (256.0 / tau) * 0.25)
        ended = np.maximum(s + self.slant[0] * y + self.slant[1] * z - self.cut, 0.0)
        return core + burrs * (core > 0.004) - 8.0 * ended, tooth * (1.0 - 0.5 * damaged)

    def bare(self, s: Floats, y: Floats, z: Floats, scene: Scene) -> Bare:
        rubbed = smooth_step(self.at, self.at + 0.03, s) * smooth_step(-0.2, 0.9, _ragged(scene, s, y))
        return Bare(rubbed, np.full_like(s, self.gloss))


def draw_damage(kind: str, rng: np.random.Generator, boost: float) -> Damage:
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


def _draw_scratch_head(rng: np.random.Generator, severity: float) -> Damage:
    if rng.uniform() < 0.4:
        turn, radius = rng.uniform(0.0, tau), rng.uniform(0.075, 0.108)
        middle = radius * sin(turn), radius * cos(turn)
        # Foreshortening hides most of a mark on the face: it is drawn larger.
        return _FaceScratches(_marks(rng, severity, middle, direction=rng.uniform(0.0, pi), size=2.0))
    at = rng.uniform(0.010, 0.095)
    around = float(profile_at(CORE, np.array([at]))[0])
    middle = at, around * rng.uniform(-0.8, 0.8)
    strokes = _marks(rng, severity, middle, direction=rng.uniform(0.0, pi), size=1.15)
    return _Scratches(strokes, at=at, around=around, reach=0.09)


def _draw_scratch_neck(rng: np.random.Generator, severity: float) -> Damage:
    at = rng.uniform(HEAD_END + 0.02, NECK_END - 0.03)
    middle = at, NECK_RADIUS * rng.uniform(-0.8, 0.8)
    strokes = _marks(rng, severity, middle, direction=rng.uniform(0.0, pi), size=1.0)
    return _Scratches(strokes, at=at, around=NECK_RADIUS, reach=0.08)


def _draw_thread_side(rng: np.random.Generator, severity: float) -> Damage:
    return _Wear(
        at=rng.uniform(0.44, 0.74),
        side=(1.0 if rng.uniform() < 0.5 else -1.0) * rng.uniform(1.15, 1.6),
        length=PITCH * (rng.uniform(0.5, 0.8) + 1.0 * severity),
        angle=rng.uniform(0.5, 0.8),
        loss=0.65 + 0.35 * severity,
        cut=0.004 * severity * rng.uniform(),
        gloss=0.03 + 0.45 * severity * rng.uniform(0.3, 1.0),
    )


def _draw_thread_top(rng: np.random.Generator, severity: float) -> Damage:
    return _Wear(
        at=rng.uniform(0.43, 0.74),
        side=rng.uniform(-0.6, 0.6),
        length=PITCH * (rng.uniform(0.4, 0.6) + 0.8 * severity),
        angle=rng.uniform(0.45, 0.7) + 0.25 * severity,
        loss=0.5 + 0.5 * severity,
        cut=0.003 * severity * rng.uniform(),
        gloss=0.08 + 0.50 * severity * rng.uniform(0.5, 1.0),
    )


def _draw_manipulated_front(rng: np.random.Generator, severity: float) -> Damage:
    variant = rng.integers(3)
    turn = rng.choice([-1.0, 1.0]) * pi / 2 + rng.normal(0.0, 0.5)
    far = 0.025 + 0.055 * severity if variant == 0 else 0.008 * rng.uniform()
    return _BadTip(
        at=rng.uniform(0.70, 0.75) if variant == 0 else rng.uniform(0.735, 0.770),
        aside=(far * sin(turn), far * cos(turn)),
        shorter=0.35 + 1.2 * severity if variant == 1 else 0.0,
        cut=LENGTH - 0.030 - 0.075 * severity if variant == 2 else 2.0 * LENGTH,
        slant=(rng.normal(0.0, 0.7), rng.normal(0.0, 0.4)),
        lump=rng.uniform(0.001, 0.004),
        gloss=rng.uniform(-0.08, 0.05) + 0.30 * severity * rng.uniform(),
    )


_DRAWN: dict[str, Callable[[np.random.Generator, float], Damage]] = {
    "manipulated_front": _draw_manipulated_front,
    "scratch_head": _draw_scratch_head,
    "scratch_neck": _draw_scratch_neck,
    "thread_side": _draw_thread_side,
    "thread_top": _draw_thread_top,
}
