"""Heads in files of their own: named by a person, known by the digest of their text, never run for anybody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from detectors import catalog, head_files, head_texts
from detectors.backbones.pyramid import build_backbone
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.head_files import code_of, find_head, is_reference
from detectors.head_texts import HeadCode, keep, keep_text, look_in, text_of
from detectors.runtime.artifact import DESCRIPTION, Artifact, load_artifact, save_artifact
from detectors.runtime.description import digest_of
from tests.helpers.worked_example import EXAMPLE, offer_example

REFERENCE = f"{EXAMPLE}:Diagonal"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nobody has named a file yet."""
    forget(monkeypatch)
    monkeypatch.delenv(head_texts.VARIABLE, raising=False)
    yield
    for name in [name for name in sys.modules if name.startswith("study_head_")]:
        del sys.modules[name]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_files, "_known", head_files._Known())
    monkeypatch.setattr(head_texts, "_texts", head_texts._Texts())
    for name in [name for name in sys.modules if name.startswith("study_head_")]:
        del sys.modules[name]


def saved(folder: Path) -> torch.Tensor:
    """A detector with the example's head, saved; its score for one image."""
    head = catalog.load_head_file(REFERENCE)()
    detector = Detector(build_backbone("test_resnet@random", (8, 16)), head, image_size=(64, 64))
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector.fit(images)
    save_artifact(Artifact(detector), folder)
    return detector(images[:1]).scores


def test_a_head_is_known_by_its_own_name() -> None:
    with pytest.raises(InputError, match="unknown detector 'diagonal'"):
        catalog.head_class("diagonal")
    head = catalog.load_head_file(REFERENCE)
    assert catalog.head_class("diagonal") is head
    assert "regularization" in catalog.parameters("diagonal")
    assert "diagonal" not in catalog.names()
    code = code_of(head)
    assert code is not None
    assert (code.file, code.class_name) == ("diagonal.py", "Diagonal")
    assert HeadCode.from_json(json.loads(json.dumps(code.to_json()))) == code
    assert catalog.load_head_file(REFERENCE) is head  # run once
    assert find_head(code) is head


def test_paths_are_relative_to_where_they_were_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    (folder / "mine.py").write_text(EXAMPLE.read_text())
    assert catalog.load_head_file("mine.py:Diagonal", base=folder).name == "diagonal"
    monkeypatch.chdir(tmp_path)
    assert catalog.load_head_file("heads/mine.py:Diagonal").name == "diagonal"
    assert list(folder.iterdir()) == [folder / "mine.py"]  # nothing is written beside it


def test_an_edited_file_is_another_head(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(EXAMPLE.read_text())
    first = catalog.load_head_file(f"{path}:Diagonal")
    path.write_text(EXAMPLE.read_text() + "\n# edited\n")
    second = catalog.load_head_file(f"{path}:Diagonal")
    assert first is not second
    assert catalog.head_class("diagonal") is second
    code = code_of(first)
    assert code is not None
    assert find_head(code) is first


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        (None, "mine.py:Mine", r"mine\.py: cannot be read \(No such file or directory\)"),
        ("", "mine.py", r"mine\.py: give a detector of your own as FILE\.py:CLASS"),
        ("", "mine.py:", r"give a detector of your own as FILE\.py:CLASS"),
        ("", "mine.py:not a name", r"give a detector of your own as FILE\.py:CLASS"),
        ("", "mine.py:Mine", r"mine\.py: has no class Mine; its heads: none"),
        ("{example}", "mine.py:Mine", r"mine\.py: has no class Mine; its heads: Diagonal"),
        ("{example}", "mine.py:Head", r"mine\.py: Head is no subclass of detectors\.base\.Head; its heads: Diagonal"),
        ("class Mine: ...", "mine.py:Mine", r"mine\.py: Mine is no subclass of detectors\.base\.Head"),
        ("Mine = 3", "mine.py:Mine", r"mine\.py: Mine is no subclass of detectors\.base\.Head"),
        ("class Mine(:\n  pass", "mine.py:Mine", r"mine\.py, line 1: invalid syntax"),
        ("import no_such_module", "mine.py:Mine", r"mine\.py: cannot be loaded \(ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "mine.py:Mine", r"mine\.py: cannot be loaded \(SystemExit: 3\)"),
        ("1 / 0", "mine.py:Mine", r"mine\.py: cannot be loaded \(ZeroDivisionError: division by zero\)"),
        ("{head}    name = 'mine'\n    searchable = ()", "mine.py:Mine", r"mine\.py: Mine lacks fit, grid, score"),
        ("{head}    name = 'mine'", "mine.py:Mine", r"mine\.py: Mine lacks the class attribute searchable"),
        ("{head}    searchable = ()", "mine.py:Mine", r"mine\.py: Mine lacks the class attribute name"),
        ("from detectors.heads.padim import Padim", "mine.py:Padim", r"mine\.py: Padim is imported there.*heads: none"),
        ("{named a b}", "mine.py:Diagonal", r"mine\.py: Diagonal\.name 'a b' is no name"),
        ("{named padim}", "mine.py:Diagonal", r"Diagonal\.name is 'padim', a detector of anomaly-studies"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, reference: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    example = EXAMPLE.read_text()
    if text is not None:
        text = text.replace("{head}", "from detectors.base import Head\nclass Mine(Head):\n").replace(
            "{example}", example
        )
        if text.startswith("{named "):
            text = example.replace('"diagonal"', repr(text.removeprefix("{named ").removesuffix("}")))
        Path("mine.py").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        catalog.load_head_file(reference)
    assert len(str(caught.value).splitlines()) == 1
    if "line 1" in message or "cannot be" in message:
        assert not any(name.startswith("study_head_") for name in sys.modules)


def test_what_is_a_reference() -> None:
    assert all(map(is_reference, ["a.py:B", "a b/c.py:D", "/x/y.py", "a.py:", "C:/x.py:Y"]))
    assert not any(map(is_reference, ["padim", "", "a.yaml", ".py", "padim.pyx"]))


def test_a_saved_detector_names_its_text_and_needs_it_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = saved(tmp_path / "detector")
    described = json.loads((tmp_path / "detector" / DESCRIPTION).read_text())
    code = HeadCode.from_json(described["code"])
    assert code.sha256 == sha256(EXAMPLE.read_bytes()).hexdigest()
    assert str(tmp_path) not in json.dumps(described["code"])  # no path that could be followed
    assert "/" not in code.file

    kept = keep(code, tmp_path / "heads")
    forget(monkeypatch)
    with pytest.raises(
        InputError, match=r"comes from a file diagonal\.py that nobody named here .*STUDY_HEADS=PATH/diag"
    ):
        load_artifact(tmp_path / "detector")

    # Kept by whoever named it before.
    look_in(tmp_path / "heads")
    image = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))[:1]
    assert torch.equal(load_artifact(tmp_path / "detector").detector(image).scores, score)

    # A kept text that was changed since is not run.
    forget(monkeypatch)
    look_in(tmp_path / "heads")
    kept.write_text("raise SystemExit('this must not run')")
    with pytest.raises(InputError, match="nobody named here"):
        load_artifact(tmp_path / "detector")

    # Named in the environment, among others.
    monkeypatch.setenv(head_texts.VARIABLE, os.pathsep.join([f"{tmp_path}/other.py", str(EXAMPLE)]))
    assert torch.equal(load_artifact(tmp_path / "detector").detector(image).scores, score)


def test_detectors_of_packages_are_described_as_ever(tmp_path: Path) -> None:
    head = catalog.head_class("padim")(n_features=12)
    detector = Detector(build_backbone("test_resnet@random", (8, 16)), head, image_size=(64, 64))
    detector.fit(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    save_artifact(Artifact(detector), tmp_path / "detector")
    assert "code" not in json.loads((tmp_path / "detector" / DESCRIPTION).read_text())


def test_a_changed_record_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "detector")
    forget(monkeypatch)
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    path = tmp_path / "detector" / DESCRIPTION
    described = json.loads(path.read_text())
    digest = sha256(trap.read_bytes()).hexdigest()
    for code in (
        {"file": str(trap), "class_name": "Trap", "sha256": digest},
        {"file": str(trap), "class_name": "Trap", "sha256": "../trap"},
        {"file": str(trap), "class_name": "Trap"},
    ):
        changed = described | {"code": code}
        path.write_text(json.dumps(changed | {"sha256": digest_of(changed)}))
        with pytest.raises(InputError):
            load_artifact(tmp_path / "detector")
    changed = {k: v for k, v in described.items() if k != "code"} | {"detector": f"{trap}:Trap"}
    path.write_text(json.dumps(changed | {"sha256": digest_of(changed)}))
    with pytest.raises(InputError, match="unknown detector"):
        load_artifact(tmp_path / "detector")
    assert not (tmp_path / "sprung").exists()


def test_nothing_is_run_on_import(tmp_path: Path) -> None:
    code = "import sys, detectors.catalog; print(*[name for name in sys.modules if name.startswith('study_head_')])"
    environment = {**os.environ, head_texts.VARIABLE: str(EXAMPLE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_message_says_what_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = HeadCode("mine.py", "Mine", sha256(b"mine").hexdigest())
    edited, folder = tmp_path / "edited.py", tmp_path / "folder.py"
    edited.write_bytes(b"edited")
    folder.mkdir()
    monkeypatch.setenv(head_texts.VARIABLE, os.pathsep.join(map(str, [edited, folder, tmp_path / "absent.py"])))
    with pytest.raises(InputError) as caught:
        text_of(code)
    message = str(caught.value)
    assert f"{edited} has another text, sha256 {sha256(b'edited').hexdigest()[:12]}" in message
    assert f"{folder} is a folder" in message
    assert f"{tmp_path / 'absent.py'} is not there" in message
    assert code.sha256[:12] in message
    assert "nobody named" not in message
    assert len(message.splitlines()) == 1

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"edited\.py cannot be read \(Permission denied\)"):
        text_of(code)


def test_a_damaged_copy_is_replaced(tmp_path: Path) -> None:
    digest = sha256(b"mine").hexdigest()
    path = keep_text(digest, b"mine", tmp_path / "heads")
    path.write_bytes(b"cut")
    before = keep_text(digest, b"mine", tmp_path / "heads").stat().st_mtime_ns
    assert path.read_bytes() == b"mine"
    assert keep_text(digest, b"mine", tmp_path / "heads").stat().st_mtime_ns == before  # not written again


def test_nothing_is_known_of_a_class_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for text, class_name in (
        ("from detectors.heads.padim import Padim", "Padim"),
        ("from detectors.heads.padim import Padim\nclass Mine(Padim): pass", "Mine"),
    ):
        path.write_text(text)
        with pytest.raises(InputError):
            catalog.load_head_file(f"{path}:{class_name}")
        with pytest.raises(InputError, match="nobody named here"):
            text_of(HeadCode("mine.py", class_name, sha256(path.read_bytes()).hexdigest()))
    assert code_of(catalog.head_class("padim")) is None


def test_a_package_wins_over_the_file_of_an_older_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    of_file = catalog.load_head_file(REFERENCE)
    offer_example(monkeypatch)
    code = code_of(of_file)
    assert code is not None
    assert find_head(code) is of_file  # as a saved detector's
    of_package = catalog.head_class("diagonal")
    assert of_package is not of_file
    assert code_of(of_package) is None
