"""Finding and reading study files, and those that come with the package."""

from __future__ import annotations

import pytest
import yaml

from detectors import catalog, head_files, head_texts
from detectors.errors import InputError
from studies.file import library
from studies.file.config import validate
from studies.file.library import config_names, find, load
from tests.helpers.study_files import PACKAGED, write
from tests.helpers.worked_example import EXAMPLE, offer_example


def test_there_are_packaged_files():
    assert {"padim", "padim_screw", "padim_carpet"} <= {path.stem for path in PACKAGED}


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_file_loads_under_its_own_name(path):
    config = load(str(path))
    assert config.name == path.stem
    # A recipe of its own name is a setting of PatchCore.
    assert len(config.detectors) > 1 or config.detectors[0] in path.stem or path.stem == "anomalydino"
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


# --- heads in files


@pytest.fixture
def nothing_named(monkeypatch):
    """A process in which nobody has named a file with a head yet."""
    monkeypatch.setattr(head_files, "_known", head_files._Known())
    monkeypatch.setattr(head_texts, "_texts", head_texts._Texts())


def write_with_head(folder, text, **sections):
    """A study file whose detector is a file beside it."""
    folder.mkdir()
    (folder / "mine.py").write_text(text)
    study = {"name": "mine", "detector": "mine.py:Diagonal", "search": {}, "fixed": {"backbone": "resnet18"}}
    study |= {"baselines": [{"layers": [8, 16]}], **sections}
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))
    return str(folder / "mine.yaml")


@pytest.mark.usefixtures("nothing_named")
def test_each_study_has_the_head_of_its_own_text(tmp_path, monkeypatch):
    text = EXAMPLE.read_text()
    older = load(write_with_head(tmp_path / "older", text))
    newer = load(write_with_head(tmp_path / "newer", text.replace("1e-6, 1.0)", "1e-6, 2.0)")))
    offer_example(monkeypatch)
    heads = [older.head_class("diagonal"), newer.head_class("diagonal"), catalog.head_class("diagonal")]
    assert len(set(heads)) == 3
    assert [head.searchable[0].high for head in heads] == [1.0, 2.0, 1.0]
    assert [config.parts["diagonal"].head for config in (older, newer)] == heads[:2]

    # A worker, and whoever goes on with the study, checks it against its own head as well.
    for config, valid in ((older, False), (newer, True)):
        raw = config.to_json() | {"baselines": [{"layers": [8, 16], "regularization": 1.5}]}
        if valid:
            assert validate(raw, source="again").head_class("diagonal") is heads[1]
        else:
            with pytest.raises(InputError, match=r"regularization: 1\.5 is out of range"):
                validate(raw, source="again")


@pytest.mark.usefixtures("nothing_named")
def test_a_record_is_of_the_detector_that_it_stands_for(tmp_path):
    raw = load(write_with_head(tmp_path / "study", EXAMPLE.read_text())).to_json()
    raw |= {"detector": "padim", "heads": {"padim": raw["heads"]["diagonal"]}}
    with pytest.raises(InputError, match=r"heads\.padim: Diagonal of mine\.py is the detector 'diagonal'"):
        validate(raw, source="again")


@pytest.mark.usefixtures("nothing_named")
@pytest.mark.parametrize("heads", [3, "mine.py", [1], {"diagonal": 3, "other": 3}])
def test_records_that_are_none_are_refused(tmp_path, heads):
    with pytest.raises(InputError, match="head"):
        load(write_with_head(tmp_path / "study", EXAMPLE.read_text(), heads=heads))
