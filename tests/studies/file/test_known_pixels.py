"""Which pixels a file holds is kept in the home, for several processes, and is never needed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from detectors.data import copies
from studies.file import datasets, known_pixels
from studies.file.known_pixels import PIXELS_FILE
from studies.file.known_pixels import known_pixels as open_known
from studies.home import Home
from tests.helpers.builders import make_config


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def add(home: Home, **pixels: str) -> None:
    with open_known(home) as known:
        known.update(pixels)


def kept(home: Home) -> dict[str, str]:
    with open_known(home) as known:
        return dict(known)


def test_what_is_added_is_kept(home: Home) -> None:
    assert kept(home) == {}
    assert not home.root.exists()
    add(home, a="1")
    add(home, b="2")
    assert kept(home) == {"a": "1", "b": "2"}


def test_several_may_add_at_a_time(home: Home) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: add(home, **{f"file {index}": "x"}), range(24)))
    assert len(kept(home)) == 24


def test_the_file_is_bounded_and_the_last_ones_stay(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_pixels, "MAX_FILES", 3)
    for name in "abcde":
        add(home, **{name: "x"})
    assert list(kept(home)) == ["c", "d", "e"]


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[]", "{}", '{"rule": "another", "pixels": {"a": "1"}}',
     json.dumps({"rule": known_pixels.RULE, "pixels": {"a": 1}}), json.dumps({"rule": known_pixels.RULE, "pixels": []})],
)  # fmt: skip
def test_what_is_unreadable_is_made_anew(home: Home, text: str) -> None:
    path = home.root / "checked" / PIXELS_FILE
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert kept(home) == {}
    add(home, b="2")
    assert kept(home) == {"b": "2"}


def test_a_home_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    add(Home(tmp_path / "home"), a="1")
    assert (tmp_path / "home").read_text() == "a file"


def test_the_images_of_a_study_are_decoded_once(home: Home, tiny_mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tiny_mvtec)
    first = datasets.load(config, home)
    monkeypatch.setattr(copies, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    assert datasets.load(config, home).digest == first.digest
