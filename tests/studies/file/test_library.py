"""Finding and reading study files, and those that come with the package."""

from __future__ import annotations

import pytest

from detectors.errors import InputError
from studies.file import library
from studies.file.config import validate
from studies.file.library import config_names, find, load
from tests.helpers.study_files import PACKAGED, write


def test_there_are_packaged_files():
    assert {"padim", "padim_screw", "padim_carpet"} <= {path.stem for path in PACKAGED}


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_file_loads_under_its_own_name(path):
    config = load(str(path))
    assert config.name == path.stem
    assert len(config.detectors) > 1 or config.detectors[0] in path.stem
    assert config.backbones
    assert validate(config.to_json(), source="again") == config


def test_a_packaged_file_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("padim_screw").data.category == "screw"


def test_a_folder_configs_here_wins_over_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", "padim_screw", budget={"trials": 2})
    write(tmp_path / "configs", "own_study")
    assert load("padim_screw").budget.trials == 2
    assert {"own_study", "padim_carpet"} <= set(config_names())
    assert config_names() == sorted(set(config_names()))


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_path_is_taken_as_it_is(tmp_path, suffix):
    path = write(tmp_path).rename(tmp_path / f"mine{suffix}")
    assert find(str(path)) == path
    assert load(str(path)).name == "mine"


def test_no_such_path(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such study file"):
        find(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="no such study file"):
        find(str(tmp_path))


def test_no_such_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find("padim_srew")
    message = str(caught.value)
    for word in ("no study 'padim_srew'", "did you mean padim_screw?", "padim_carpet", ".yaml file"):
        assert word in message
    assert "\n" not in message


def test_no_studies_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "packaged_configs", lambda: tmp_path / "nothing")
    with pytest.raises(InputError, match="known: none"):
        find("padim_screw")


def test_overrides_are_validated_like_the_file(tmp_path):
    path = write(tmp_path)
    assert load(str(path), ["budget.trials=9"]).budget.trials == 9
    with pytest.raises(InputError, match=r"mine\.yaml with --set: unknown key 'budget\.trails'; did you mean trials\?"):
        load(str(path), ["budget.trails=9"])


def test_an_override_of_something_that_is_no_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="is a mapping"):
        load(str(path), ["name=a"])
