"""Numbers that all flows share; free of FrEIA, which takes a second to import."""

from __future__ import annotations

import math

SUBNET_SCALE = 0.1
"""Factor of a subnet's output, as in FrEIA's `AllInOneBlock`: a fresh block is close to the identity."""
DEVIATION_FLOOR = 1e-3
"""Smallest deviation that a channel is divided by, as a share of that of all channels."""
LOG_2PI = math.log(2 * math.pi)
