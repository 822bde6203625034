"""What a person means by the words after ``study run``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from detectors.errors import InputError
from studies.commands.run_words import DEMO, understood
from tests.helpers.shell import assert_told, make_shell


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("parts", "other"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "0.png")
        Image.new("RGB", (16, 16)).save(tmp_path / name / "1.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "images", "meant"),
    [
        (["padim_screw"], None, ("padim_screw", None)),
        (["parts/"], None, ("parts/", None)),
        (["padim"], "parts", ("padim", Path("parts"))),
        (["padim", "parts/"], None, ("padim", Path("parts"))),
        (["parts/", "padim"], None, ("padim", Path("parts"))),
        ([], "parts", ("./parts", None)),
        ([], "some/parts", ("some/parts", None)),
        (["parts/"], "parts", ("parts/", None)),
    ],
)
def test_what_is_meant(words: list[str], images: str | None, meant: tuple[str, Path | None]) -> None:
    assert understood(words, images, demo=False) == meant


def test_a_demonstration_needs_no_name() -> None:
    assert understood([], None, demo=True) == (DEMO, None)
    assert understood(["padim_screw"], None, demo=True) == ("padim_screw", None)


@pytest.mark.parametrize(
    ("words", "images", "command"),
    [
        ([], None, "study run DIR"),
        ([], "--offline", "study run DIR"),
        (["padim"], "--offline", "study run padim --images DIR"),
        (["parts/0.png", "parts/1.png"], None, "study run parts"),
        (["parts", "other"], None, "study run parts"),
        (["padim_screw", "spade_screw"], None, "study run padim_screw"),
        (["parts/"], "other", "study run parts/"),
    ],
)
def test_what_cannot_be_told_is_answered_with_a_command(words: list[str], images: str | None, command: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"`{command}`")):
        understood(words, images, demo=False)


def test_the_command_line_says_so(folder: Path) -> None:
    shell = make_shell(folder)
    assert_told(shell("run"), "`study run DIR`", "`study run --demo`")
    assert_told(shell("run", "padim", "--images"), "`study run padim --images DIR`")
    assert_told(shell("run", "parts/0.png"), "`study run parts`")
    assert_told(shell("run", "nowhere/"), "no such study file, and no folder of images")
    assert_told(shell("run", "parts", "--demo"), "--demo renders its own images")
    assert not shell.home.exists()
