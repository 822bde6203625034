"""Photographs of screws, rendered: what demonstrations and tests train on where no real data is at hand.

A screw is an implicit surface `r = R(s, phi)` in its own frame, met by one parallel ray per sample and shaded as worn
metal under a softbox above a white table. Defects change that surface or its metal, so that they shade, stand out
from the silhouette and hide one another as real ones do; their masks compare the image with and without them.

Notation:
    s, y, z     the screw's frame: along its axis from the head's face to the tip, across, towards the camera
    r, phi      radius and angle about the axis; phi = 0 faces the camera
    X, Y, Z     the camera's frame turned with the screw: along, across, towards the camera
    [N]         samples; SUPERSAMPLING^2 of them make a pixel

Lengths are shares of the image's width, angles radians, brightness 0 (black) to 1 (white). An image depends on its
arguments alone; it is computed as float64, so that the last digits in which mathematical libraries and processors
differ vanish when brightness is rounded to 8 bits.

Each module builds on those before it: `screw`, `damage`, `surface`, `shading`, `camera`, `ground`, `image`, `dataset`.
"""

from detectors.data.rendered.damage import DEFECT_KINDS
from detectors.data.rendered.dataset import RenderSpec, render_dataset
from detectors.data.rendered.image import render_screw

__all__ = ["DEFECT_KINDS", "RenderSpec", "render_dataset", "render_screw"]
