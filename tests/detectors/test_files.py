"""Files and locks that survive crashes, full disks and other processes."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from detectors import files
from detectors.errors import InputError
from detectors.files import (
    append_line,
    file_lock,
    new_folder,
    os_errors_as_input_errors,
    write_bytes,
    write_json,
    write_text,
)

fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that start at once"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_processes(target: Callable[..., None], *argument_lists: tuple) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=arguments) for arguments in argument_lists]
    for process in processes:
        process.start()
    return processes


def failing(number: int) -> Callable[..., None]:
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


# --- whole files


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["c.txt"]


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "ä" * 125 + ".png"])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_a_file_has_the_rights_that_any_file_gets(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_json_is_read_back_and_never_holds_what_json_has_not(tmp_path):
    path = tmp_path / "x.json"
    data = {"ä": [1, 2.5, None, True], "nested": {"k": "v"}}
    write_json(path, data)
    assert json.loads(path.read_text()) == data
    for bad in (math.nan, math.inf, {"deep": [-math.inf]}):
        with pytest.raises(ValueError, match="Out of range"):
            write_json(path, bad)
    assert json.loads(path.read_text()) == data
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number):
    path = tmp_path / "x.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(InputError, match="disk is full") as caught:
        write_text(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.json"]


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_text(path, "old")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_the_data_is_on_disk_before_the_file_takes_its_name(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_text(path, "old")
    seen = []
    real = os.fsync

    def watched(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.read_text()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(path, "new")
    assert seen[0] == (False, "old")
    assert seen[1:] == ([(True, "new")] if os.name == "posix" else [])


def write_forever(path: Path, letter: str) -> None:
    while True:
        write_text(path, letter * 200_000)


@fork
def test_readers_never_see_half_a_file_and_kills_leave_a_whole_one(tmp_path):
    path = tmp_path / "x"
    write_text(path, "a" * 200_000)
    processes = in_processes(write_forever, (path, "a"), (path, "b"))
    try:
        seen = [path.read_text() for _ in range(200)]
    finally:
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    for text in [*seen, path.read_text()]:
        assert len(text) == 200_000
        assert len(set(text)) == 1


@pytest.mark.parametrize(
    ("number", "known"),
    [
        (errno.EACCES, True),
        (errno.EROFS, True),
        (errno.ENOTDIR, True),
        (errno.EISDIR, True),
        (errno.ENOENT, True),
        (errno.EIO, False),
    ],
)
def test_refusals_are_reported_in_one_line_and_faults_are_not_hidden(tmp_path, number, known):
    with pytest.raises(InputError if known else OSError) as caught, os_errors_as_input_errors(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert isinstance(caught.value, InputError) == known
    if known:
        assert str(tmp_path / "x") in str(caught.value)
        assert os.strerror(number) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_place_that_is_no_place_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for call in (
        lambda: write_text(tmp_path / "file" / "below", "x"),
        lambda: write_text(tmp_path / "folder", "x"),
        lambda: append_line(tmp_path / "folder", "x"),
        lambda: append_line(tmp_path / "file" / "below", "x"),
        lambda: new_folder(tmp_path / "file" / "below").__enter__(),
        lambda: file_lock(tmp_path / "file" / "below").__enter__(),
    ):
        with pytest.raises(InputError, match="cannot be written"):
            call()
    assert names(tmp_path) == ["file", "folder"]


# --- lines


def test_lines_are_appended_in_order(tmp_path):
    path = tmp_path / "logs" / "x.jsonl"
    for text in ("one", "", "zwei ü", "x" * 100_000):
        append_line(path, text)
    assert path.read_text(encoding="utf-8").split("\n") == ["one", "", "zwei ü", "x" * 100_000, ""]


@pytest.mark.parametrize("torn", [b'{"half": ', b"x", "ü".encode()[:1]])
def test_a_line_cut_by_a_crash_is_closed_and_spoils_no_other(tmp_path, torn):
    path = tmp_path / "x.jsonl"
    append_line(path, "whole")
    with path.open("ab") as file:
        file.write(torn)
    append_line(path, "next")
    append_line(path, "last")
    assert path.read_bytes() == b"whole\n" + torn + b"\nnext\nlast\n"


def test_a_full_disk_is_reported_when_a_line_is_appended(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(InputError, match="disk is full"):
        append_line(tmp_path / "x", "line")


def append_many(path: Path, writer: int, lines: int) -> None:
    for index in range(lines):
        append_line(path, json.dumps({"writer": writer, "index": index, "filler": "y" * (1 + 977 * (index % 23))}))


@fork
def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "x.jsonl"
    for process in in_processes(append_many, *((path, writer, 60) for writer in range(4))):
        process.join()
        assert process.exitcode == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == 240
    for writer in range(4):
        assert [record["index"] for record in records if record["writer"] == writer] == list(range(60))


# --- folders


def fill(folder: Path, text: str) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "x").write_text(text)


def test_a_folder_appears_whole_and_replaces_the_former_one(tmp_path):
    target = tmp_path / "above" / "target"
    with new_folder(target) as temporary:
        fill(temporary, "first")
        assert not target.exists()
        assert temporary.parent == target.parent
    with new_folder(target) as temporary:
        fill(temporary, "second")
        (temporary / "more").touch()
        assert (target / "deep" / "x").read_text() == "first"
    assert (target / "deep" / "x").read_text() == "second"
    assert names(target) == ["deep", "more"]
    assert names(target.parent) == ["target"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("existed", [True, False])
def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path, error, existed):
    target = tmp_path / "target"
    if existed:
        with new_folder(target) as temporary:
            fill(temporary, "old")
    with pytest.raises(error), new_folder(target) as temporary:  # noqa: PT012
        fill(temporary, "new")
        raise error
    assert names(tmp_path) == (["target"] if existed else [])
    assert not existed or (target / "deep" / "x").read_text() == "old"


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "target"
    with new_folder(target) as temporary:
        fill(temporary, "old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(InputError, match="disk is full"), new_folder(target) as temporary:
        fill(temporary, "new")
    assert names(tmp_path) == ["target"]
    assert (target / "deep" / "x").read_text() == "old"


def test_a_folder_that_cannot_take_its_name_gives_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "target"
    with new_folder(target) as temporary:
        fill(temporary, "old")
    real = Path.rename

    def refused(self, to):
        if self.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "refused")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(InputError, match="refused"), new_folder(target) as temporary:
        fill(temporary, "new")
    assert names(tmp_path) == ["target"]
    assert (target / "deep" / "x").read_text() == "old"


def test_a_file_in_the_way_is_kept(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    with pytest.raises(InputError, match="cannot be written"), new_folder(target) as temporary:
        fill(temporary, "new")
    assert names(tmp_path) == ["target"]
    assert target.read_text() == "precious"


def test_every_file_of_a_new_folder_is_brought_to_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "_sync_file", lambda path: synced.append(path.name))
    with new_folder(tmp_path / "target") as temporary:
        fill(temporary, "x")
        (temporary / "y").touch()
    assert {"x", "y"} <= set(synced)


# --- locks


def hold(path: Path, shared: bool, pipe) -> None:
    with file_lock(path, shared=shared):
        pipe.send("held")
        pipe.recv()


def holder(path: Path, *, shared: bool = False):
    """A process that holds the lock, and the pipe by which it is asked to let go."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    (process,) = in_processes(hold, (path, shared, theirs))
    assert ours.poll(60)
    ours.recv()
    return process, ours


@fork
@pytest.mark.parametrize("kill", [True, False])
def test_a_lock_held_elsewhere_is_busy_until_its_holder_ends(tmp_path, kill):
    path = tmp_path / "locks" / "x.lock"
    process, pipe = holder(path)
    try:
        with pytest.raises(BlockingIOError, match=r"x\.lock"), file_lock(path, wait=False):
            pass
        with pytest.raises(BlockingIOError), file_lock(path, shared=True, wait=False):
            pass
    finally:
        if kill:
            os.kill(process.pid, signal.SIGKILL)
        else:
            pipe.send("let go")
        process.join()
    with file_lock(path, wait=False):
        pass


@fork
def test_shared_locks_go_together_and_keep_the_exclusive_one_out(tmp_path):
    path = tmp_path / "x.lock"
    process, pipe = holder(path, shared=True)
    try:
        with file_lock(path, shared=True, wait=False), pytest.raises(BlockingIOError), file_lock(path, wait=False):
            pass
    finally:
        pipe.send("let go")
        process.join()
    with file_lock(path, wait=False):
        pass


def test_a_lock_is_freed_by_an_exception(tmp_path):
    path = tmp_path / "x.lock"
    with pytest.raises(RuntimeError, match="inside"), file_lock(path):
        raise RuntimeError("inside")
    with file_lock(path, wait=False), pytest.raises(BlockingIOError), file_lock(path, wait=False):
        pass
