"""The contract suite as a plug-in's author uses it: from another folder, without this project's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectors.base import Parameter
from detectors.testing import contract
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


PARAMETERS = [
    Parameter("unbounded", "float", 0.5, "no bounds"),
    Parameter("low", "float", 0.5, "a lower bound alone", low=0.5),
    Parameter("high", "float", 0.5, "an upper bound alone", high=0.5),
    Parameter("narrow", "float", 0.0, "bounds less than 1 apart", 0.0, 1e-3),
    Parameter("whole", "int", 5, "at its upper bound", 1, 5),
    Parameter("any", "int", 0, "no bounds"),
    Parameter("flag", "choice", False, "a switch", choices=(False, True)),
    Parameter("odd", "choice", 17, "what the contract would take for wrong", choices=(17, "much", True, 0.5)),
]
SINGLE = [
    Parameter("single", "choice", "only", "one choice", choices=("only",)),
    Parameter("fixed", "int", 3, "one number", 3, 3),
    Parameter("point", "float", 3.0, "one number", 3.0, 3.0),
]


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_another_value_is_allowed(parameter: Parameter) -> None:
    value = contract.other_value(parameter)
    assert parameter.check(value) == value
    assert value != parameter.default


@pytest.mark.parametrize("parameter", SINGLE, ids=lambda parameter: parameter.name)
def test_a_parameter_with_one_value_has_no_other(parameter: Parameter) -> None:
    assert contract.other_value(parameter) is None


def test_a_head_with_unusual_parameters_passes(tmp_path: Path) -> None:
    listed = "".join(f"        {parameter!r},\n" for parameter in (*PARAMETERS, *SINGLE)).replace("inf", "float('inf')")
    text = EXAMPLE.read_text().replace("Parameter, ...]] = (\n", f"Parameter, ...]] = (\n{listed}")
    constructor = "regularization: float = 0.01) -> None:"
    arguments = "".join(f"{parameter.name}={parameter.default!r}, " for parameter in (*PARAMETERS, *SINGLE))
    (tmp_path / "mine.py").write_text(text.replace(constructor, arguments + constructor))
    done = run(tmp_path, "-k", "settings or searchable or out_of_range or by_its_name")
    assert done.returncode == 0, done.stdout[-3000:]


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
