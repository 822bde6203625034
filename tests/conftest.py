"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

# Read when torch is imported. Threads that spin while they wait, or more of them than cores, slow the other process down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.helpers.browser import chromium as chromium  # every test file may ask for it
from tests.helpers.widgets import copy_stores, write_widgets

DEAR = ("browser", "kill", "postgres", "ray", "real_images")
"""Markers of tests that take long or need more than Python; each of them means `slow` as well."""
MARKED_BY = {"chromium": "browser", "cluster": "ray", "postgres": "postgres", "real_data": "real_images"}
"""{fixture: the marker of the tests that ask for it}"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is dear."""
    for item in items:
        for fixture in MARKED_BY.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKED_BY[fixture])
        if any(item.get_closest_marker(name) for name in DEAR):
            item.add_marker("slow")


@event.listens_for(Engine, "connect")
def _never_wait_for_the_disk(connection: object, record: object) -> None:
    """A killed process loses nothing by it, only a power cut would, and commits took a fifth of a study's time in tests."""
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.Error):  # a file that is no database, on purpose
            connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that holds MVTecAD/, VisA/ and carpet_tiles/, from STUDY_TEST_DATA; the test is skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STUDY_TEST_DATA") or default)
    if not (folder / "MVTecAD" / "screw" / "train" / "good").is_dir():
        pytest.skip(f"no real images in {folder}; set STUDY_TEST_DATA to the folder that holds MVTecAD/screw")
    return folder


@pytest.fixture(scope="session")
def tiny_mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small data set with the category ``widget``; never write into it."""
    return write_widgets(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_widgets(tmp_path: Path) -> Path:
    """The same, for a test that damages it."""
    return write_widgets(tmp_path / "data")


@pytest.fixture(scope="session")
def empty_stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``studies.db`` and ``mlflow.db`` without content: MLflow's first migration takes seconds."""
    from studies.home import Home
    from studies.search.storage import open_storage
    from tracking.projection import Projection

    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STUDY_STORAGE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        home = Home(folder)
        open_storage(home).engine.dispose()
        Projection(home.tracking_uri)
    return folder


@pytest.fixture
def study_home(empty_stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A STUDY_HOME of the test's own, set in the environment, with empty stores."""
    for name in ("STUDY_STORAGE", "MLFLOW_TRACKING_URI", "STUDY_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("STUDY_HOME", str(home))
    return copy_stores(empty_stores, home)
