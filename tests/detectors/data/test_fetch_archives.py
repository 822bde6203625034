"""Local archives of every kind: whole, damaged, and made to do harm."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.data.fetch import Limits, fetch
from detectors.errors import InputError
from tests.helpers.fetching import CONTENT, FILES, accept, local, names, source, tar_bytes, tree, zip_bytes


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
    ids=["empty", "text", "zip by its first bytes", "gzip", "short tar.xz", "short tar.gz", "short tar", "short zip"],
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
