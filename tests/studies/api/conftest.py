"""A place where a person works with the Python interface: images of their own, and a study that was run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

import studies
from tests.helpers.builders import raw_config
from tests.helpers.command_line import set_home
from tests.helpers.widgets import copy_stores, draw_widget


def draw_parts(folder: Path, **kinds: int) -> Path:
    """A person's folder: images per type, ``good`` or a defect."""
    seed = 0
    for kind, count in kinds.items():
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            seed += 1
            pixels, _ = draw_widget(seed, dent=kind != "good")
            Image.fromarray(pixels).save(folder / kind / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tiny_mvtec: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``home`` (the study ``tiny``), ``parts/`` and ``part.png``; whoever changes it brings it back."""
    folder = tmp_path_factory.mktemp("place")
    copy_stores(empty_stores, folder / "home")
    draw_parts(folder / "parts", good=20, dent=6)
    Image.fromarray(draw_widget(4711, dent=True)[0]).save(folder / "part.png")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw_config(tiny_mvtec)))
    with pytest.MonkeyPatch.context() as patch:
        set_home(patch, folder)
        studies.run(folder / "tiny.yaml", offline=True, device="cpu", executor="inline", progress=False)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That place as working folder, its home in the environment."""
    set_home(monkeypatch, place)
    return place


@pytest.fixture
def new_home(here: Path, empty_stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same place with a home of the test's own, where nothing was run."""
    monkeypatch.setenv("STUDY_HOME", str(tmp_path / "home"))
    return copy_stores(empty_stores, tmp_path / "home")
