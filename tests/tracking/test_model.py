"""A detector's folder as an MLflow model: it answers by the code that it brings, and leaves the process as it was."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from detectors import catalog, head_files, head_texts
from detectors.base import FitContext
from detectors.detector import Detector
from detectors.runtime.artifact import Artifact, save_artifact
from tests.helpers.small_models import SIZE, backbone, random_images, save_detector
from tests.helpers.worked_example import EXAMPLE
from tracking.model import ask, brings_code_of_this_version, example_image, packed

REQUESTS = [{"image": example_image(), "return_heatmap": False}]
FLAT = EXAMPLE.read_text().replace('"diagonal"', '"flat_parts"')
"""The worked example under a name that no other test uses."""


def install(site: Path, version: str, text: str) -> Path:
    """A release of a plug-in."""
    (site / "flat_parts").mkdir(parents=True)
    (site / "flat_parts" / "__init__.py").write_text(text)
    metadata = site / f"flat_parts-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: flat-parts\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[{catalog.GROUP}]\nflat_parts = flat_parts:Diagonal\n")
    return site


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Plug-ins may be put on the path within the test."""
    yield monkeypatch
    monkeypatch.undo()
    forget_plug_ins()


def use(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the plug-in that is installed, as a new process would see it."""
    monkeypatch.undo()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    forget_plug_ins()


def forget_plug_ins() -> None:
    sys.modules.pop("flat_parts", None)
    importlib.invalidate_caches()
    catalog._load.cache_clear()


def saved(folder: Path) -> Path:
    """A detector with the head of the plug-in or file."""
    detector = Detector(backbone(), catalog.head_class("flat_parts")(), image_size=SIZE)
    return save_artifact(Artifact(detector.fit(random_images(6, 0), FitContext())), folder)


def test_a_model_answers_by_the_release_of_the_plug_in_that_it_brings(
    tmp_path: Path, installed: pytest.MonkeyPatch
) -> None:
    use(install(tmp_path / "first", "1.0", FLAT), installed)
    with packed(saved(tmp_path / "detector"), metadata={}) as model:
        (before,) = mlflow.pyfunc.load_model(str(model)).predict(REQUESTS)
        kept = shutil.copytree(model, tmp_path / "model")
    use(install(tmp_path / "second", "2.0", FLAT.replace("self.grid), None", "self.grid) * 1000, None")), installed)
    importlib.import_module("flat_parts")
    assert not brings_code_of_this_version(kept)
    (answer,) = ask(kept, REQUESTS)
    assert answer.score == pytest.approx(before.score, rel=1e-4)


def test_a_head_from_a_file_is_the_text_in_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_files, "_known", head_files._Known())
    monkeypatch.setattr(head_texts, "_texts", head_texts._Texts())
    (tmp_path / "mine.py").write_text(FLAT)
    catalog.load_head_file(f"{tmp_path / 'mine.py'}:Diagonal")
    monkeypatch.setenv(head_texts.VARIABLE, str(tmp_path / "mine.py"))
    with packed(saved(tmp_path / "detector"), metadata={}) as model:
        assert not brings_code_of_this_version(model)
        (text,) = (model / "artifacts" / "heads").iterdir()
        text.write_text("raise SystemExit")
        with pytest.raises(RuntimeError, match=r"mine\.py that nobody named here"):
            ask(model, REQUESTS)


def test_a_model_with_the_code_that_runs_here_leaves_nothing_behind(tmp_path: Path) -> None:
    with packed(save_detector(tmp_path / "detector"), metadata={}) as model:
        path, modules, last = list(sys.path), set(sys.modules), mlflow.models.model.__mlflow_model__
        assert brings_code_of_this_version(model)
        (answer,) = ask(model, REQUESTS)
        assert answer.verdict is not None
        assert sys.path == path
        assert not [name for name in set(sys.modules) - modules if name.startswith("code_model_")]
        assert mlflow.models.model.__mlflow_model__ is last
        (model / "code" / "more.py").touch()
        assert not brings_code_of_this_version(model)
