"""Detectors from Python: what they take, what they refuse, what they say."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import studies
from studies.api.predictions import write_predictions
from studies.search import threshold_words


@pytest.fixture
def detector(here: Path) -> studies.Predictor:
    return studies.load_detector("tiny", device="cpu")


def test_an_image_is_judged_alike_however_it_is_given(detector: studies.Predictor) -> None:
    image = Image.open("part.png")
    pixels = np.asarray(image)
    results = [detector.predict(source) for source in ("part.png", Path("part.png"), image, pixels)]
    results += detector.predict(["part.png", image, pixels])
    assert np.ptp([result.score for result in results]) < 1e-5
    result = results[0]
    assert result.threshold is not None
    assert result.verdict == ("defective" if result.score >= result.threshold else "good")
    assert 0 <= (result.normals_below or 0) <= 1
    height, width = pixels.shape[:2]
    assert (result.heat_map.shape, result.heat_map.dtype) == ((height, width), np.float32)
    assert (result.overlay.shape, result.overlay.dtype) == ((height, width, 3), np.uint8)
    np.testing.assert_array_equal(result.image, pixels)


def test_a_result_shows_the_image_that_was_judged_when_its_buffer_is_written_to_again(
    detector: studies.Predictor,
) -> None:
    frame = np.array(Image.open("part.png"))
    before = frame.copy()
    results = [detector.predict(frame), detector.predict([frame])[0]]
    frame[:] = 0
    for result in results:
        np.testing.assert_array_equal(result.image, before)


def test_a_file_is_read_once_and_may_go_away(
    detector: studies.Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [Path(shutil.copy("part.png", tmp_path / f"{number}.png")) for number in range(2)]
    judge = studies.Predictor.judge

    def judge_and_lose(predictor: studies.Predictor, image: Path) -> studies.Result:
        result = judge(predictor, image)
        image.unlink()
        return result

    monkeypatch.setattr(studies.Predictor, "judge", judge_and_lose)
    predictions = write_predictions(detector, files, tmp_path / "out")
    assert predictions.failed == []
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_a_folder_and_a_list_give_results_in_order(detector: studies.Predictor) -> None:
    results = detector.predict("parts/dent")
    assert len(results) == 6
    assert [Path(result.name).name for result in results] == [f"{index:02d}.png" for index in range(6)]
    table = results.table
    assert list(table.columns) == ["image", "score", "verdict", "normals_below", "threshold"]
    assert list(table.score) == [result.score for result in results]
    assert len(results[:2]) == 2
    assert len(detector.predict([])) == 0
    many = detector.predict(["part.png"] * 11)
    assert len({round(result.score, 4) for result in many}) == 1


def test_images_of_other_sizes_and_gray(detector: studies.Predictor) -> None:
    wide, gray = np.full((50, 130, 3), 90, np.uint8), np.full((50, 130), 90, np.uint8)
    first, second = detector.predict([wide, gray])
    assert first.score == second.score
    assert first.heat_map.shape == (50, 130)
    rgba = Image.fromarray(wide).convert("RGBA")
    assert detector.predict(rgba).score == first.score


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((64, 64, 3)), "the image: an array of float64; give uint8"),
        (np.zeros((64, 64, 3), np.uint16), "an array of uint16"),
        (np.zeros((64, 64, 4), np.uint8), "an array of 64 x 64 x 4; give"),
        (np.zeros((3, 64, 64), np.uint8), "an array of 3 x 64 x 64"),
        (np.zeros((2, 64, 64, 3), np.uint8), "an array of 2 x 64 x 64 x 3"),
        (np.zeros(64, np.uint8), "an array of 64; give"),
        (np.zeros((0, 0, 3), np.uint8), "too small"),
        (np.zeros((4, 4000, 3), np.uint8), "too small"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), "limit of 100 megapixels"),
        ("nowhere.png", "nowhere.png: no such file"),
        ("tiny.yaml", "not a readable image"),
        (["part.png", 7], "image 1: int is no image"),
        (7, "int is no image"),
        (Image.new("F", (64, 64)), "float images"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(detector: studies.Predictor, source: Any, words: str) -> None:
    with pytest.raises(studies.InputError, match=words) as caught:
        detector.predict(source)
    assert "\n" not in str(caught.value)


def test_a_notebook_shows_results(detector: studies.Predictor, here: Path, tmp_path: Path) -> None:
    place = tmp_path / "<b>part.png"
    place.write_bytes((here / "part.png").read_bytes())
    result = detector.predict(place)
    assert Image.open(io.BytesIO(result._repr_png_())).height == result.image.shape[0]
    for page in (result._repr_html_(), detector.predict([place])._repr_html_()):
        assert "data:image/png;base64," in page
        assert "<b>" not in page
        assert "&lt;b&gt;part.png" in page
    page = detector._repr_html_()
    limit = detector.threshold
    assert limit is not None
    assert threshold_words.basis(limit) in page
    # A rate that the few good images cannot promise is not told as if they did.
    assert not limit.supports_rate
    assert threshold_words.shortfall(limit) in page
    assert "at most" not in page


def test_detectors_are_found_by_study_and_folder(detector: studies.Predictor, here: Path) -> None:
    study = studies.open_study("tiny")
    score = detector.predict("part.png").score
    assert study.detector().predict("part.png").score == score
    best = study.best
    assert best is not None
    folder = here / "home" / "trials" / study.folder.name / "final" / f"{best.number:05d}" / "detector"
    assert studies.load_detector(folder).predict("part.png").score == score
    for name, words in (
        ("tinny", "did you mean tiny"),
        ("tiny/cap", "'tiny/cap' is no detector"),
        ("parts", "no detector"),
    ):
        with pytest.raises(studies.InputError, match=words):
            studies.load_detector(name)
    with pytest.raises(studies.InputError, match="cuda:99"):
        studies.load_detector("tiny", device="cuda:99")


@pytest.mark.slow
def test_an_exported_file_judges_alike(detector: studies.Predictor, here: Path, tmp_path: Path) -> None:
    export = studies.export_model("tiny", "onnx", tmp_path / "tiny.onnx", images="parts")
    assert export.size_mb > 0.1
    assert export.to_dict()["source"] == "parts"
    onnx = studies.load_detector(export.file)
    assert onnx.predict("part.png").score == pytest.approx(detector.predict("part.png").score, rel=1e-3)
    with pytest.raises(studies.InputError, match="runs on the CPU"):
        studies.load_detector(export.file, device="cuda")
