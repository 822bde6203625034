"""The screw's surface, damage included, and where rays meet it; notation as in the package."""

from __future__ import annotations

from math import cos, sin, tau
from typing import NamedTuple

import numpy as np

from detectors.data.rendered.damage import Damage
from detectors.data.rendered.screw import (
    CORE,
    NECK_END,
    PITCH,
    TOOTH,
    TOOTH_HALF_WIDTH,
    Floats,
    Scene,
    bounding_radius,
    profile_at,
)

_TOUCH = 2e-4
"""A ray this near to the surface has met it: 0.06 pixels at 320 pixels."""
_MAX_STEPS = 40


class Relief(NamedTuple):
    """The surface at given places, each [N]."""

    radius: Floats
    crest: Floats
    """Height on the thread's ridge, 0 (core) to 1 (crest)."""
    offset: Floats
    """Distance along the axis to the ridge's middle, in pitches, 0 to 0.5; 0.5 where there is no thread."""


def relief(s: Floats, y: Floats, z: Floats, scene: Scene, damage: Damage) -> Relief:
    """The surface in the direction of a place [N] that was bent back already."""
    core = profile_at(CORE, s)
    tooth, crest, offset = np.zeros_like(core), np.zeros_like(core), np.full_like(core, 0.5)
    threaded = np.flatnonzero(s > NECK_END - 0.002)
    if threaded.size:
        st = s[threaded]
        turns = st / PITCH + np.arctan2(y[threaded], z[threaded]) / tau + scene.phase
        off = np.abs(turns - np.rint(turns))
        share = np.clip(1.3 * (1.0 - off / TOOTH_HALF_WIDTH), 0.0, 1.0)
        tooth[threaded] = profile_at(TOOTH, st) * share * scene.crest
        crest[threaded], offset[threaded] = share, off
    left, tooth_left = damage.carve(s, y, z, core, tooth, scene)
    return Relief(left + tooth_left, crest, offset)


def _field(X: Floats, Y: Floats, Z: Floats, scene: Scene, damage: Damage) -> tuple[Floats, Floats]:
    """How far outside of the surface a place [N] lies (below 0: inside), along the radius; and its s."""
    c, t = cos(scene.tilt), sin(scene.tilt)
    s, y, z = damage.bend(X * c - Z * t, Y, X * t + Z * c)
    return np.sqrt(y * y + z * z) - relief(s, y, z, scene, damage).radius, s


def march(X: Floats, Y: Floats, scene: Scene, damage: Damage) -> Floats:
    """Depth Z [N] where the rays first meet the surface, NaN where they miss it.

    Sphere tracing (Hart, 1996) from a cylinder around the screw, with one secant step where a ray has gone through.
    """
    c, t = cos(scene.tilt), sin(scene.tilt)
    reach = bounding_radius(X)
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
        following = Z - np.maximum(f, _TOUCH) / np.where(s > NECK_END - 0.02, 1.7, 1.25)
        going = ~met & (following > floor[alive])
        alive, Z_before, f_before, Z = alive[going], Z[going], f[going], following[going]
        if not alive.size:
            break
    # Rays still creeping along the surface graze it.
    grazing = f_before < 10.0 * _TOUCH
    depth[alive[grazing]] = Z_before[grazing]
    return depth
