"""A small data set that is drawn in a moment, and homes whose stores are there already."""

from __future__ import annotations

import shutil
from pathlib import Path

from detectors.data.widgets import draw_widget as draw_widget
from detectors.data.widgets import write_widgets as write_widgets


def copy_stores(stores: Path, home: Path) -> Path:
    """Give a new home empty stores; returns the home."""
    home.mkdir(parents=True)
    for database in stores.glob("*.db"):
        shutil.copy(database, home)
    return home
