"""What does not keep the rules of `tests.test_architecture` yet. The list only gets shorter: an entry that is
no longer needed fails the test too.
"""

from __future__ import annotations

UPWARDS: list[str] = []
"""Arrows between modules of rooms that point up or to the same floor."""
CIRCLES: list[list[str]] = []
LONG_MODULES: list[str] = []
LONG_CLASSES: list[str] = []
LATE: dict[str, list[str]] = {}
"""Imports within functions that belong at the top of the module."""
