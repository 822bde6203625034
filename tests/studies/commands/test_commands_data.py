"""``study data``: check, render, fetch."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shlex
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from detectors.data import fetch as fetch_module
from detectors.data.mvtec import read_mvtec
from studies.commands import questions as ask
from tests.helpers.builders import raw_config
from tests.helpers.command_line import study


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("MVTEC_AD_ROOT", "STUDY_DATA_URL", "STUDY_STORAGE", "MLFLOW_TRACKING_URI", "STUDY_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("STUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_shows_what_a_data_set_holds(tiny_mvtec: Path) -> None:
    ended = study("data", "check", "--root", tiny_mvtec, "--category", "widget")
    assert ended.code == 0
    words = [line.split() for line in ended.out.splitlines()]
    assert ["set", "good", "dent", "all"] in words
    assert ["train", "24", "0", "24"] in words
    assert ["test", "12", "12", "24"] in words
    assert "12 of 12 defective images" in ended.out
    assert "64 x 64 (48)" in ended.out
    assert "no problems" in ended.out


def test_check_for_scripts(tiny_mvtec: Path) -> None:
    ended = study("data", "check", "--root", tiny_mvtec, "--category", "widget", "--json")
    found = json.loads(ended.out)
    assert found["ok"] is True
    (report,) = found["reports"]
    assert report["counts"] == {"train": {"good": 24}, "test": {"dent": 12, "good": 12}}
    assert (report["category"], report["masks"], report["problems"]) == ("widget", 12, [])


def test_check_without_a_category_takes_all_of_them(own_widgets: Path) -> None:
    shutil.copytree(own_widgets / "widget", own_widgets / "gadget")
    shutil.rmtree(own_widgets / "gadget" / "test")
    found = json.loads(study("data", "check", "--root", own_widgets, "--json").out)
    assert [report["category"] for report in found["reports"]] == ["gadget", "widget"]
    assert [report["counts"]["test"] for report in found["reports"]] == [{}, {"dent": 12, "good": 12}]


def test_check_takes_the_default_place_of_mvtec(tiny_mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVTEC_AD_ROOT", str(tiny_mvtec))
    assert "mvtec/widget" in study("data", "check").out


def test_check_reads_the_data_section_of_a_study(tiny_mvtec: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw_config(tiny_mvtec)))
    assert "tiny/widget" in study("data", "check", file).out
    other = study("data", "check", file, "--category", "gadget")
    assert other.code == 2
    assert "gadget" in other.error


def test_check_of_own_images(own_widgets: Path) -> None:
    images = own_widgets / "widget" / "train"
    (own_widgets / "widget" / "test" / "dent").rename(images / "dent")
    ended = study("data", "check", "--images", images)
    assert ended.code == 0
    assert "folder/train" in ended.out
    assert "none of its 12 images has a mask" in ended.out
    assert "usable, with 1 warning" in ended.out


def test_check_names_the_protocol_what_the_threshold_rests_on_and_the_next_command(own_widgets: Path) -> None:
    images = own_widgets / "widget" / "train"
    ended = study("data", "check", f"{images}/")
    assert ended.code == 0, ended
    assert "protocol synthetic: settings are ranked on defects that are painted into good images" in ended.out
    # Two of the 24 are the painted test, and the others are each scored without themselves.
    assert "rest on 22 good images: they support 4.3 % false alarms; for 1 %, which it is to allow, 99" in ended.out
    assert "next: study run data/widget/train" in ended.out
    assert "no problems" in ended.out
    (report,) = json.loads(study("data", "check", "--images", images, "--json").out)["reports"]
    outlook = report["outlook"]
    assert (outlook["protocol"], outlook["good"], outlook["needed"]) == ("synthetic", 22, 99)
    ended = study("data", "check", "--root", own_widgets)
    # All 12 good ones of test choose, because the labelled images are few, and none of them was fitted.
    assert "protocol holdout: the labelled images are few: all of them choose the setting" in ended.out
    assert "rest on 36 good images" in ended.out
    assert "next: study run data/widget" in ended.out


def test_check_counts_what_a_study_of_its_own_would(tiny_mvtec: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw_config(tiny_mvtec, threshold={"folds": 0, "rate": 0.2})))
    ended = study("data", "check", file)
    assert "rest on 6 good images: enough for the 20 % false alarms" in ended.out
    assert f"next: study run {file}" in ended.out


def test_check_of_three_good_images_promises_no_threshold(own_widgets: Path) -> None:
    images = own_widgets / "widget" / "train" / "good"
    for image in sorted(images.iterdir())[3:]:
        image.unlink()
    ended = study("data", "check", images)
    assert ended.code == 0, ended
    assert "protocol synthetic: the good images are so few that none is kept apart" in ended.out
    assert "no threshold: no good image is kept apart" in ended.out
    assert "next: study run data/widget/train/good" in ended.out


def test_check_of_too_few_images_says_that_a_study_cannot_be_run(own_widgets: Path, tmp_path: Path) -> None:
    for kind in (own_widgets / "widget" / "test").iterdir():
        for image in sorted(kind.iterdir())[1:]:
            image.unlink()
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw_config(own_widgets, protocol="holdout")))
    ended = study("data", "check", file)
    assert ended.code == 2
    assert "a study cannot be run: no labelled images are left for test" in ended.out
    assert "next:" not in ended.out


def test_check_of_a_folder_of_products_checks_each(own_widgets: Path) -> None:
    shutil.copytree(own_widgets / "widget" / "train", own_widgets / "gadget")
    found = json.loads(study("data", "check", f"{own_widgets}/", "--json").out)
    assert [report["category"] for report in found["reports"]] == ["gadget", "widget"]
    assert found["reports"][0]["outlook"]["command"] == "study run data/gadget"


def test_check_ends_with_2_after_a_report_with_errors(own_widgets: Path) -> None:
    (own_widgets / "widget" / "train" / "good" / "003.png").write_bytes(b"not an image")
    (own_widgets / "widget" / "ground_truth" / "dent" / "000_mask.png").unlink()
    ended = study("data", "check", "--root", own_widgets)
    assert ended.code == 2
    assert ended.err == ""
    lines = ended.out.splitlines()
    error = next(index for index, line in enumerate(lines) if line.split()[:2] == ["error", "train/good/003.png"])
    warning = next(index for index, line in enumerate(lines) if line.split()[:2] == ["warning", "test/dent/000.png"])
    assert error < warning
    assert "1 error, 1 warning: mend the errors first" in ended.out
    as_json = study("data", "check", "--root", own_widgets, "--json")
    assert (as_json.code, json.loads(as_json.out)["ok"]) == (2, False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["padim_scrw"], "did you mean padim_screw?"),
        (["--root", "nowhere"], "nowhere: no such folder"),
        (["--root", "empty"], "use --images"),
        (["--images", "empty"], "no images"),
        (["--images", "empty", "--root", "empty"], "leave out the study, --root and --dataset"),
        (["padim_screw", "--images", "empty"], "leave out the study, --root and --dataset"),
        (["--dataset", "My Set"], "--dataset 'My Set' is not valid"),
        (["--dataset", "mine"], "data.root is missing"),
        ([], "study data fetch mvtec"),
    ],
)
def test_check_says_what_it_cannot_read(words: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = study("data", "check", *words)
    assert ended.code == 2
    assert told in ended.error
    assert ended.out == ""


# --- render -----------------------------------------------------------------------------------------------------------

TINY = ("--size", "64", "--train", "8", "--test-good", "4", "--per-defect", "2")


def test_render_and_the_study_it_proposes(home: Path) -> None:
    ended = study("data", "render", *TINY, "--seed", "3")
    assert ended.code == 0
    command = ended.out.splitlines()[-1]
    settings = dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)
    root = Path(settings["data.root"])
    assert root.is_relative_to(home)
    dataset = read_mvtec(root, settings["data.category"])
    assert (len(dataset.train), len(dataset.test), len(dataset.defect_types)) == (8, 14, 5)
    assert "22 images" in ended.out
    proposed = study(*shlex.split(command)[1:], "--dry-run", "--set", "data.image_size=64")
    assert proposed.code == 0, proposed.err
    assert "rendered/screw" in proposed.out
    assert str(root) in proposed.out


def test_render_into_a_folder_twice_draws_once(tmp_path: Path) -> None:
    out = tmp_path / "my screws"
    first = study("data", "render", *TINY, "--out", out, "--json")
    image = out / "screw" / "train" / "good" / "000.png"
    drawn = image.stat().st_mtime_ns
    assert study("data", "render", *TINY, "--out", out, "--json").out == first.out
    assert image.stat().st_mtime_ns == drawn
    row = json.loads(first.out)
    assert (row["root"], row["pictures"]) == (str(out), 22)
    assert shlex.split(row["run"])[-1] == f"data.root={out}"


@pytest.mark.parametrize(
    ("words", "told"), [(["--size", "16"], "16"), (["--train", "0"], "train"), (["--seed", "-1"], "-1")]
)
def test_render_refuses_what_cannot_be_drawn(words: list[str], told: str, home: Path) -> None:
    ended = study("data", "render", *words)
    assert ended.code == 2
    assert told in ended.error
    assert not home.exists()


# --- fetch ------------------------------------------------------------------------------------------------------------

FILES = {"screw/train/good/000.png": bytes(range(256)) * 300, "screw/test/scratch/000.png": b"scratch"}


def tar_bytes() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive that counts as MVTec AD's."""
    content = tar_bytes()
    (tmp_path / "site").mkdir()
    path = tmp_path / "site" / "set.tar"
    path.write_bytes(content)
    small = replace(
        fetch_module.SOURCES["mvtec"],
        url="http://127.0.0.1:9/gone.tar",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        extracted_bytes=len(content),
    )
    monkeypatch.setitem(fetch_module.SOURCES, "mvtec", small)
    return path


@pytest.fixture
def url(archive: Path) -> Iterator[str]:
    """Where a web server of this machine offers the archive."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(archive.parent)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{archive.name}"
    server.shutdown()
    server.server_close()
    thread.join()


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}


def test_fetch_downloads_verifies_and_extracts(url: str, tmp_path: Path) -> None:
    ended = study("data", "fetch", "mvtec", "--url", url, "--root", tmp_path / "set", "--accept-license")
    assert ended.code == 0, ended.err
    assert tree(tmp_path / "set") == FILES
    source = fetch_module.SOURCES["mvtec"]
    for told in (source.licence, "Not for commercial use", source.licence_url, url, str(tmp_path / "set"), "0.1 MB"):
        assert told in ended.out
    order = [ended.out.index(f"\n{step}: ") for step in ("download", "verify", "extract")]
    assert order == sorted(order)
    assert f"export MVTEC_AD_ROOT={tmp_path / 'set'}" in ended.out
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["set.tar"]


def test_fetch_goes_where_studies_look(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("data", "fetch", "mvtec", "--archive", archive, "--accept-license")
    assert "export" not in study(*words).out
    assert tree(tmp_path / "datasets" / "MVTecAD") == FILES
    monkeypatch.setenv("MVTEC_AD_ROOT", str(tmp_path / "elsewhere"))
    assert "export" not in study(*words).out
    assert tree(tmp_path / "elsewhere") == FILES
    assert archive.exists()


def test_fetch_takes_the_address_of_the_environment(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_DATA_URL", url)
    ended = study("data", "fetch", "mvtec", "--root", tmp_path / "set", "--accept-license", "--keep-archive", "--json")
    assert json.loads(ended.out) == {"dataset": "mvtec", "root": str(tmp_path / "set"), "fetched": True}
    assert len(list(tmp_path.glob("set-*.archive"))) == 1


def test_fetch_of_what_is_there_asks_nobody(archive: Path, tmp_path: Path) -> None:
    words = ("data", "fetch", "mvtec", "--archive", archive, "--root", tmp_path / "set")
    assert study(*words, "--accept-license").code == 0
    again = study(*words, "--json")
    assert (again.code, json.loads(again.out)["fetched"]) == (0, False)
    assert "was already in" in study(*words).out


def test_fetch_with_nobody_to_ask_names_the_option(archive: Path, tmp_path: Path) -> None:
    ended = study("data", "fetch", "mvtec", "--archive", archive, "--root", tmp_path / "set")
    assert ended.code == 2
    assert "--accept-license" in ended.error
    assert "Not for commercial use" in ended.out
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_fetch_asks_the_person_at_the_terminal(
    answer: str, code: int, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "somebody_is_there", lambda: True)
    ended = study("data", "fetch", "mvtec", "--archive", archive, "--root", tmp_path / "set", typed=answer)
    assert ended.code == code
    assert "Do you accept the licence CC BY-NC-SA 4.0? [y/N]" in ended.err
    assert (tmp_path / "set").exists() == (code == 0)


def test_fetch_refuses_another_archive(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"\0")
    ended = study("data", "fetch", "mvtec", "--archive", archive, "--root", tmp_path / "set", "--accept-license")
    assert ended.code == 2
    assert "its sha256 is" in ended.error
    assert not (tmp_path / "set").exists()


def test_fetch_keeps_passwords_to_itself(url: str, tmp_path: Path) -> None:
    secret = url.replace("http://", "http://me:hunter2@") + "?token=hunter3"
    ended = study("data", "fetch", "mvtec", "--url", secret, "--root", tmp_path / "set", "--accept-license")
    assert ended.code == 0, ended.err
    assert "hunter" not in ended.out + ended.err


@pytest.mark.parametrize(
    ("words", "told"),
    [(["mvtek"], "known: mvtec, visa"), (["visa", "--accept-license"], "--archive FILE")],
)
def test_fetch_says_what_it_cannot_get(words: list[str], told: str) -> None:
    ended = study("data", "fetch", *words)
    assert ended.code == 2
    assert told in ended.error
