"""``study export``, and ``study predict`` with what it wrote."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from detectors.runtime.exported import load_exported
from studies.release.locate import detector_folder
from tests.helpers.builders import raw_config
from tests.helpers.command_line import Ended, study

VARIABLES = ("MVTEC_AD_ROOT", "STUDY_STORAGE", "MLFLOW_TRACKING_URI", "STUDY_WEIGHTS")
SMALL = {"backbone": "test_resnet@random", "layers": [8, 16], "smoothing_sigma": 2.0}


@pytest.fixture(scope="module")
def work(tiny_mvtec: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: the home of a finished study of one trial, and its exports."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(empty_stores, folder / "home")
    raw = raw_config(tiny_mvtec, fixed=SMALL, budget={"trials": 1})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
    return folder


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("STUDY_HOME", str(work / "home"))
    monkeypatch.chdir(work)
    monkeypatch.setattr("detectors.runtime.latency.MIN_SECONDS", 0.0)
    monkeypatch.setattr("detectors.runtime.latency.MIN_RUNS", 3)
    if not (work / "done").exists():
        ended = study("run", "tiny.yaml", "--inline", "--device", "cpu", "--offline")
        assert ended.code == 0, ended.err
        (work / "done").touch()
    return work


def exported(work: Path, kind: str) -> Path:
    """The study's export, made once."""
    target = work / ("tiny.onnx" if kind == "onnx" else "tiny-openvino")
    if not target.exists():
        ended = study("export", "tiny", "--format", kind)
        assert ended.code == 0, ended.err
    return target


def predicted(model: object, images: Path, out: Path) -> list[dict[str, Any]]:
    ended = study("predict", model, images, "--out", out, "--json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert all(Path(row.pop("heat map")).is_file() for row in rows)
    return rows


def test_export_tells_what_it_wrote_and_how_it_compares(here: Path, tmp_path: Path) -> None:
    words = ("export", "tiny", "--format", "onnx", "--out", tmp_path / "deep" / "x.onnx")
    told = json.loads(study(*words, "--json").out)
    assert told["file"] == str(tmp_path / "deep" / "x.onnx")
    assert told["size_mb"] == pytest.approx((tmp_path / "deep" / "x.onnx").stat().st_size / 1e6)
    assert (told["pictures"], told["source"]) == (12, "test of tiny")
    assert 0 <= told["relative_difference"] < 1e-4
    assert set(told["latency_ms_p50"]) == {"torch", "onnx"}
    assert all(milliseconds > 0 for milliseconds in told["latency_ms_p50"].values())
    shown = study(*words, "--force")
    assert shown.code == 0
    for part in ("largest difference", "12 images (test of tiny)", "CPU threads", "try it: study predict"):
        assert part in shown.out


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_predict_takes_the_file_and_says_the_same(here: Path, tiny_mvtec: Path, tmp_path: Path, kind: str) -> None:
    target, images = exported(here, kind), tiny_mvtec / "widget" / "test"
    wanted = predicted("tiny", images, tmp_path / "study")
    # An image that is one of the held-out normals has its own score among theirs, and rounding decides which is the higher.
    known = load_exported(target).description.normal_scores
    names = [target] if kind == "onnx" else [target, target / "model.xml"]
    for name in names:
        found = predicted(name, images, tmp_path / "file")
        assert len(found) == len(wanted) == 24
        apart = 0
        for one, other in zip(found, wanted, strict=True):
            assert one["image"] == other["image"]
            assert one["score"] == pytest.approx(other["score"], rel=1e-4)
            if all(abs(one["score"] - score) > 1e-4 * score for score in known):
                apart += 1
                assert (one["verdict"], one["normals below"]) == (other["verdict"], other["normals below"])
        assert apart >= 24 - len(known)
    assert {row["verdict"] for row in wanted} == {"good", "defective"}
    table = study("predict", target, images / "good" / "000.png", "--out", tmp_path / "maps")
    assert table.code == 0
    assert "threshold" in table.out


def test_a_detectors_folder_is_compared_on_drawn_images_or_those_given(here: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(detector_folder("tiny"), tmp_path / "mine")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (90, 70), (200, 30, 90)).save(photographs / "red.png")
    for words, source, count in (
        ((), "drawn; --images takes real ones", 16),
        (("--images", photographs, "--force"), str(photographs), 1),
    ):
        told = json.loads(study("export", folder, "--format", "onnx", *words, "--json").out)
        assert (told["file"], told["source"], told["pictures"]) == ("mine.onnx", source, count)
    assert (here / "mine.onnx").is_file()


def test_images_that_are_gone_do_not_hinder_an_export(here: Path, tmp_path: Path, own_widgets: Path) -> None:
    raw = raw_config(own_widgets, name="other", fixed=SMALL, budget={"trials": 1})
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(raw))
    assert study("run", tmp_path / "other.yaml", "--inline", "--device", "cpu", "--offline").code == 0
    shutil.rmtree(own_widgets)
    told = json.loads(study("export", "other", "--format", "onnx", "--json").out)
    assert told["source"] == "drawn; --images takes real ones"


def assert_told(ended: Ended, *words: str) -> None:
    assert ended.code == 2, ended
    assert ended.out == ""
    for word in words:
        assert word in ended.error


def test_mistakes_are_told_in_one_line(here: Path, tmp_path: Path) -> None:
    target = exported(here, "onnx")
    before = target.read_bytes()
    assert_told(study("export", "tiny", "--format", "onnx"), "tiny.onnx", "--force")
    assert_told(study("export", "tiny", "--format", "onnx", "--out", tmp_path / "x"), ".onnx")
    assert_told(study("export", "tinny", "--format", "onnx"), "no study 'tinny'", "did you mean tiny?")
    assert_told(study("export", tmp_path, "--format", "onnx"), "no detector in this folder")
    assert_told(study("export", "tiny", "--format", "onnx", "--force", "--images", "none"), "none", "no such file")
    unlike = study("export", "tiny", "--format", "onnx", "--force", "--tolerance", "0")
    assert_told(unlike, "more than the tolerance 0", "was removed", "--tolerance")
    assert target.read_bytes() == before
    assert not list(here.glob(".*"))
    wrong = study("export", "tiny", "--format", "tflite")
    assert wrong.code == 2
    assert "onnx" in wrong.err


def test_predict_tells_of_files_it_cannot_take(here: Path, tmp_path: Path) -> None:
    target, image = exported(here, "onnx"), tmp_path / "x.png"
    Image.new("RGB", (64, 64)).save(image)
    out = ("--out", tmp_path / "out")
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "short.onnx").write_bytes(target.read_bytes()[:5000])
    assert_told(study("predict", tmp_path / "text.onnx", image, *out), "text.onnx", "not an ONNX file")
    assert_told(study("predict", tmp_path / "short.onnx", image, *out), "short.onnx", "export the detector again")
    assert_told(study("predict", "nothing.onnx", image, *out), "nothing.onnx", "no such file")
    assert_told(study("predict", target, image, "--device", "cuda:0", *out), "runs on the CPU")
    assert not (tmp_path / "out").exists()


def test_without_the_extra_both_commands_say_how_to_get_it(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, image = exported(here, "onnx"), tmp_path / "x.png"
    Image.new("RGB", (64, 64)).save(image)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    hint = "pip install 'anomaly-studies[export]'"
    assert_told(study("export", "tiny", "--format", "onnx", "--out", tmp_path / "x.onnx"), hint)
    assert_told(study("predict", target, image), hint)
    assert not (tmp_path / "x.onnx").exists()
