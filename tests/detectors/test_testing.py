"""The contract suite as a plug-in's author uses it: from another folder, without this project's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.worked_example import EXAMPLE

TEST = """
from detectors.testing import HeadContract
from mine import Diagonal

class TestDiagonal(HeadContract):
    head = Diagonal
"""
SOUND = "return torch.cat(distances).T.reshape(-1, *self.grid), None"
FAULTS = {
    "depend_on_its_batch": (SOUND, SOUND.replace("torch.cat(distances)", "torch.cat(distances) / len(features)")),
    "dents": (".mean(dim=1).sqrt()", ".mean(dim=1).sqrt() * 0.0"),
    "saved_detector": ('self.register_buffer("mean", ', 'object.__setattr__(self, "mean", '),
}
"""{part of the name of the test that notices: what is put in the place of what}"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(TEST)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rN", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_sound_head_passes_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text())
    done = run(tmp_path, "-k", "batch or saved or settings or dents")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("test", FAULTS)
def test_a_faulty_head_fails(tmp_path: Path, test: str) -> None:
    sound, faulty = FAULTS[test]
    assert sound in EXAMPLE.read_text()
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text().replace(sound, faulty))
    done = run(tmp_path, "-k", test, "-x")
    assert done.returncode == 1, done.stdout[-3000:]
    assert "1 failed" in done.stdout
