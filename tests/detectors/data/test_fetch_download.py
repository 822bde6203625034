"""Downloads from a real local web server that cuts connections, errs and lies."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from detectors.data import fetch as fetch_module
from detectors.data.fetch import RECEIPT, Limits, Source, fetch
from detectors.errors import InputError
from tests.helpers.fetching import (
    CONTENT,
    FILES,
    QUICK,
    Site,
    accept,
    download,
    names,
    part_file,
    source,
    tar_bytes,
    tree,
)


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
    part_file(tmp_path).write_bytes(b"x" * 5000)
    assert tree(download(site, tmp_path)) == FILES
    assert site.served == [(5000, len(CONTENT) - 5000), (0, len(CONTENT))]


def test_a_wrong_file_behind_cut_connections_is_not_fetched_for_ever(site: Site, tmp_path: Path) -> None:
    site.content = b"x" * 50_000
    site.cut_after = [20_000, 40_000, 20_000]
    with pytest.raises(InputError, match="has sha256"):
        download(site, tmp_path)
    assert len(site.served) == 4
    assert names(tmp_path) == set()


@pytest.mark.parametrize("extra", [0, 700])
def test_a_partial_file_that_is_whole_or_longer(site: Site, tmp_path: Path, extra: int) -> None:
    part_file(tmp_path).write_bytes(CONTENT + b"x" * extra)
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
    monkeypatch.setattr(fetch_module.download.time, "sleep", waits.append)
    site.statuses = [503] * 8
    with pytest.raises(InputError, match="HTTP 503"):
        download(site, tmp_path, limits=Limits(attempts=8))
    assert waits == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_missing_file_is_reported_at_once(site: Site, tmp_path: Path, status: int) -> None:
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
