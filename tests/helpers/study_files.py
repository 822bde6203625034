"""Study files for tests: checked, refused, or written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from detectors.errors import InputError
from studies.file.config import StudyConfig, validate
from studies.file.library import packaged_configs
from tests.helpers.builders import raw_config

PACKAGED = sorted(packaged_configs().glob("*.yaml"))


def check(**changes: Any) -> StudyConfig:
    """`raw_config` with changes, validated."""
    return validate(raw_config(Path("images"), **changes), source="tiny.yaml")


def refused(**changes: Any) -> str:
    """The one line that says why `raw_config` with changes is refused."""
    with pytest.raises(InputError) as caught:
        check(**changes)
    message = str(caught.value)
    assert message.startswith("tiny.yaml: ")
    assert "\n" not in message
    return message


def write(folder: Path, name: str = "mine", **changes: Any) -> Path:
    """`raw_config` with changes as a file of that name."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw_config(folder / "images", name=name, **changes)))
    return path
