"""The command ``study`` in a folder of a test's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.preloaded import Ended, quick_trials, study
from tests.helpers.widgets import copy_stores

BACKBONE = "resnet18@random"
NAMES = ("STUDY_STORAGE", "MLFLOW_TRACKING_URI", "STUDY_WEIGHTS", "MVTEC_AD_ROOT", "STUDY_DEBUG")
"""Of a person's environment, what must not reach a test."""


@dataclass(frozen=True)
class Shell:
    """A folder to work in, with a home of its own."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *words: object, **environment: str) -> Ended:
        clean = dict.fromkeys(NAMES)
        return study(words, folder=self.folder, environment=clean | self.environment | environment, before=quick_trials)

    @property
    def home(self) -> Path:
        return Path(self.environment["STUDY_HOME"])

    def write(self, raw: dict[str, Any]) -> Path:
        path = self.folder / f"{raw['name']}.yaml"
        path.write_text(yaml.safe_dump(raw))
        return path


def make_shell(folder: Path, stores: Path | None = None) -> Shell:
    folder.mkdir(parents=True, exist_ok=True)
    if stores is not None:
        copy_stores(stores, folder / "home")
    # An address where nobody listens: a test that goes to the network fails, and does so at once.
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    return Shell(folder, {"STUDY_HOME": str(folder / "home"), **offline})


def raw_study(root: Path, **changes: Any) -> dict[str, Any]:
    raw = {
        "name": "tiny",
        "detector": "padim",
        "data": {"dataset": "tiny", "category": "widget", "root": str(root), "image_size": 64},
        "search": {"n_features": {"int": [4, 40]}, "shrinkage": {"float": [0.0, 0.5]}},
        "fixed": {"backbone": BACKBONE, "layers": [8, 16], "smoothing_sigma": 2.0},
        "budget": {"trials": 2},
    }
    return raw | changes


def assert_told(ended: Ended, *words: str, code: int = 2) -> None:
    """One line on stderr, nothing on stdout, the exit code, and the words that help."""
    assert ended.code == code, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    assert ended.out == ""
    for word in words:
        assert word in lines[0]
