"""Fetching a data set: what is asked first, what is in the destination already, crashes, and the sources known."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import portalocker
import pytest

from detectors.data import fetch as fetch_module
from detectors.data.fetch import SOURCES, Limits, Source, fetch
from detectors.data.fetch.job import Workplace
from detectors.errors import InputError
from tests.helpers.fetching import (
    CONTENT,
    FILES,
    Site,
    accept,
    download,
    local,
    names,
    part_file,
    source,
    tar_bytes,
    tree,
)

# --- before anything is written ---------------------------------------------------------------------------------------


def test_a_refused_licence_writes_and_asks_nothing(site: Site, tmp_path: Path) -> None:
    asked: list[Source] = []

    def refuse(what: Source) -> bool:
        asked.append(what)
        return False

    with pytest.raises(InputError, match=r"Toy set: the licence CC BY-NC-SA 4\.0 was not accepted.*https://"):
        fetch(source(url=site.url), tmp_path / "new" / "set", accept_licence=refuse)
    assert [what.name for what in asked] == ["toy"]
    assert names(tmp_path) == set()
    assert site.requests == []


def test_no_room_on_the_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(fetch_module.files.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 7 * 10**9))
    large = replace(source(url=site.url), size_bytes=5 * 10**9, extracted_bytes=6 * 10**9)
    with pytest.raises(InputError, match=r"11\.0 GB are needed and 7\.0 GB are free"):
        fetch(large, tmp_path / "set", accept_licence=accept)
    assert site.requests == []
    assert names(tmp_path) == set()
    monkeypatch.setattr(fetch_module.files.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100_000))
    # The server's own figure counts where the source's is not for this archive.
    with pytest.raises(InputError, match="are free"):
        download(site, tmp_path, sha256="0" * 64)
    assert not any(path.name.endswith(".part") for path in tmp_path.iterdir())


def test_a_file_in_the_way_of_the_destination(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("in the way")
    archive = tmp_path / "given.tar"
    archive.write_bytes(CONTENT)
    with pytest.raises(InputError, match="is a file; choose a folder"):
        fetch(source(), tmp_path / "set", archive=archive, accept_licence=accept)
    with pytest.raises(InputError, match=r"set.*: (Not a directory|File exists)"):
        fetch(source(), tmp_path / "set" / "below", archive=archive, accept_licence=accept)
    assert (tmp_path / "set").read_text() == "in the way"


def test_what_is_asked_for_has_to_make_sense(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no download address is known.*--archive FILE"):
        fetch(source(), tmp_path / "set", accept_licence=accept)
    with pytest.raises(InputError, match=r"nowhere\.tar: no such archive file"):
        fetch(source(), tmp_path / "set", archive=tmp_path / "nowhere.tar", accept_licence=accept)
    with pytest.raises(InputError, match="'abc' is not 64 hexadecimal digits"):
        fetch(source(), tmp_path / "set", sha256="abc", accept_licence=accept)
    assert names(tmp_path) == set()


def test_two_fetches_at_once_are_refused(tmp_path: Path) -> None:
    with (
        portalocker.Lock(tmp_path / f".set-{source().sha256[:12]}.lock", timeout=0),
        pytest.raises(InputError, match="another fetch of this data set is at work"),
    ):
        local(tmp_path, CONTENT)
    assert tree(local(tmp_path, CONTENT)) == FILES


# --- what is there already, and crashes -------------------------------------------------------------------------------


def test_folders_that_are_there_are_not_overwritten(site: Site, tmp_path: Path) -> None:
    own = tmp_path / "set" / "screw" / "own.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    with pytest.raises(InputError, match=r"already holds screw, which would be overwritten; move it away"):
        download(site, tmp_path)
    assert tree(tmp_path / "set") == {"screw/own.png": b"own"}
    assert site.requests == []


def test_folders_the_source_does_not_know_are_not_overwritten_either(tmp_path: Path) -> None:
    own = tmp_path / "set" / "extra" / "own.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"own")
    with pytest.raises(InputError, match="already holds extra"):
        local(tmp_path, tar_bytes({**FILES, "extra/theirs.png": b"theirs"}))
    assert tree(tmp_path / "set") == {"extra/own.png": b"own"}


def test_other_content_of_the_destination_stays(tmp_path: Path) -> None:
    (tmp_path / "set" / "mine").mkdir(parents=True)
    (tmp_path / "set" / "mine" / "1.png").write_bytes(b"1")
    (tmp_path / "set" / "license.txt").write_bytes(b"mine")
    local(tmp_path, CONTENT)
    assert tree(tmp_path / "set") == {**FILES, "mine/1.png": b"1", "license.txt": b"mine"}
    assert names(tmp_path) == {"set", "given.bin"}


def test_a_set_put_there_by_hand_is_complete(tmp_path: Path) -> None:
    for name in ("bottle", "screw"):
        (tmp_path / "set" / name / "train").mkdir(parents=True)
    assert fetch(source(), tmp_path / "set", accept_licence=lambda _: False) == tmp_path / "set"


def test_another_archives_set_is_not_taken_for_this_one(tmp_path: Path) -> None:
    local(tmp_path, CONTENT)
    with pytest.raises(InputError, match="already holds bottle, screw"):
        local(tmp_path, tar_bytes({"screw/new.png": b"new"}))
    assert tree(tmp_path / "set") == FILES


def test_a_destination_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    assert tree(local(tmp_path, CONTENT)) == FILES
    assert (tmp_path / "set").is_symlink()
    assert names(tmp_path) == {"disk", "set", "given.bin"}


def test_a_mounted_destination_is_its_own_workplace(tmp_path: Path) -> None:
    mounts = [path for path in (Path("/dev/shm"), Path("/dev"), Path("/proc")) if path.is_mount()]
    if not mounts:
        pytest.skip("no mount point known on this machine")
    assert Workplace.beside(mounts[0], "0" * 64).extracted.parent == mounts[0]
    assert Workplace.beside(tmp_path, "0" * 64).extracted.parent == tmp_path.parent


def test_an_interruption_while_extracting_leaves_nothing_half_done(site: Site, tmp_path: Path) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step == "extract":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(site, tmp_path, progress=interrupt)
    assert names(tmp_path) == {f"set-{source().sha256[:12]}.archive"}
    assert tree(download(site, tmp_path)) == FILES
    assert len(site.requests) == 1
    assert names(tmp_path) == {"set"}


KILLED = """
import os, sys
from pathlib import Path
from detectors.data.fetch import Source, fetch
folder, digest, step = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def die(name, done, total):
    if name == step:
        os._exit(9)
if step == "publish":
    rename = Path.rename
    def rename_once(self, target):
        rename(self, target)
        if self.name == "bottle":
            os._exit(9)
    Path.rename = rename_once
source = Source("toy", "Toy", None, digest, 1, 1, ("bottle", "screw"), "CC", "https://cc", "", "")
fetch(source, folder / "set", archive=folder / "given.bin", accept_licence=lambda s: True, progress=die)
"""


@pytest.mark.parametrize("step", ["verify", "extract", "publish"])
def test_a_killed_process_is_taken_up_again(tmp_path: Path, step: str) -> None:
    (tmp_path / "given.bin").write_bytes(CONTENT)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_bytes(b"notes")
    command = [sys.executable, "-c", KILLED, str(tmp_path), source().sha256, step]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 9, ended.stderr
    found = names(tmp_path / "set")
    assert found == ({"bottle", "notes.txt"} if step == "publish" else {"notes.txt"})
    assert tree(local(tmp_path, CONTENT)) == {**FILES, "notes.txt": b"notes"}
    assert names(tmp_path) == {"set", "given.bin"}


def test_leftovers_of_a_crash_after_the_last_step_are_cleared(tmp_path: Path) -> None:
    local(tmp_path, CONTENT)
    part_file(tmp_path).write_bytes(b"half")
    (tmp_path / f".set-{source().sha256[:12]}.extracting").mkdir()
    assert tree(local(tmp_path, CONTENT)) == FILES
    assert names(tmp_path) == {"set", "given.bin"}


# --- registry ---------------------------------------------------------------------------------------------------------


def test_sources_are_whole() -> None:
    assert set(SOURCES) == {"mvtec", "visa"}
    for name, found in SOURCES.items():
        assert found.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", found.sha256)
        assert found.url is None or found.url.startswith("https://")
        assert found.licence_url.startswith("https://creativecommons.org/licenses/by")
        assert found.extracted_bytes >= found.size_bytes > 10**9
        assert found.size_bytes < Limits().download_bytes
        assert found.licence_text
        assert found.citation
    assert len(SOURCES["mvtec"].categories) == 15
    assert len(SOURCES["visa"].categories) == 12
