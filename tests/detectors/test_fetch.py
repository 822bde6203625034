"""Fetching data sets from a real local web server and from crafted archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import portalocker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.data import fetch as fetch_module
from detectors.data.fetch import RECEIPT, SOURCES, Limits, Source, fetch
from detectors.errors import InputError

FILES = {
    "bottle/train/good/000.png": b"bottle" * 400,
    "screw/train/good/000.png": bytes(range(256)) * 300,
    "screw/test/scratch_head/000.png": b"scratch",
    "license.txt": b"CC BY-NC-SA 4.0",
}
QUICK = Limits(attempts=3, backoff_seconds=0.0, connect_seconds=5.0, read_seconds=5.0)


def tar_bytes(files: dict[str, bytes], *, mode: str = "w", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for member in extra:
            tar.addfile(member, io.BytesIO(b"\0" * member.size))
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return stream.getvalue()


CONTENT = tar_bytes(FILES)


def source(content: bytes = CONTENT, url: str | None = None) -> Source:
    return Source(
        name="toy",
        title="Toy set",
        url=url,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        extracted_bytes=len(content),
        categories=("bottle", "screw"),
        licence="CC BY-NC-SA 4.0",
        licence_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
        licence_text="Not for commercial use.",
        citation="Nobody: Nothing. 2021.",
    )


def accept(_: Source) -> bool:
    return True


def tree(root: Path) -> dict[str, bytes]:
    """Files below `root` by relative path, without the receipt."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != RECEIPT)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def local(tmp_path: Path, content: bytes, **options: Any) -> Path:
    """Fetch `content` as a local archive of the right hash into tmp_path/set."""
    archive = tmp_path / "given.bin"
    archive.write_bytes(content)
    return fetch(source(content), tmp_path / "set", archive=archive, accept_licence=accept, limits=QUICK, **options)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- web server -------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """What the server sends, how it misbehaves, and what it did."""

    content: bytes = CONTENT
    ranges: bool = True
    etag: str | None = '"v1"'
    cut_after: list[int] = field(default_factory=list)
    """Body bytes after which the next connections are cut, one entry each."""
    statuses: list[int] = field(default_factory=list)
    """Status codes that the next connections answer instead."""
    chunked: bool = False
    wrong_range: bool = False
    served: list[tuple[int, int]] = field(default_factory=list)
    """First byte and body bytes sent, per connection that was answered with content."""
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.requests.append(dict(self.headers))
        if site.statuses:
            self.send_error(site.statuses.pop(0))
            return
        start, total = 0, len(site.content)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in {None, site.etag}
        if match and site.ranges and same:
            start = int(match[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = start + 1 if site.wrong_range else start
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        else:
            self.send_response(200)
        body = site.content[start:]
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body[: site.cut_after.pop(0)] if site.cut_after else body
        site.served.append((start, len(sent)))
        if site.chunked:
            self.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")
            if len(sent) == len(body):
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(sent)
        self.wfile.flush()
        if len(sent) < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": found}))
    # A client that hangs up is what several tests are about, not something to print.
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/toy.tar"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def download(site: Site, tmp_path: Path, **options: Any) -> Path:
    options = {"accept_licence": accept, "limits": QUICK, **options}
    return fetch(source(url=site.url), tmp_path / "set", **options)


def test_download_brings_the_folders_and_leaves_nothing_else(site: Site, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    root = download(site, tmp_path, progress=lambda *step: steps.append(step))
    assert root == tmp_path / "set"
    assert tree(root) == FILES
    assert names(tmp_path) == {"set"}
    assert json.loads((root / RECEIPT).read_text())["folders"] == ["bottle", "screw"]
    assert list(dict.fromkeys(step for step, _, _ in steps)) == ["download", "verify", "extract"]
    for name in ("download", "verify"):
        assert [step for step in steps if step[0] == name][-1] == (name, len(CONTENT), len(CONTENT))
    assert all(0 < done <= total for _, done, total in steps)


def test_second_call_does_nothing(site: Site, tmp_path: Path) -> None:
    download(site, tmp_path)
    before = len(site.requests)

    def never(_: Source) -> bool:
        raise AssertionError("nothing is fetched, so nobody is asked")

    download(site, tmp_path, accept_licence=never)
    assert len(site.requests) == before


def test_a_cut_connection_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.cut_after = [30_000, 20_000]
    assert tree(download(site, tmp_path)) == FILES
    assert site.served == [(0, 30_000), (30_000, 20_000), (50_000, len(CONTENT) - 50_000)]
    assert [request.get("If-Range") for request in site.requests] == [None, '"v1"', '"v1"']


def test_a_later_call_goes_on_where_the_first_gave_up(site: Site, tmp_path: Path) -> None:
    site.cut_after = [10_000, 0, 0]
    with pytest.raises(InputError, match=r"127\.0\.0\.1: cannot be reached or breaks off .* are kept.*--archive FILE"):
        download(site, tmp_path)
    assert not (tmp_path / "set").exists()
    assert tree(download(site, tmp_path)) == FILES
    assert sum(size for _, size in site.served) == len(CONTENT)
    assert names(tmp_path) == {"set"}


def test_a_server_that_ignores_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.cut_after = [30_000]
    assert tree(download(site, tmp_path)) == FILES
    assert site.served == [(0, 30_000), (0, len(CONTENT))]


def test_a_file_changed_on_the_server_starts_again(site: Site, tmp_path: Path) -> None:
    site.cut_after = [30_000, 0, 0]
    site.content, site.etag = b"x" * len(CONTENT), '"old"'
    with pytest.raises(InputError, match="breaks off"):
        download(site, tmp_path)
    site.content, site.etag = CONTENT, '"new"'
    assert tree(download(site, tmp_path)) == FILES
    assert site.served[-1] == (0, len(CONTENT))


def test_a_wrong_partial_file_without_etag_is_restarted_once(site: Site, tmp_path: Path) -> None:
    site.etag = None
    part = next(iter(_part_names(tmp_path)))
    part.write_bytes(b"x" * 5000)
    assert tree(download(site, tmp_path)) == FILES
    assert site.served == [(5000, len(CONTENT) - 5000), (0, len(CONTENT))]


def test_a_wrong_file_behind_cut_connections_is_not_fetched_for_ever(site: Site, tmp_path: Path) -> None:
    site.content = b"x" * 50_000
    site.cut_after = [20_000, 40_000, 20_000]
    with pytest.raises(InputError, match="has sha256"):
        download(site, tmp_path)
    assert len(site.served) == 4
    assert names(tmp_path) == set()


def _part_names(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"set-{source().sha256[:12]}.part"]


@pytest.mark.parametrize("extra", [0, 700])
def test_a_partial_file_that_is_whole_or_longer(site: Site, tmp_path: Path, extra: int) -> None:
    _part_names(tmp_path)[0].write_bytes(CONTENT + b"x" * extra)
    assert tree(download(site, tmp_path)) == FILES
    assert sum(size for _, size in site.served) == (len(CONTENT) if extra else 0)


def test_a_server_that_sends_another_range(site: Site, tmp_path: Path) -> None:
    site.wrong_range = True
    site.cut_after = [30_000]
    assert tree(download(site, tmp_path)) == FILES
    assert site.served[-1] == (0, len(CONTENT))


def test_chunked_transfer_of_unknown_length(site: Site, tmp_path: Path) -> None:
    site.chunked = True
    site.cut_after = [30_000]
    totals = set()
    progress: Callable[[str, int, int], None] = lambda step, done, total: totals.add((step, total))  # noqa: E731
    assert tree(download(site, tmp_path, progress=progress)) == FILES
    assert ("download", 0) in totals
    assert [start for start, _ in site.served] == [0, 30_000]


def test_passing_server_errors_are_tried_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert tree(download(site, tmp_path)) == FILES
    site.statuses = [500] * 3
    with pytest.raises(InputError, match=r"127\.0\.0\.1: .*HTTP 500"):
        fetch(source(url=site.url), tmp_path / "other", accept_licence=accept, limits=QUICK)


def test_waits_grow_and_are_bounded(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fetch_module.time, "sleep", waits.append)
    site.statuses = [503] * 8
    with pytest.raises(InputError, match="HTTP 503"):
        download(site, tmp_path, limits=Limits(attempts=8))
    assert waits == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_missing_file_is_told_at_once(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(InputError, match=rf"127\.0\.0\.1: answers HTTP {status} for Toy set.*--archive FILE"):
        download(site, tmp_path)
    assert len(site.requests) == 1
    assert names(tmp_path) == set()


def test_wrong_content_is_deleted_and_named(site: Site, tmp_path: Path) -> None:
    site.content = b"<html>moved</html>"
    with pytest.raises(InputError, match=r"sent \(18 bytes\) has sha256 [0-9a-f]{64}, not .* deleted.*--archive FILE"):
        download(site, tmp_path)
    assert len(site.served) == 1
    assert names(tmp_path) == set()


def test_the_hash_is_verified_for_another_address_and_may_be_given(site: Site, tmp_path: Path) -> None:
    site.content = tar_bytes({"screw/train/good/1.png": b"1"})
    elsewhere = source(url="http://127.0.0.1:9/never")
    with pytest.raises(InputError, match="has sha256"):
        fetch(elsewhere, tmp_path / "set", url=site.url, accept_licence=accept, limits=QUICK)
    digest = hashlib.sha256(site.content).hexdigest().upper()
    fetch(elsewhere, tmp_path / "set", url=site.url, sha256=digest, accept_licence=accept, limits=QUICK)
    assert tree(tmp_path / "set") == {"screw/train/good/1.png": b"1"}


def test_a_host_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(InputError, match=r"127\.0\.0\.1: cannot be reached .*--archive FILE") as caught:
            fetch(source(url=address), tmp_path / "set", accept_licence=accept, limits=QUICK)
    assert "secret" not in str(caught.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "nothing", "http://"])
def test_only_web_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="not an http"):
        fetch(source(url=url), tmp_path / "set", accept_licence=accept, limits=QUICK)


@pytest.mark.parametrize("chunked", [False, True])
def test_more_bytes_than_the_limit(site: Site, tmp_path: Path, chunked: bool) -> None:
    site.chunked = chunked
    with pytest.raises(InputError, match="more than the limit"):
        download(site, tmp_path, limits=Limits(download_bytes=50_000))
    assert not (tmp_path / "set").exists()


def test_a_kept_archive_serves_the_next_call(site: Site, tmp_path: Path) -> None:
    root = download(site, tmp_path, keep_archive=True)
    kept = tmp_path / f"set-{source().sha256[:12]}.archive"
    assert kept.read_bytes() == CONTENT
    shutil.rmtree(root)
    assert tree(download(site, tmp_path, keep_archive=True)) == FILES
    assert len(site.requests) == 1
    kept.write_bytes(b"rotten")
    shutil.rmtree(root)
    assert tree(download(site, tmp_path)) == FILES
    assert len(site.requests) == 2
    assert names(tmp_path) == {"set"}


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
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 7 * 10**9))
    large = replace(source(url=site.url), size_bytes=5 * 10**9, extracted_bytes=6 * 10**9)
    with pytest.raises(InputError, match=r"11\.0 GB are needed and 7\.0 GB are free"):
        fetch(large, tmp_path / "set", accept_licence=accept)
    assert site.requests == []
    assert names(tmp_path) == set()
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100_000))
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


# --- local archives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_of_tar(tmp_path: Path, mode: str) -> None:
    assert tree(local(tmp_path, tar_bytes(FILES, mode=mode))) == FILES
    assert names(tmp_path) == {"set", "given.bin"}


def test_zip(tmp_path: Path) -> None:
    assert tree(local(tmp_path, zip_bytes(FILES))) == FILES
    assert names(tmp_path) == {"set", "given.bin"}


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_a_single_top_folder_is_stripped(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    assert tree(local(tmp_path, pack({f"top-1.0/{name}": content for name, content in FILES.items()}))) == FILES


def test_a_single_category_is_not_stripped(tmp_path: Path) -> None:
    files = {"screw/train/good/000.png": b"1"}
    assert tree(local(tmp_path, tar_bytes(files))) == files


def test_dotted_names_and_folder_members(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("./bottle")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o000
    here = tarfile.TarInfo(".")
    here.type = tarfile.DIRTYPE
    content = tar_bytes({f"./{name}": data for name, data in FILES.items()}, extra=(here, folder))
    assert tree(local(tmp_path, content)) == FILES


def test_a_local_archive_of_another_hash_is_left_alone(tmp_path: Path) -> None:
    archive = tmp_path / "given.tar"
    archive.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"given\.tar: its sha256 is [0-9a-f]{64}, not "):
        fetch(source(), tmp_path / "set", archive=archive, accept_licence=accept)
    assert archive.read_bytes() == CONTENT[:-1]
    assert names(tmp_path) == {"given.tar"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive at all" * 100,
        b"PK\x03\x04 no zip",
        gzip.compress(b"no tar in here" * 999),
        tar_bytes(FILES, mode="w:xz")[:-200],
        tar_bytes(FILES, mode="w:gz")[:900],
        CONTENT[:20_000],
        zip_bytes(FILES)[:-40],
    ],
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"given\.bin: not a tar or zip archive, or damaged"):
        local(tmp_path, content)
    assert names(tmp_path) == {"given.bin"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_archives_end_in_one_error_or_in_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = {"screw/a.png": b"abc" * 50, "screw/b.png": bytes(range(200))}
    packed = data.draw(
        st.sampled_from(
            [zip_bytes(files), tar_bytes(files), tar_bytes(files, mode="w:gz"), tar_bytes(files, mode="w:xz")]
        )
    )
    damaged = bytearray(packed)
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(packed) - 1), st.integers(0, 255)), min_size=1, max_size=6)
    ):
        damaged[place] = value
    folder = tmp_path_factory.mktemp("damaged")
    try:
        local(folder, bytes(damaged))
    except InputError:
        assert names(folder) == {"given.bin"}
    else:
        assert names(folder) == {"given.bin", "set"}


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of Toy set's folders \(bottle, screw"):
        local(tmp_path, tar_bytes({"holiday/1.jpg": b"1"}))
    assert names(tmp_path) == {"given.bin"}


def member(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (member("screw/../../evil.png", tarfile.REGTYPE), "leaves the folder"),
        (member("../evil.png", tarfile.REGTYPE), "leaves the folder"),
        (member("/tmp/evil.png", tarfile.REGTYPE), "absolute"),
        (member("C:/evil.png", tarfile.REGTYPE), "absolute"),
        (member("..\\evil.png", tarfile.REGTYPE), "foreign"),
        (member("screw/link.png", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link or device"),
        (member("screw/inside.png", tarfile.SYMTYPE, linkname="000.png"), "a link or device"),
        (member("screw/hard.png", tarfile.LNKTYPE, linkname="/etc/passwd"), "a link or device"),
        (member("screw/device", tarfile.CHRTYPE, devmajor=1, devminor=3), "a link or device"),
        (member("screw/pipe", tarfile.FIFOTYPE), "a link or device"),
        (member("screw/" + "n" * 300, tarfile.REGTYPE), "too long"),
        (member("/".join(["screw"] + ["n" * 99] * 12), tarfile.REGTYPE), "too long"),
        (member("screw/a\nb", tarfile.REGTYPE), "control characters"),
        (member("screw/train/good//000.png", tarfile.REGTYPE), "comes twice"),
    ],
)
def test_unsafe_tar_members(tmp_path: Path, extra: tarfile.TarInfo, reason: str) -> None:
    with pytest.raises(InputError, match=rf"unsafe archive, .*{reason}.* \(member '.*'\); nothing was extracted"):
        local(tmp_path, tar_bytes(FILES, extra=(extra,)))
    assert names(tmp_path) == {"given.bin"}
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "screw/../../evil.png", "C:/evil.png"])
def test_unsafe_zip_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="unsafe archive"):
        local(tmp_path, zip_bytes({**FILES, name: b"evil"}))
    assert names(tmp_path) == {"given.bin"}


def test_zip_links_and_encrypted_members(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("screw/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match=r"a link or device \(member 'screw/link\.png'\)"):
        local(tmp_path, stream.getvalue())
    plain = bytearray(zip_bytes({"screw/1.png": b"1"}))
    plain[6] |= 1
    plain[plain.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InputError, match=r"'screw/1\.png' is encrypted"):
        local(tmp_path, bytes(plain))
    assert names(tmp_path) == {"given.bin"}


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_too_many_members(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    content = pack({f"screw/{number}.png": b"" for number in range(12)})
    archive = tmp_path / "given.bin"
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"more than 11 members \(member 'screw/11\.png'\)"):
        fetch(source(content), tmp_path / "set", archive=archive, accept_licence=accept, limits=Limits(members=11))
    assert names(tmp_path) == {"given.bin"}
    fetch(source(content), tmp_path / "set", archive=archive, accept_licence=accept, limits=Limits(members=12))
    assert len(tree(tmp_path / "set")) == 12


@pytest.mark.parametrize("limits", [Limits(extracted_bytes=3 * 10**6), Limits(ratio=2.0)])
@pytest.mark.parametrize("pack", [lambda files: tar_bytes(files, mode="w:xz"), zip_bytes])
def test_too_many_bytes(tmp_path: Path, limits: Limits, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    content = pack({"screw/1.png": b"1", "screw/bomb.png": bytes(4 * 10**6)})
    archive = tmp_path / "given.bin"
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"holds more than \d+ MB \(member 'screw/bomb\.png'\)"):
        fetch(source(content), tmp_path / "set", archive=archive, accept_licence=accept, limits=limits)
    assert names(tmp_path) == {"given.bin"}


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
    assert fetch_module._Workplace.beside(mounts[0], "0" * 64).extracted.parent == mounts[0]
    assert fetch_module._Workplace.beside(tmp_path, "0" * 64).extracted.parent == tmp_path.parent


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
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
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
    _part_names(tmp_path)[0].write_bytes(b"half")
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
