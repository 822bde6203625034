"""A toy data set, its archives, and a web server of this machine that offers them and misbehaves as asked."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from detectors.data.fetch import RECEIPT, Limits, Source, fetch

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


def part_file(tmp_path: Path) -> Path:
    """Where the archive of `source()` grows while it is downloaded to tmp_path/set."""
    return tmp_path / f"set-{source().sha256[:12]}.part"


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
