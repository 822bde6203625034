"""The first thing a person does: a folder of good images and ``study run``, without a network."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from detectors.backbones.bundled import BUNDLED
from tests.helpers.shell import Shell, make_shell
from tests.studies.api.conftest import draw_parts

SMALL = ("--set", "data.image_size=64", "--trials", "2", "--inline", "--device", "cpu")


@pytest.fixture(scope="module")
def shell(empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with 20 images of good parts directly in ``my parts``, and new ones."""
    shell = make_shell(tmp_path_factory.mktemp("first") / "work", empty_stores)
    drawn = draw_parts(shell.folder / "drawn", good=24, dent=2)
    (shell.folder / "my parts").mkdir()
    (shell.folder / "new").mkdir()
    for place, image in enumerate(sorted((drawn / "good").iterdir())):
        shutil.copy(image, shell.folder / ("my parts" if place < 20 else "new"))
    for image in (drawn / "dent").iterdir():
        shutil.copy(image, shell.folder / "new" / f"dent-{image.name}")
    return shell


@pytest.mark.slow
def test_a_folder_of_good_images_is_enough(shell: Shell) -> None:
    checked = shell("data", "check", "my parts/")
    assert checked.code == 0, checked
    assert "protocol synthetic" in checked.out
    (command,) = re.findall(r"next: study (.*)", checked.out)
    ended = shell(*shlex.split(command), *SMALL)
    assert ended.code == 0, ended
    # One line on the network, and nothing else that a person has to know of.
    (line,) = [line for line in ended.out.splitlines() if "weights" in line and "search goes on" in line]
    assert f"the weights that are here ({', '.join(BUNDLED)}), without resnet18" in line
    usable, end = (
        ended.out.index(text) for text in ("a detector is usable now: `study predict my_parts", "search ended")
    )
    assert usable < end
    assert "the search goes on with 1 more trial" in ended.out[usable:end]
    assert "with painted defects, the first setting (trial 0)" in ended.out[end:]
    judged = shell("predict", "my_parts", "new", "--json")
    assert judged.code == 0, judged
    assert len(json.loads(judged.out)) == 6
    assert "provisional" not in judged.err
    # The study of the folder goes on by its name and by the folder alike, and another folder of the name is another study.
    for word in ("my_parts", "my parts", "my parts/"):
        planned = shell("run", word, "--dry-run", "--device", "cpu")
        assert planned.code == 0, planned
        assert "no trial is started" in planned.out
    other = shell.folder / "elsewhere" / "my parts"
    shutil.copytree(shell.folder / "new", other)
    refused = shell("run", other)
    assert refused.code == 2
    assert "--name NEW" in refused.err
    assert shell("run", other, "--name", "newer", "--dry-run", "--device", "cpu").code == 0
