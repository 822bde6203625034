"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that holds MVTecAD/, VisA/ and carpet_tiles/, from STUDY_TEST_DATA; the test is skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STUDY_TEST_DATA") or default)
    if not (folder / "MVTecAD" / "screw" / "train" / "good").is_dir():
        pytest.skip(f"no real images in {folder}; set STUDY_TEST_DATA to the folder that holds MVTecAD/screw")
    return folder
