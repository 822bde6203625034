"""What a model needs where it is served: the packages that a head's file imports."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from detectors.errors import InputError
from tests.helpers.worked_example import EXAMPLE
from tracking.packing import imported_requirements, pinned

TEXT = """
from __future__ import annotations
import json, os.path
from typing import TYPE_CHECKING
import torch.nn.functional as functional
from detectors.base import Head
try:
    import absent_accelerator
except ImportError:
    absent_accelerator = None
class Mine(Head):
    def score(self, features):
        import yaml
        from rich.text import Text
        from . import nothing
"""


def test_the_packages_that_a_file_imports_are_pinned() -> None:
    release = version("torch").partition("+")[0]
    expected = [f"rich=={version('rich')}", f"torch=={release}", f"PyYAML=={version('PyYAML')}"]
    assert imported_requirements(TEXT.encode(), "mine.py") == expected
    assert [pin.partition("==")[0] for pin in imported_requirements(EXAMPLE.read_bytes(), "diagonal.py")] == ["torch"]


def test_each_package_is_pinned_once_however_it_is_written() -> None:
    assert pinned(["pyyaml", "PyYAML>=5", "anomaly_studies", "not-there"]) == [f"pyyaml=={version('PyYAML')}"]


@pytest.mark.parametrize("line", ["import mine_utils", "def late():\n    from mine_utils.sizes import BLOCK"])
def test_a_file_beside_it_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "mine_utils.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"mine\.py imports mine_utils, which no installed package brings") as caught:
        imported_requirements(line.encode(), "mine.py")
    assert "\n" not in str(caught.value)
