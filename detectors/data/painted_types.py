"""Names of the types of painted defects."""

from __future__ import annotations

PAINTED, PAINTED_V1 = "painted_", "synthetic_"
"""Begin the type of a painted defect, in the second version of recipes and in the first."""


def is_painted_type(kind: str) -> bool:
    """Whether a type of defect, or ``product/type``, is painted."""
    return kind.rpartition("/")[2].startswith((PAINTED, PAINTED_V1))
