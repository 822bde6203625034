"""How bright the screw's metal is: cone, neck, thread and tip, and the head's face with the recess in it.

Notation as in the package.
"""

from __future__ import annotations

from math import cos, sin, tan, tau

import numpy as np

from detectors.data.rendered.damage import Bare, Damage
from detectors.data.rendered.screw import (
    HEAD_END,
    NECK_END,
    RECESS_RADIUS,
    TOOTH_HALF_WIDTH,
    Floats,
    Scene,
    grain_at,
    smooth_step,
)
from detectors.data.rendered.surface import relief


def shade_surface(X: Floats, Y: Floats, Z: Floats, scene: Scene, damage: Damage) -> Floats:
    """Brightness [N] of the cone, neck, thread and tip at places in the camera's frame."""
    c, t = cos(scene.tilt), sin(scene.tilt)
    s, y, z = damage.bend(X * c - Z * t, Y, X * t + Z * c)
    here = relief(s, y, z, scene, damage)
    step = 4e-4
    f = np.sqrt(y * y + z * z) - here.radius
    gradient = np.stack(
        [
            np.sqrt(yy * yy + zz * zz) - relief(ss, yy, zz, scene, damage).radius - f
            for ss, yy, zz in ((s + step, y, z), (s, y + step, z), (s, y, z + step))
        ]
    )
    turn = np.arctan2(y, z) * (256.0 / tau)
    lathe = grain_at(scene, s * 1400.0, turn * 0.06)
    blotch = grain_at(scene, s * 260.0, turn)
    on_cone = smooth_step(HEAD_END - 0.01, HEAD_END - 0.03, s)
    gradient[0] += np.sqrt((gradient * gradient).sum(axis=0)) * (0.05 + 0.06 * on_cone) * lathe
    gradient[1] += np.sqrt((gradient * gradient).sum(axis=0)) * 0.04 * blotch
    unevenness = 1.0 + 0.05 * lathe * (0.4 + on_cone) + 0.075 * blotch * (1.0 - 0.4 * on_cone)
    # Grooves see less of the light: the feet of the ridges, the fillet under the head and the neck's shoulder.
    foot = np.clip(here.offset - TOOTH_HALF_WIDTH, 0.0, None) / 0.07
    shade = 1.0 - 0.42 / (1.0 + foot * foot) * (1.0 - 0.75 * here.crest) * (s > NECK_END)
    shade *= 1.0 - 0.16 * on_cone - 0.10 * smooth_step(0.02, 0.0, np.abs(s - 0.118))
    # Oil and soot of the threading die darken the thread, most towards the tip.
    shade *= 1.0 - 0.10 * smooth_step(0.70, 0.83, s)
    table = 0.20 + 0.14 * smooth_step(NECK_END, 0.10, s) + 0.40 * smooth_step(0.12, 0.0, s)
    value = _metal(gradient, scene, table=table) * unevenness * shade
    return _polish(value, damage.bare(s, y, z, scene))


def shade_face(y: Floats, z: Floats, scene: Scene, damage: Damage) -> Floats:
    """Brightness [N] of the head's flat face and the recess in it."""
    step = 4e-4
    depth = damage.dent(y, z, scene)
    slope_y = (damage.dent(y + step, z, scene) - depth) / step
    slope_z = (damage.dent(y, z + step, scene) - depth) / step
    radius = np.sqrt(y * y + z * z)
    bevel = smooth_step(0.114, 0.126, radius) * 0.35 / np.maximum(radius, 1e-6)
    rough_y, rough_z = grain_at(scene, y * 500.0, z * 500.0), grain_at(scene, y * 500.0 + 90.0, z * 500.0 + 40.0)
    ny = slope_y + bevel * y + 0.06 * rough_y
    nz = slope_z + bevel * z + 0.06 * rough_z
    value = _metal(np.stack([np.full_like(y, -1.0), ny, nz]), scene, table=1.0) * (1.0 + 0.07 * rough_y)
    value = _polish(value, damage.bare_face(y, z, scene))
    inside = np.flatnonzero(_recess(y, z, scene) < 0.0)
    value[inside] = _shade_recess(y[inside], z[inside], scene)
    return value


def _recess(y: Floats, z: Floats, scene: Scene) -> Floats:
    """Distance outside of the six-lobed recess's outline, about; [N], below 0 inside."""
    turn = np.arctan2(y, z) - scene.recess_angle
    return np.sqrt(y * y + z * z) - RECESS_RADIUS * (0.86 + 0.14 * np.cos(6.0 * turn))


def _shade_recess(y: Floats, z: Floats, scene: Scene) -> Floats:
    """Brightness [N] seen through the recess's mouth: the far wall, which the flat angle of view always meets."""
    steps = np.linspace(0.0, 2.0 * RECESS_RADIUS, 25)
    walls = _recess(y[:, None], z[:, None] - steps, scene) >= 0.0
    place = z - steps[np.argmax(walls, axis=1)]
    depth = (z - place) * tan(scene.tilt)
    e = 1e-3
    ny = _recess(y - e, place, scene) - _recess(y + e, place, scene)
    nz = _recess(y, place - e, scene) - _recess(y, place + e, scene)
    value = _metal(np.stack([np.zeros_like(y), ny, nz]), scene, table=0.2)
    return value * (1.15 - 0.85 * np.minimum(depth / 0.028, 1.0))


def _metal(normal: Floats, scene: Scene, *, table: Floats | float) -> Floats:
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
    around = scene.fill * (0.55 + 0.45 * up_mirrored) + 0.24 * table * smooth_step(0.2, -0.8, up_mirrored)
    return scene.albedo * (0.165 + around + scene.key * (0.30 * towards + 0.40 * lobe + 0.22 * glint))


def _polish(value: Floats, bare: Bare | None) -> Floats:
    """Brightness [N] with bare metal laid over it."""
    return value if bare is None else value * (1.0 - 0.35 * bare.share * (bare.gloss > 0)) + bare.share * bare.gloss
