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

from detectors.backbones.pyramid import Backbone, build_backbone
from detectors.base import PATIENCE, FitContext
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.features import Features
from detectors.heads.padim.head import Padim
from detectors.runtime.artifact import Artifact, load_artifact
from detectors.scoring.operating_point import Threshold
from studies.file import datasets
from studies.file.config import StudyConfig
from studies.home import Home
from studies.release import fit_again
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
    """Twenty new images."""
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(draw_widget(900 + number)[0]).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def champion(tiny_mvtec: Path, home: Home) -> Artifact:
    return make_champion(tiny_mvtec, home, build_backbone("pixels", (1,)), n_features=3)


def make_champion(root: Path, home: Home, backbone: Backbone, *, n_features: int) -> Artifact:
    """Fitted on train, with a threshold from validation."""
    splits = datasets.load(make_config(root), home).parts[0].splits
    detector = Detector(backbone, Recording(n_features=n_features), image_size=SIZE)
    detector.fit(splits.train.images(), FitContext())
    assert splits.validation is not None
    scores = detector(splits.validation.images()).scores.numpy()
    normals = np.sort(scores[splits.validation.labels == 0]).astype(np.float64)
    detector.threshold = Threshold(float(normals[-1]), "false_alarm_rate", "validation", len(normals), rate=0.01)
    return Artifact(detector, normals, {"trial": 3, "warnings": ["of an earlier fit"]})


def fitted(champion: Artifact, config: StudyConfig, home: Home, images: Path | None, **options: Any) -> Retrained:
    view: Any = SimpleNamespace(
        config=config, header=SimpleNamespace(identity={}), threshold_section=lambda number, product: config.threshold
    )
    return retrain(champion, view, "", home, images=images, device=CPU, **{"only_new": False, **options})


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


@pytest.mark.parametrize(("folds", "few", "least", "needed"), [(None, 1, 4, 99), (None, 3, 4, 99), (0, 19, 20, 495)])
def test_too_few_new_images_are_told_with_how_many_it_takes(
    champion: Artifact,
    tiny_mvtec: Path,
    home: Home,
    new_folder: Path,
    folds: int | None,
    few: int,
    least: int,
    needed: int,
) -> None:
    config = make_config(tiny_mvtec, threshold={"folds": folds})
    for path in sorted(new_folder.iterdir())[few:]:
        path.unlink()
    as_bmp(new_folder / "000.png", new_folder / "copy.bmp")  # which counts once
    message = refusal(champion, config, home, new_folder)
    assert f"{few} new images that differ are too few for a threshold, give at least {least}" in message
    assert f"a false-alarm rate of 0.01 (threshold.rate) needs {needed}" in message


@pytest.mark.parametrize(("folds", "count", "rests_on"), [(None, 4, 4), (2, 5, 5), (0, 20, 4), (4, 20, 20)])
def test_the_fewest_are_enough(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path, folds: int | None, count: int, rests_on: int
) -> None:
    for path in sorted(new_folder.iterdir())[count:]:
        path.unlink()
    outcome = fitted(champion, make_config(tiny_mvtec, threshold={"folds": folds}), home, new_folder)
    assert (outcome.new, outcome.held_out) == (count, rests_on)


@pytest.mark.parametrize("folds", [None, 0])
def test_no_copy_of_an_image_that_is_scored_was_fitted(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path, folds: int | None
) -> None:
    for index, path in enumerate(sorted(new_folder.iterdir())):
        as_bmp(path, new_folder / f"copy {index}.bmp")
    config = make_config(tiny_mvtec, threshold={"folds": folds})
    part = datasets.load(config, home).parts[0]
    new = module.read_new_images(new_folder, part, home)
    train = replace(part.splits.train, samples=(*part.splits.train.samples, *new.samples))
    known = len(part.splits.train)
    parts = module._parts(champion.detector, train, new, config.threshold, new_folder)
    assert sum(len(one.held_out) for one in parts) == (8 if folds == 0 else 40)
    for one in parts:
        pixels = [
            {Image.open(train.samples[index].file).tobytes() for index in side} for side in (one.fitted, one.held_out)
        ]
        assert not pixels[0] & pixels[1]
        assert set(range(known)) <= set(one.fitted)
        assert min(one.held_out) >= known


# --- the threshold


def test_the_threshold_rests_on_the_new_images_alone_each_scored_by_a_fit_without_it(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    outcome = fitted(champion, make_config(tiny_mvtec), home, new_folder)
    artifact = load_artifact(outcome.folder)
    images = [artifact.resize(np.asarray(Image.open(path).convert("RGB"))) for path in sorted(new_folder.iterdir())]
    of_the_fit = artifact.predict(torch.cat(images)).scores.numpy()
    assert outcome.held_out == len(artifact.normal_scores) == 20
    assert artifact.normal_scores.mean() > of_the_fit.mean()  # which knows them
    threshold = artifact.threshold
    assert threshold is not None
    assert (threshold.normals, threshold.source) == (20, "new images in 10 folds")
    assert threshold.value == pytest.approx(artifact.normal_scores[-1], rel=1e-5)
    assert threshold.pixel is not None
    (support,) = [warning for warning in outcome.warnings if "rests on" in warning]
    assert (
        "20 new images, from which a false-alarm rate of 4.8% is to be expected; 0.01 (threshold.rate) needs 99"
        in support
    )
    assert artifact.provenance["warnings"] == list(outcome.warnings)
    assert "of an earlier fit" not in outcome.warnings
    # Nothing is fitted twice, and what was warned of is told again.
    before = len(Recording.contexts)
    assert fitted(champion, make_config(tiny_mvtec), home, new_folder) == outcome
    assert len(Recording.contexts) == before


def test_without_folds_a_part_is_left_out_of_the_only_fit(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    before = len(Recording.contexts)
    outcome = fitted(champion, make_config(tiny_mvtec, threshold={"folds": 0}), home, new_folder)
    assert len(Recording.contexts) == before + 1
    artifact = load_artifact(outcome.folder)
    assert artifact.threshold is not None
    assert (artifact.threshold.normals, artifact.threshold.source) == (4, "new images left out of the fit")
    images = [artifact.resize(np.asarray(Image.open(path).convert("RGB"))) for path in sorted(new_folder.iterdir())]
    scores = artifact.predict(torch.cat(images)).scores.numpy()
    assert np.isclose(artifact.normal_scores[:, None], scores, rtol=1e-4).any(axis=1).all()


@pytest.mark.parametrize(
    "section",
    [{"rule": "f1_max"}, {"rule": "cost", "cost_miss": 100, "cost_alarm": 1, "share_defective": 0.01}],
    ids=lambda section: section["rule"],
)
def test_a_rule_takes_its_defects_from_validation_and_good_images_from_the_new_ones(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path, section: dict[str, Any]
) -> None:
    config = make_config(tiny_mvtec, threshold=section)
    validation = datasets.load(config, home).parts[0].splits.validation
    assert validation is not None
    threshold = load_artifact(fitted(champion, config, home, new_folder).folder).threshold
    assert threshold is not None
    assert (threshold.rule, threshold.normals, threshold.defective) == (
        section["rule"],
        20,
        int(validation.labels.sum()),
    )


def test_a_given_value_belongs_to_the_champion_and_is_not_taken_over(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    outcome = fitted(champion, make_config(tiny_mvtec, threshold={"rule": "value", "value": 1.5}), home, new_folder)
    threshold = load_artifact(outcome.folder).threshold
    assert threshold is not None
    assert threshold.rule == "false_alarm_rate"
    assert any(warning.startswith("threshold.rule value is not used") for warning in outcome.warnings)


def test_without_new_images_the_threshold_rests_on_validation(champion: Artifact, tiny_mvtec: Path, home: Home) -> None:
    outcome = fitted(champion, make_config(tiny_mvtec), home, None)
    artifact = load_artifact(outcome.folder)
    assert artifact.threshold is not None
    assert (artifact.threshold.source, artifact.threshold.normals) == ("validation", len(champion.normal_scores))
    assert outcome.warnings == ()


def test_one_spoilt_image_is_named_where_it_makes_the_threshold_jump(
    tiny_mvtec: Path, home: Home, new_folder: Path
) -> None:
    champion = make_champion(tiny_mvtec, home, build_backbone("resnet18@random", (8, 16)), n_features=12)
    victim = new_folder / "007.png"
    pixels = np.asarray(Image.open(victim).convert("RGB"))
    Image.fromarray(255 - pixels).save(victim)
    outcome = fitted(champion, make_config(tiny_mvtec), home, new_folder)
    assert any("the threshold jumped from" in warning for warning in outcome.warnings)
    assert any(
        f"one image alone decides the threshold, {victim}: without it" in warning for warning in outcome.warnings
    )


def threshold(value: float, **fields: Any) -> Threshold:
    return Threshold(value, "false_alarm_rate", "new images", 6, **fields)


@pytest.mark.parametrize(
    ("old", "value", "words"),
    [
        (14.0, 10.0, None),
        (14.0, 12.9, None),
        (14.0, 18.0, None),  # twice as far above the median of 10 as the threshold
        (14.0, 18.1, "more than twice as far above 10, the median"),
        (14.0, 9.9, "below 10, the median of the champion's good images"),
        (11.0, 16.0, None),  # where the highest good image, 13, is above the threshold, that counts
        (11.0, 16.1, "more than twice as far above 10, the median"),
        (9.0, 9.5, None),  # the champion stopped every second part itself
        (9.0, 8.9, "below 10, the median of the champion's good images"),
    ],
)
def test_what_counts_as_a_jump(champion: Artifact, old: float, value: float, words: str | None) -> None:
    champion.detector.threshold = threshold(old)
    jump = module._jump(threshold(value), replace(champion, normal_scores=np.array([8.0, 9.0, 10.0, 11.0, 13.0])))
    assert jump is None if words is None else jump is not None and words in jump


def test_a_champion_without_scores_or_threshold_gives_no_scale(champion: Artifact) -> None:
    champion.detector.threshold = threshold(14.0)
    assert module._jump(threshold(1e6), replace(champion, normal_scores=np.empty(0))) is None
    champion.detector.threshold = None
    assert module._jump(threshold(1e6), champion) is None


# --- the fit


def test_the_fit_is_validated_and_knows_where_weights_are(
    champion: Artifact, tiny_mvtec: Path, home: Home, new_folder: Path, tmp_path: Path
) -> None:
    fitted(champion, make_config(tiny_mvtec), home, new_folder, weights_dir=tmp_path)
    context, *twins = Recording.contexts[-11:]
    assert [one.weights_dir for one in (context, *twins)] == [tmp_path] * 11
    assert context.validate is not None
    assert 0 <= context.validate() <= 1
    assert not any(twin.validate for twin in twins)


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
    monkeypatch.setattr(fit_again.catalog, "networks", lambda head, settings: ["resnet18@random"])
    config = make_config(tiny_mvtec)
    view: Any = SimpleNamespace(
        config=config,
        header=SimpleNamespace(identity={"networks": {"resnet18@random": "0" * 64}}),
        threshold_section=lambda number, product: config.threshold,
    )
    with pytest.raises(InputError, match=r"network resnet18@random: the weights on this machine are not those"):
        retrain(champion, view, "", home, images=None, only_new=False, device=CPU)
