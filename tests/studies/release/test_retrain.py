"""Retraining: only images that the study does not have, a threshold from new ones alone, and a line where it jumps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.backbones.pyramid import build_backbone
from detectors.base import PATIENCE, Detector, FitContext
from detectors.data.samples import Sample
from detectors.data.splits import stable_order
from detectors.errors import InputError
from detectors.features import Features
from detectors.heads.padim.head import Padim
from detectors.runtime.artifact import Artifact, load_artifact
from detectors.scoring.operating_point import Threshold
from studies.file import datasets
from studies.file.config import StudyConfig
from studies.home import Home
from studies.release import retrain as module
from studies.release.retrain import Retrained, retrain
from tests.helpers.builders import make_config, paper_config
from tests.helpers.widgets import draw_widget

CPU = torch.device("cpu")
SIZE = (64, 64)


class Recording(Padim):
    """PaDiM that keeps what its last fit was told."""

    contexts: list[FitContext] = []  # noqa: RUF012

    def fit(self, features: Features, context: FitContext) -> Recording:
        super().fit(features, context)
        self.contexts.append(context)
        return self


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def new_folder(tmp_path: Path) -> Path:
    """Twenty new images, of which four are held out."""
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(draw_widget(900 + number)[0]).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def champion(tiny_mvtec: Path, home: Home) -> Artifact:
    """Fitted on train, with a threshold from validation."""
    splits = datasets.load(make_config(tiny_mvtec), home).parts[0].splits
    detector = Detector(build_backbone("pixels", (1,)), Recording(n_features=3), image_size=SIZE)
    detector.fit(splits.train.images(), FitContext())
    assert splits.validation is not None
    scores = detector(splits.validation.images()).scores.numpy()
    normals = np.sort(scores[splits.validation.labels == 0]).astype(np.float64)
    detector.threshold = Threshold(float(normals[-1]), "false_alarm_rate", "validation", len(normals), rate=0.01)
    return Artifact(detector, normals, {"trial": 3, "warnings": ["of an earlier fit"]})


def fitted(champion: Artifact, config: StudyConfig, home: Home, images: Path | None, **options: Any) -> Retrained:
    view: Any = SimpleNamespace(config=config, header=SimpleNamespace(identity={}))
    return retrain(champion, view, "", home, images=images, device=CPU, **{"only_new": False, **options})


def held_out(folder: Path) -> list[Path]:
    samples = [Sample(key=f"new/{path.name}", file=path) for path in sorted(folder.iterdir())]
    return sorted(sample.file for sample in stable_order(samples)[4::5])


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        fitted(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- which images


def as_png(source: Path, target: Path) -> None:
    Image.open(source).save(target, compress_level=1)


def as_bmp(source: Path, target: Path) -> None:
    Image.open(source).save(target.with_suffix(".bmp"))


@pytest.mark.parametrize("save", [as_png, as_bmp])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_an_image_of_the_study_saved_anew_is_refused_with_both_files(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path, part: str, save: Callable[[Path, Path], None]
) -> None:
    config = make_config(tiny_mvtec)
    splits = datasets.load(config, home).parts[0].splits
    image_set = next(image_set for image_set in splits.sets if image_set.name == part)
    twins = [sample.file for sample in image_set.samples if not sample.label][:3]
    for index, twin in enumerate(twins):
        save(twin, new_folder / f"a{index}.png")
    message = refusal(champion, config, home, new_folder)
    assert f"is the same image as {twins[0]}, {part} of the study" in message
    assert str(new_folder / "a0") in message
    assert "(2 more of the new images are in the study too)" in message


def test_a_labelled_image_of_no_set_is_refused_too(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    """Protocol synthetic uses no labelled images; one of a known defect is no good part all the same."""
    defect = next((tiny_mvtec / "widget" / "test" / "dent").glob("*.png"))
    as_bmp(defect, new_folder / "defect.bmp")
    message = refusal(champion, make_config(tiny_mvtec, protocol="synthetic"), home, new_folder)
    assert f"is the same image as {defect}, a labelled image of the study" in message


def test_a_test_image_saved_as_jpeg_is_a_warning(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    config = make_config(tiny_mvtec)
    judged = datasets.load(config, home).parts[0].splits.test.samples[0]
    Image.open(judged.file).convert("RGB").save(new_folder / "again.jpg", quality=85)
    outcome = fitted(champion, config, home, new_folder)
    assert any("nearly the same" in warning and f"again.jpg ({judged.key})" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("count", [1, 4, 14])
def test_too_few_new_images_are_told_with_how_many_it_takes(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path, count: int
) -> None:
    for path in sorted(new_folder.iterdir())[max(count, 2) :]:
        path.unlink()
    if count == 1:  # the second one is a copy
        first, second = sorted(new_folder.iterdir())
        as_bmp(first, second)
        second.unlink()
    message = refusal(champion, make_config(tiny_mvtec), home, new_folder)
    assert f"{count} new images that differ are too few, give at least 15" in message
    assert "a false-alarm rate of 0.01 (threshold.rate) needs 495" in message


def test_fifteen_are_enough(champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path) -> None:
    for path in sorted(new_folder.iterdir())[15:]:
        path.unlink()
    outcome = fitted(champion, make_config(tiny_mvtec), home, new_folder)
    assert (outcome.new, outcome.held_out) == (15, 3)


def test_no_copy_of_a_held_out_image_is_fitted(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    for index, path in enumerate(sorted(new_folder.iterdir())):
        as_bmp(path, new_folder / f"copy {index}.bmp")
    part = datasets.load(make_config(tiny_mvtec), home).parts[0]
    new = module.read_new_images(new_folder, part, home, rate=0.01)
    pixels = [{Image.open(sample.file).tobytes() for sample in side} for side in (new.fitted, new.held_out)]
    assert (len(new), len(new.held_out)) == (40, 8)
    assert not pixels[0] & pixels[1]


# --- the threshold


def test_the_threshold_rests_on_held_out_new_images_alone(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    outcome = fitted(champion, make_config(tiny_mvtec), home, new_folder)
    artifact = load_artifact(outcome.folder)
    images = [artifact.resize(np.asarray(Image.open(path).convert("RGB"))) for path in held_out(new_folder)]
    scores = np.sort(artifact.predict(torch.cat(images)).scores.numpy())
    assert outcome.held_out == len(scores) == 4
    np.testing.assert_allclose(artifact.normal_scores, scores, rtol=1e-5)
    threshold = artifact.threshold
    assert threshold is not None
    assert (threshold.normals, threshold.source) == (4, "new images")
    assert threshold.value == pytest.approx(scores[-1], rel=1e-5)
    assert threshold.pixel is not None
    (support,) = [warning for warning in outcome.warnings if "rests on" in warning]
    assert "4 held-out new images, from which a false-alarm rate of 20.0% is to be expected" in support
    assert "needs 495 new images" in support
    assert artifact.provenance["warnings"] == list(outcome.warnings)
    assert "of an earlier fit" not in outcome.warnings
    # Nothing is fitted twice, and what was warned of is told again.
    before = len(Recording.contexts)
    assert fitted(champion, make_config(tiny_mvtec), home, new_folder) == outcome
    assert len(Recording.contexts) == before


def test_f1_max_takes_its_defects_from_validation_and_good_images_from_the_new_ones(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    config = make_config(tiny_mvtec, threshold={"rule": "f1_max"})
    validation = datasets.load(config, home).parts[0].splits.validation
    assert validation is not None
    threshold = load_artifact(fitted(champion, config, home, new_folder).folder).threshold
    assert threshold is not None
    assert (threshold.normals, threshold.defective) == (4, int(validation.labels.sum()))


def test_without_new_images_the_threshold_rests_on_validation(champion: Artifact, tiny_mvtec: Path, home: Home) -> None:
    outcome = fitted(champion, make_config(tiny_mvtec), home, None)
    artifact = load_artifact(outcome.folder)
    assert artifact.threshold is not None
    assert (artifact.threshold.source, artifact.threshold.normals) == ("validation", len(champion.normal_scores))
    assert outcome.warnings == ()


def test_one_spoilt_image_is_named_where_it_makes_the_threshold_jump(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    plain = fitted(champion, make_config(tiny_mvtec), home, new_folder)
    assert not any("jumped" in warning for warning in plain.warnings)
    victim = held_out(new_folder)[0]
    pixels = np.asarray(Image.open(victim).convert("RGB"))
    Image.fromarray(255 - pixels).save(victim)
    outcome = fitted(champion, make_config(tiny_mvtec), home, new_folder)
    (jump,) = [warning for warning in outcome.warnings if "jumped" in warning]
    assert f"one image alone decides it, {victim}: without it" in jump


def threshold(value: float, **fields: Any) -> Threshold:
    return Threshold(value, "false_alarm_rate", "new images", 6, **fields)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (10.0, None),
        (12.9, None),
        (15.0, None),  # as far above the threshold as that is above the median of 10
        (18.1, "further above the champion's than that is above 10"),
        (9.9, "below 10, the median of the champion's good images"),
    ],
)
def test_what_counts_as_a_jump(champion: Artifact, value: float, words: str | None) -> None:
    champion.detector.threshold = threshold(14.0)
    jump = module._jump(threshold(value), replace(champion, normal_scores=np.array([8.0, 9.0, 10.0, 11.0, 13.0])))
    assert jump is None if words is None else jump is not None and words in jump


def test_a_champion_without_scores_or_threshold_gives_no_scale(champion: Artifact) -> None:
    champion.detector.threshold = threshold(14.0)
    assert module._jump(threshold(1e6), replace(champion, normal_scores=np.empty(0))) is None
    assert module._jump(threshold(1e6), replace(champion, normal_scores=np.array([15.0, 16.0]))) is None
    champion.detector.threshold = None
    assert module._jump(threshold(1e6), champion) is None


# --- the fit


def test_the_fit_is_validated_and_knows_where_weights_are(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path, tmp_path: Path
) -> None:
    fitted(champion, make_config(tiny_mvtec), home, new_folder, weights_dir=tmp_path)
    context = Recording.contexts[-1]
    assert context.weights_dir == tmp_path
    assert context.validate is not None
    assert 0 <= context.validate() <= 1


def test_without_labelled_images_there_is_no_validation_and_a_training_is_told_so(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    class Training(Recording):
        searchable = (*Recording.searchable, PATIENCE)

        def __init__(self, *, patience: int = 0, **settings: Any) -> None:
            super().__init__(**settings)

    lines: list[str] = []
    fitted(champion, paper_config(tiny_mvtec), home, new_folder, tell=lines.append)
    assert Recording.contexts[-1].validate is None
    assert not any("to validate on" in line for line in lines)
    champion.detector.head.__class__ = Training
    champion.detector.head._settings["patience"] = 5
    fitted(champion, paper_config(tiny_mvtec), home, new_folder, only_new=True, tell=lines.append)
    assert any(line.startswith("no labelled images to validate on") for line in lines)


def test_other_weights_of_a_network_than_the_studys_are_refused(
    champion: Artifact, tiny_mvtec: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.catalog, "networks", lambda head, settings: ["resnet18@random"])
    view: Any = SimpleNamespace(
        config=make_config(tiny_mvtec), header=SimpleNamespace(identity={"networks": {"resnet18@random": "0" * 64}})
    )
    with pytest.raises(InputError, match=r"network resnet18@random: the weights on this machine are not those"):
        retrain(champion, view, "", home, images=None, only_new=False, device=CPU)
