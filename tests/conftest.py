"""Fixtures shared by all tests."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that holds MVTecAD/, VisA/ and carpet_tiles/, from STUDY_TEST_DATA; the test is skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STUDY_TEST_DATA") or default)
    if not (folder / "MVTecAD" / "screw" / "train" / "good").is_dir():
        pytest.skip(f"no real images in {folder}; set STUDY_TEST_DATA to the folder that holds MVTecAD/screw")
    return folder


def draw_widget(seed: int, *, dent: bool = False, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A gray disk with noise, uint8 [size, size, 3], and the mask of its dent, if any."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    disk = 200 - 120 * (np.hypot(x, y) < 0.38 * size) + 20 * np.cos(np.arctan2(y, x) * 6)
    mask = np.zeros((size, size), dtype=bool)
    if dent:
        angle, reach = rng.uniform(0, 2 * np.pi), 0.2 * size
        mask = np.hypot(x - reach * np.cos(angle), y - reach * np.sin(angle)) < 0.1 * size
        disk = np.where(mask, 215, disk)
    picture = np.clip(disk + rng.normal(0, 6, disk.shape), 0, 255).astype(np.uint8)
    return np.repeat(picture[:, :, None], 3, axis=2), mask


def write_widgets(root: Path, *, train: int = 24, good: int = 12, dents: int = 12, size: int = 64) -> Path:
    """A data set of MVTec's layout, root/widget/..., with masks; returns `root`."""
    folder = root / "widget"
    numbers = itertools.count()
    for part, count in (("train/good", train), ("test/good", good), ("test/dent", dents)):
        (folder / part).mkdir(parents=True)
        for index in range(count):
            picture, mask = draw_widget(next(numbers), dent=part.endswith("dent"), size=size)
            Image.fromarray(picture).save(folder / part / f"{index:03d}.png")
            if mask.any():
                masks = folder / "ground_truth" / "dent"
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{index:03d}_mask.png")
    return root


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
    from studies.storage import open_storage
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


def copy_stores(stores: Path, home: Path) -> Path:
    """Give a new home empty stores; returns the home."""
    home.mkdir(parents=True)
    for database in stores.glob("*.db"):
        shutil.copy(database, home)
    return home
