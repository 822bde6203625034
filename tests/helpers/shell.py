"""The command ``study`` in a folder of a test's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from huggingface_hub import constants

from tests.helpers import command_line, preloaded
from tests.helpers.widgets import copy_stores

BACKBONE = "resnet18@random"
NAMES = ("STUDY_STORAGE", "MLFLOW_TRACKING_URI", "STUDY_WEIGHTS", "MVTEC_AD_ROOT", "STUDY_DEBUG")
"""Of a person's environment, what must not reach a test."""
NOWHERE = "http://127.0.0.1:9"
"""An address where nobody listens: a test that goes to the network fails, and does so at once."""
Ended = command_line.Ended | preloaded.Ended


@dataclass(frozen=True)
class Shell:
    """A folder to work in, with a home of its own."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *words: object, **environment: str) -> command_line.Ended:
        """Run ``study WORDS...`` within this process, as if it had been given in the folder."""
        with self._surroundings(environment):
            return command_line.study(*words)

    def in_a_process(self, *words: object, **environment: str) -> preloaded.Ended:
        """The same in a process of its own, half a second later, where all that reaches the terminal counts."""
        changes = dict.fromkeys(NAMES) | self.environment | environment
        return preloaded.study(words, folder=self.folder, environment=changes, before=preloaded.quick_trials)

    @contextlib.contextmanager
    def _surroundings(self, environment: dict[str, str]) -> Iterator[None]:
        with contextlib.ExitStack() as undone:
            undone.enter_context(contextlib.chdir(self.folder))
            undone.enter_context(mock.patch.dict(os.environ, self.environment | environment))
            for name in set(NAMES) - set(self.environment) - set(environment):
                os.environ.pop(name, None)
            # The library read its variables when it was imported.
            undone.enter_context(mock.patch.multiple(constants, ENDPOINT=NOWHERE, HF_HUB_OFFLINE=True))
            for patch in preloaded.quick_patches():
                undone.enter_context(patch)
            yield

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
    offline = {"HF_ENDPOINT": NOWHERE, "HF_HUB_OFFLINE": "1"}
    return Shell(folder, {"STUDY_HOME": str(folder / "home"), **offline})


def raw_study(root: Path, **changes: Any) -> dict[str, Any]:
    raw = {
        "name": "tiny",
        "detector": "padim",
        "data": {"dataset": "tiny", "category": "widget", "root": str(root), "image_size": 64},
        "search": {"n_features": {"int": [4, 40]}, "shrinkage": {"float": [0.0, 0.5]}},
        "fixed": {"backbone": BACKBONE, "layers": [8, 16], "smoothing_sigma": 2.0},
        "budget": {"trials": 2},
        # So few labelled images are not halved by default.
        "nested": False,
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
