"""One trial, run in this process: what it may see, what it leaves, and that it repeats."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors import catalog
from detectors.backbones.bundled import SMALLEST
from detectors.backbones.pyramid import weights_identity
from detectors.base import FitContext
from detectors.data import samples
from detectors.data.copies import content_groups
from detectors.data.samples import ImageSet
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.features import Features
from detectors.heads.padim.head import Padim
from detectors.heads.patchcore import shared_work as patchcore_work
from detectors.runtime.artifact import load_artifact
from detectors.scoring.metrics import auroc
from detectors.scoring.operating_point import Threshold
from studies.file import yaml_file
from studies.file.config import validate
from studies.file.sections import ThresholdConfig
from studies.home import Home
from studies.search.plan import Plan
from studies.search.samplers import derive_seed
from studies.worker import fitting, products, trial
from studies.worker.calibration import read_calibration
from studies.worker.epochs import halves
from studies.worker.feature_store import FeatureStore
from studies.worker.jobs import (
    ARTIFACTS,
    CHECKPOINTS,
    DETECTOR,
    RESULT_FILE,
    Event,
    Job,
    Stage,
    TrialResult,
    read_result,
)
from studies.worker.ledger import read_ledger
from studies.worker.out_of_fold import divide
from studies.worker.scores import GALLERY, read_scores
from studies.worker.trial import run_job
from tests.helpers.builders import BACKBONE, PARAMS, build_job, build_plan, make_config, paper_config, repeatable

UID = "0123456789ab"


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed itself is measured elsewhere."""
    monkeypatch.setattr("detectors.runtime.latency.MIN_SECONDS", 0.0)
    monkeypatch.setattr("detectors.runtime.latency.MIN_RUNS", 2)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A job leaves the number of threads as it was."""
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


@pytest.fixture
def plan(tiny_mvtec: Path, tmp_path: Path) -> Plan:
    return build_plan(make_config(tiny_mvtec), tmp_path / "home")


def forget() -> None:
    """What a worker process keeps between jobs."""
    for kept in (products._cached_images, fitting._backbone, fitting.masks_of):
        kept.cache_clear()


def scores_of(result: TrialResult) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if name.startswith(("val/", "test/"))}


# --- a trial


def test_a_trial_is_scored_on_validation_alone(plan):
    job = build_job(plan, 3)
    result = run_job(job)
    assert (result.task, result.study_uid, result.number, result.attempt) == ("trial", UID, 3, 1)
    assert result.params == job.params
    names = {f"val/{name}" for name in ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_aupro")}
    assert names | {"val/image_auroc/dent", "fps", "latency_ms_p50", "model_size_mb", "train_seconds"} <= set(
        result.metrics
    )
    assert not [name for name in result.metrics if name.startswith("test/")]
    assert result.metrics["val/image_auroc"] > 0.9
    assert result.per_defect == {"dent": result.metrics["val/image_auroc/dent"]}
    assert result.undefined == {}
    threshold = Threshold.from_json(result.threshold)
    assert (threshold.source, threshold.normals, threshold.out_of_fold) == ("validation", 6, 0)
    assert not threshold.supports_rate
    assert result.metrics["val/image_recall"] == result.metrics["val/image_recall/dent"] > 0.5
    assert result.metrics["val/false_alarm_rate"] == 0.0
    assert result.backbone == weights_identity(BACKBONE).to_json()
    assert result.started < result.finished
    assert result.environment["device"] == "cpu"
    assert read_ledger(plan.home.ledger(UID)) == []


def test_a_trial_of_another_image_size_is_counted_at_the_studys_pixels(plan, monkeypatch):
    seen = []
    original = trial.evaluate

    def spied(**given):
        seen.append((tuple(given["maps"].shape[1:]), tuple(given["masks"].shape[1:])))
        return original(**given)

    monkeypatch.setattr(trial, "evaluate", spied)
    usual = run_job(build_job(plan, 1))
    same = run_job(build_job(plan, 2, params={"image_size": 64}))
    assert scores_of(same) == scores_of(usual)
    job = build_job(plan, 3, params={"image_size": "96x128"}, task="final")
    final = run_job(job)
    assert seen == [((64, 64), (64, 64))] * 3
    assert final.metrics["test/image_auroc"] > 0.9
    assert final.metrics["test/pixel_auroc"] > 0.9
    # The detector that is left takes images of the trial's size.
    assert load_artifact(job.path / DETECTOR).detector.image_size == (96, 128)
    # What a person reads of the study is the study's.
    assert validate(job.config, source="job") == plan.config


def test_what_a_trial_leaves_in_its_folder(plan):
    job = build_job(plan, 3)
    result = run_job(job)
    assert read_result(job.path) == result
    assert {path.name for path in job.path.iterdir()} == {RESULT_FILE, ARTIFACTS}
    artifacts = job.path / ARTIFACTS
    names = {"config.yaml", "heatmaps", "metrics.json", "pr.png", "roc.png", "validation_scores.json"}
    assert {path.name for path in artifacts.iterdir()} == names
    resolved = yaml_file.read(artifacts / "config.yaml")
    assert resolved.pop("trial") == {"number": 3, "seed": job.seed, **job.params}
    assert validate(resolved, source="config.yaml") == plan.config
    assert TrialResult.model_validate_json((artifacts / "metrics.json").read_bytes()) == result
    keys = {sample.key.removesuffix(".png").replace("/", "-") for sample in plan.splits.validation.samples}
    images = sorted(path.stem for path in (artifacts / "heatmaps").iterdir())
    assert len(images) == trial.HEAT_MAPS
    for rank, name in enumerate(images, start=1):
        found_rank, _, rest = name.partition("-")
        verdict = next(word for word in ("miss", "false-alarm", "hit", "good") if rest.startswith(f"{word}-"))
        assert int(found_rank) == rank
        assert rest.removeprefix(f"{verdict}-") in keys


def test_stages_are_told_and_timed(plan):
    events: list[Event] = []
    result = run_job(build_job(plan, 3, attempt=2), events.append)
    assert all(isinstance(event, Stage) and (event.number, event.attempt) == (3, 2) for event in events)
    assert list(dict.fromkeys(event.name for event in events)) == list(result.seconds)
    train = [(event.done, event.total) for event in events if event.name == "features (train)"]
    assert train[0] == (0, 0)
    assert train[-1] == (24, 24)


def test_the_same_job_gives_the_same_result(plan, tmp_path):
    first = run_job(build_job(plan, 3))
    again = run_job(build_job(plan, 3, folder=tmp_path / "again"))
    forget()
    elsewhere = build_job(plan, 3, folder=tmp_path / "elsewhere", home=str(tmp_path / "other home"))
    anew = run_job(elsewhere)
    assert repeatable(first.metrics) == repeatable(again.metrics) == repeatable(anew.metrics)
    assert (first.params, first.backbone, first.per_defect) == (anew.params, anew.backbone, anew.per_defect)


def test_a_trial_computes_the_features_of_all_its_study_asks_for(plan, tiny_mvtec, tmp_path):
    config = make_config(
        tiny_mvtec,
        search={"layers": {"choices": [[8, 16], [16, 32]]}},
        fixed={"backbone": BACKBONE, "smoothing_sigma": 2.0},
    )
    wide = build_plan(config, tmp_path / "home")
    run_job(build_job(wide, 0))
    store = FeatureStore(wide.home.features)
    assert len(store.entries()) == 2 * 3  # train and validation at strides 8, 16, 32
    events: list[Event] = []
    result = run_job(build_job(wide, 1, params={"layers": [16, 32]}), events.append)
    assert not [event for event in events if isinstance(event, Stage) and event.total]
    # Layers from the store give what the layers alone give.
    alone = run_job(
        build_job(
            wide, 1, params={"layers": [16, 32]}, strides=(16, 32), home=str(tmp_path / "b"), folder=tmp_path / "c"
        )
    )
    assert repeatable(result.metrics) == repeatable(alone.metrics)


def test_the_seconds_of_a_fit_are_those_from_scratch_whoever_did_the_work(tiny_mvtec, tmp_path, monkeypatch):
    search = {"coreset_ratio": {"choices": [0.05, 0.1]}}
    fixed = {"layers": [8, 16], "backbone": BACKBONE}
    plan = build_plan(make_config(tiny_mvtec, detector="patchcore", search=search, fixed=fixed), tmp_path / "home")
    settings = {name: parameter.default for name, parameter in catalog.parameters("patchcore").items()}
    job = build_job(plan, 1, params=settings | {"coreset_ratio": 0.1})
    greedy = patchcore_work.greedy_k_center

    def slow(*args: Any, **settings: Any) -> Any:
        time.sleep(1.0)
        return greedy(*args, **settings)

    monkeypatch.setattr(patchcore_work, "greedy_k_center", slow)
    first = run_job(job)
    second = run_job(replace(job, number=2, folder=f"{job.folder}-2"))
    assert second.metrics["head/coreset_new_picks"] == 0
    assert first.metrics["train_seconds"] >= 1.0
    assert second.metrics["train_seconds"] >= 1.0
    # What was spent here stays what it was.
    assert second.seconds["fit"] < 1.0 <= first.seconds["fit"]


def test_no_figure_of_a_trial_is_that_of_the_epoch_which_it_chose(plan, monkeypatch):
    fit, score, values = Padim.fit, Padim.score, []

    def noise(epoch: int, images: int) -> torch.Tensor:
        return torch.randn(images, generator=torch.Generator().manual_seed(epoch))

    def fit_over_epochs(head: Padim, features: Features, context: FitContext) -> Padim:
        fit(head, features, context)
        for head.epoch in range(1, 41):
            values.append(context.validate())
        head.epoch = int(np.argmax(values)) + 1
        return head

    def score_by_chance(head: Padim, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
        return score(head, features)[0], noise(head.epoch, len(features))

    monkeypatch.setattr(Padim, "fit", fit_over_epochs)
    monkeypatch.setattr(Padim, "score", score_by_chance)
    result = run_job(build_job(plan, 3))
    validation = plan.splits.validation
    half = halves(validation)
    crossed = torch.empty(len(validation))
    for side in (0, 1):
        measured = [auroc(noise(e, len(half))[half == side], validation.labels[half == side]) for e in range(1, 41)]
        scores = noise(int(np.argmax(measured)) + 1, len(half)).numpy()
        low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75))
        crossed[half != side] = torch.from_numpy((scores - middle) / (high - low))[half != side].float()
    assert result.metrics["val/image_auroc"] == pytest.approx(auroc(crossed.numpy(), validation.labels))
    assert max(values) > result.metrics["val/image_auroc"] + 0.1
    assert not (build_job(plan, 3).path / CHECKPOINTS).exists()


def test_an_earlier_attempts_files_are_gone(plan):
    job = build_job(plan, 3)
    left = job.path / ARTIFACTS / "heatmaps" / "99-left.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    run_job(job)
    assert not left.exists()


# --- what a search may see


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Every image and mask that is decoded."""
    seen: set[Path] = set()
    for name in ("read_image", "read_mask"):
        original = getattr(samples, name)

        def recording(path: Path, *rest: Any, _original: Any = original) -> Any:
            seen.add(path)
            return _original(path, *rest)

        monkeypatch.setattr(samples, name, recording)
    return seen


def files(*sets: ImageSet | None) -> set[Path]:
    found = [sample for image_set in sets if image_set for sample in image_set.samples]
    return {sample.file for sample in found} | {sample.mask_file for sample in found if sample.mask_file}


@pytest.mark.parametrize("protocol", ["holdout", "synthetic"])
def test_a_trial_never_decodes_a_test_image(own_widgets, tmp_path, read, protocol):
    plan = build_plan(make_config(own_widgets, protocol=protocol), tmp_path / "home")
    read.clear()
    forget()
    result = run_job(build_job(plan, 0))
    assert read == files(plan.splits.train, plan.splits.validation)
    assert not read & files(plan.splits.test)
    assert not [name for name in result.metrics if name.startswith("test/")]
    final = run_job(build_job(plan, 0, task="final"))
    assert files(plan.splits.test) <= read
    assert "test/image_auroc" in final.metrics


def test_other_test_images_do_not_change_a_trial(own_widgets, tmp_path):
    plan = build_plan(make_config(own_widgets), tmp_path / "home")
    before = run_job(build_job(plan, 0))
    test = sorted(files(plan.splits.test))
    images = [path.read_bytes() for path in test if "ground_truth" not in path.parts]
    for path, data in zip((p for p in test if "ground_truth" not in p.parts), reversed(images), strict=True):
        path.write_bytes(data)
    forget()
    changed = build_plan(make_config(own_widgets), tmp_path / "other home")
    assert changed.splits.digest != plan.splits.digest
    after = run_job(build_job(changed, 0))
    assert repeatable(before.metrics) == repeatable(after.metrics)


# --- paper


def test_protocol_paper_scores_test_and_says_so_in_the_ledger(tiny_mvtec, tmp_path):
    plan = build_plan(paper_config(tiny_mvtec), tmp_path / "home")
    result = run_job(build_job(plan, 2))
    assert {"test/image_auroc", "test/pixel_aupro", "test/image_auroc/dent"} <= set(result.metrics)
    assert not [name for name in result.metrics if name.startswith("val/")]
    (line,) = read_ledger(plan.home.ledger(UID))
    assert (line.study, line.study_uid, line.trial, line.purpose, line.protocol) == ("tiny", UID, 2, "paper", "paper")
    assert line.test_digest == plan.splits.test.digest
    assert line.image_auroc == result.metrics["test/image_auroc"]
    run_job(build_job(plan, 3))
    assert [line.trial for line in read_ledger(plan.home.ledger(UID))] == [2, 3]
    scores = read_scores(build_job(plan, 2).path / ARTIFACTS)
    assert auroc(scores.values, scores.labels) == result.metrics["test/image_auroc"]
    assert (scores.threshold, {image.verdict for image in scores.images}) == (None, {None})


def test_under_protocol_paper_the_threshold_rests_on_the_folds_and_judges_the_scores_of_the_trial(tiny_mvtec, tmp_path):
    plan = build_plan(paper_config(tiny_mvtec), tmp_path / "home")
    study = plan.home.study_folder(UID)
    run_job(build_job(plan, 2, folder=study / "00002"))
    job = build_job(plan, 2, task="final", folder=study / "final" / "00002")
    result = run_job(job)
    threshold = Threshold.from_json(result.threshold)
    assert threshold.normals == threshold.out_of_fold == len(plan.splits.train)
    assert len(load_artifact(job.path / DETECTOR).normal_scores) == threshold.normals
    alarms = read_scores(study / "00002" / ARTIFACTS).values >= threshold.value
    assert result.metrics["test/image_recall"] == alarms[plan.splits.test.labels == 1].mean()
    assert result.metrics["test/false_alarm_rate"] == alarms[plan.splits.test.labels == 0].mean()
    assert len(read_ledger(plan.home.ledger(UID))) == 1  # of the trial: the refit did not look


def test_under_protocol_paper_without_folds_there_is_no_threshold(tiny_mvtec, tmp_path):
    config = paper_config(tiny_mvtec)
    config = config.model_copy(update={"threshold": ThresholdConfig(folds=0)})
    plan = build_plan(config, tmp_path / "home")
    job = build_job(plan, 2, task="final")
    result = run_job(job)
    assert (result.metrics, result.threshold) == ({}, None)
    artifact = load_artifact(job.path / DETECTOR)
    assert artifact.detector.threshold is None
    assert len(artifact.normal_scores) == 0


# --- final


def test_a_final_job_scores_test_once_and_says_so(plan):
    job = build_job(plan, 4, task="final")
    result = run_job(job)
    assert result.task == "final"
    assert {"test/image_auroc", "test/pixel_aupro", "test/false_alarm_rate", "test/miss_rate"} <= set(result.metrics)
    assert not [name for name in result.metrics if name.startswith("val/")]
    (line,) = read_ledger(plan.home.ledger(UID))
    assert (line.trial, line.purpose, line.protocol) == (4, "selected", "holdout")
    assert line.image_auroc == result.metrics["test/image_auroc"]


def test_the_saved_detector_is_the_one_that_was_scored(plan):
    job = build_job(plan, 4, task="final")
    result = run_job(job)
    artifact = load_artifact(job.path / DETECTOR)
    assert artifact.provenance["study_uid"] == UID
    assert artifact.provenance["trial"] == 4
    assert artifact.provenance["metrics"] == result.metrics
    assert artifact.provenance["digests"]["test"] == plan.splits.test.digest
    test = plan.splits.test
    prediction = artifact.detector(test.images())
    alarms = prediction.scores.numpy() >= artifact.detector.threshold.value
    assert result.metrics["test/false_alarm_rate"] == alarms[test.labels == 0].mean()
    assert result.metrics["test/miss_rate"] == (~alarms[test.labels == 1]).mean()


def test_the_threshold_rests_on_train_out_of_fold_and_on_the_normals_of_validation(plan):
    job = build_job(plan, 4, task="final")
    result = run_job(job)
    artifact = load_artifact(job.path / DETECTOR)
    train, validation = plan.splits.train, plan.splits.validation
    calibration = read_calibration(job.path)
    held_out = [image.score for image in calibration.good if image.origin == "validation"]
    normals = artifact.detector(validation.images()).scores.numpy()[validation.labels == 0]
    assert np.allclose(held_out, normals, rtol=1e-5)
    folds = {image.file: image.score for image in calibration.good if image.origin == "fold"}
    assert set(folds) == {str(sample.file) for sample in train.samples}
    # One of them by hand: the twin was fitted without its fold.
    parts = divide(train.samples, content_groups(train.samples), None, trained=False)
    assert len(parts) == 10
    twin = Detector(artifact.detector.backbone, catalog.head_class("padim")(**artifact.detector.head.settings),
                    image_size=train.image_size, smoothing_sigma=2.0)  # fmt: skip
    twin.fit(train.images(parts[3].fitted), FitContext(seed=job.seed, structural_seed=job.structural_seed))
    expected = twin(train.images(parts[3].held_out)).scores.tolist()
    files = [str(train.samples[index].file) for index in parts[3].held_out]
    assert [folds[file] for file in files] == pytest.approx(expected, rel=1e-4)
    threshold = Threshold.from_json(result.threshold)
    assert (threshold.rule, threshold.source) == ("false_alarm_rate", "train in 10 folds and validation")
    assert threshold.normals == len(train) + len(normals)
    assert threshold.out_of_fold == len(train)
    assert artifact.detector.threshold == threshold
    assert np.array_equal(artifact.normal_scores, np.sort([image.score for image in calibration.good]))
    assert result.metrics["threshold_normals"] == threshold.normals
    assert result.metrics["test/seg_f1"] > 0.2


def test_a_head_that_trains_leaves_one_part_out_of_its_only_fit(tiny_mvtec, tmp_path):
    config = make_config(
        tiny_mvtec, detector="autoencoder", search={"learning_rate": {"choices": [0.001]}},
        fixed={"backbone": "pixels", "layers": [4], "epochs": 2, "width": 8, "latent": 4, "smoothing_sigma": 2.0},
    )  # fmt: skip
    plan = build_plan(config, tmp_path / "home")
    defaults = {name: one.default for name, one in catalog.parameters("autoencoder").items()}
    params = defaults | dict(config.fixed) | {"learning_rate": 0.001}
    job = replace(build_job(plan, 1, task="final", params={"backbone": "pixels", "layers": [4]}), params=params)
    result = run_job(job)
    calibration, detector = read_calibration(job.path), load_artifact(job.path / DETECTOR).detector
    left_out = {image.file: image.score for image in calibration.good if image.origin == "left out"}
    samples = plan.splits.train.samples
    assert len(left_out) == 5  # a fifth of 24, rounded up
    indices = [index for index, sample in enumerate(samples) if str(sample.file) in left_out]
    scores = detector(plan.splits.train.images(indices)).scores.tolist()
    assert [left_out[str(samples[index].file)] for index in indices] == pytest.approx(scores, rel=1e-4)
    assert (
        Threshold.from_json(result.threshold).source == "images of train that were left out of the fit and validation"
    )


def test_a_trial_has_folds_where_the_search_aims_at_the_operating_point(tiny_mvtec, tmp_path):
    plan = build_plan(make_config(tiny_mvtec, constraints={"false_alarm_rate": "<= 0.2"}), tmp_path / "home")
    threshold = Threshold.from_json(run_job(build_job(plan, 4)).threshold)
    assert threshold.out_of_fold == len(plan.splits.train)


def test_the_threshold_rests_on_images_of_another_day(tiny_mvtec, own_widgets, tmp_path):
    other_day = tmp_path / "other_day"
    other_day.mkdir()
    for index, path in enumerate(sorted((own_widgets / "widget" / "train" / "good").iterdir())[:6]):
        image = np.array(Image.open(path))
        image[0, 0] += 1
        Image.fromarray(image).save(other_day / f"{index}.png")
    config = make_config(tiny_mvtec, threshold={"images": str(other_day), "rate": 0.2})
    plan = build_plan(config, tmp_path / "home")
    job = build_job(plan, 4, task="final")
    threshold = Threshold.from_json(run_job(job).threshold)
    assert (threshold.normals, threshold.out_of_fold, threshold.source) == (6, 0, str(other_day))
    assert len(load_artifact(job.path / DETECTOR).normal_scores) == 6


def test_images_of_the_study_are_no_images_of_another_day(tiny_mvtec, tmp_path):
    known = tiny_mvtec / "widget" / "train" / "good"
    plan = build_plan(make_config(tiny_mvtec, threshold={"images": str(known)}), tmp_path / "home")
    assert "shows the same pixels as" in refused(build_job(plan, 4, task="final"))


def test_the_threshold_of_the_best_f1(tiny_mvtec, tmp_path):
    plan = build_plan(make_config(tiny_mvtec, threshold={"rule": "f1_max"}), tmp_path / "home")
    result = run_job(build_job(plan, 4, task="final"))
    assert result.threshold["rule"] == "f1_max"
    assert result.threshold["defective"] == (plan.splits.validation.labels == 1).sum()


def test_a_final_job_leaves_the_score_of_every_test_image_and_a_gallery(plan):
    job = build_job(plan, 4, task="final")
    result = run_job(job)
    scores = read_scores(job.path / ARTIFACTS)
    test = plan.splits.test
    assert [image.name for image in scores.images] == [sample.key for sample in test.samples]
    assert tuple(image.defect_type for image in scores.images) == test.defect_types
    assert auroc(scores.values, scores.labels) == result.metrics["test/image_auroc"]
    assert scores.threshold == result.threshold["value"]
    verdicts = np.array([image.verdict == "defective" for image in scores.images])
    assert verdicts[test.labels == 0].mean() == result.metrics["test/false_alarm_rate"]
    assert (~verdicts[test.labels == 1]).mean() == result.metrics["test/miss_rate"]
    assert {entry.file for entry in scores.gallery} == {
        str(path.relative_to(job.path / ARTIFACTS)) for path in (job.path / ARTIFACTS / GALLERY).iterdir()
    }


def test_a_final_job_runs_again_over_what_it_left(plan):
    job = build_job(plan, 4, task="final")
    first, second = run_job(job), run_job(replace(job, attempt=2))
    assert first.metrics == second.metrics
    assert read_result(job.path) == second
    assert len(read_ledger(plan.home.ledger(UID))) == 2  # both scorings are remembered


def test_a_scoring_that_cannot_be_remembered_is_not_told(plan):
    plan.home.ledger(UID).parent.parent.mkdir(parents=True, exist_ok=True)
    plan.home.ledger(UID).parent.write_text("in the way")
    job = build_job(plan, 4, task="final")
    with pytest.raises(InputError, match="cannot be written"):
        run_job(job)
    assert read_result(job.path) is None


# --- seeds


def test_seeds_differ_by_trial_and_purpose_and_stay_the_same():
    seeds = {derive_seed(seed, purpose, n) for seed in range(3) for purpose in ("trial", "sampler") for n in range(50)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(0, "trial", 0) == 3451003037


def test_structure_follows_the_study_and_not_the_trial(plan, tmp_path):
    results = [run_job(build_job(plan, number, folder=tmp_path / str(number))) for number in (1, 2)]
    assert results[0].metrics["val/pixel_auroc"] == results[1].metrics["val/pixel_auroc"]
    other = run_job(build_job(plan, 1, folder=tmp_path / "other", structural_seed=1))
    assert other.metrics["val/pixel_auroc"] != results[0].metrics["val/pixel_auroc"]


def test_everything_random_is_seeded_before_the_model_is_built(plan, monkeypatch):
    drawn: list[tuple[float, float]] = []

    def draw(worker: Any) -> None:
        drawn.append((float(torch.rand(1)), float(np.random.rand())))
        raise InputError("enough")

    monkeypatch.setattr(fitting.Fitting, "_build_backbone", draw)
    for number in (1, 1, 2):
        with pytest.raises(InputError, match="enough"):
            run_job(build_job(plan, number))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]


# --- speed alone


def test_a_speed_job_fits_and_measures_and_scores_nothing(plan, monkeypatch):
    monkeypatch.setattr(trial, "wait_until_quiet", lambda: False)
    monkeypatch.setattr(trial, "evaluate", None)
    job = build_job(plan, 3, task="speed")
    result = run_job(job)
    assert {"fps", "throughput", "latency_ms_p50", "latency_ms_p95"} <= set(result.metrics)
    assert not [name for name in result.metrics if "/" in name]
    assert result.task == "speed"
    assert read_result(job.path) == result
    assert not (job.path / DETECTOR).exists()
    assert read_ledger(plan.home.ledger(UID)) == []


# --- refusals


def refused(job: Job) -> str:
    with pytest.raises(InputError) as caught:
        run_job(job)
    message = str(caught.value)
    assert "\n" not in message
    assert read_result(job.path) is None
    return message


def test_other_images_are_refused(plan):
    message = refused(build_job(plan, splits_digest="0" * 64))
    assert "the images of tiny/widget changed while the study was running" in message
    assert "--fresh" in message


def test_other_weights_are_refused(plan):
    message = refused(build_job(plan, weights_sha256="0" * 64))
    assert f"backbone {BACKBONE}: the weights on this machine are not those the study was created with" in message
    assert "000000000000" in message


def test_weights_that_are_not_here_are_refused(plan, monkeypatch):
    monkeypatch.setattr("detectors.backbones.weights.cached_file", lambda spec: None)
    job = build_job(plan)
    message = refused(replace(job, params=PARAMS | {"backbone": "resnet18"}))
    assert "no weights for backbone resnet18 on this machine" in message
    assert SMALLEST in message


def test_a_folder_that_cannot_be_written_is_refused(plan, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(build_job(plan, folder=tmp_path / "file" / "job"))


def test_a_configuration_of_another_version_is_refused(plan):
    job = build_job(plan, 7)
    assert "trial 7: unknown key 'colour'" in refused(replace(job, config=job.config | {"colour": "red"}))


# --- one device, several workers


def test_speed_is_measured_while_nobody_else_works(plan, tmp_path, monkeypatch):
    """While one trial measures, another that wants to compute waits; trials that compute do so side by side."""
    home = Home(tmp_path / "home")
    lock = trial.DeviceLock(home.locks, torch.device("cpu"))
    entered = threading.Event()

    def compute() -> None:
        with lock.shared():
            entered.set()

    with lock.shared():
        thread = threading.Thread(target=compute)
        thread.start()
        assert entered.wait(30)
        thread.join()
    entered.clear()
    seen: list[bool] = []

    def measuring(*arguments: Any) -> Any:
        thread = threading.Thread(target=compute)
        thread.start()
        seen.append(entered.wait(0.3))
        return original(*arguments)

    original = trial.measure_latency
    monkeypatch.setattr(trial, "measure_latency", measuring)
    run_job(build_job(plan, 0))
    assert seen == [False]
    assert entered.wait(30)


# --- results on disk


def test_a_result_that_is_not_whole_is_none(plan):
    job = build_job(plan, 0)
    result = run_job(job)
    path = job.path / RESULT_FILE
    text = path.read_text()
    assert read_result(job.path) == result
    for damaged in ("", text[:-20], "[]", json.dumps(json.loads(text) | {"extra": 1}), '{"task": "trial"}', "\0" * 50):
        path.write_text(damaged)
        assert read_result(job.path) is None
    path.unlink()
    assert read_result(job.path) is None
    assert read_result(path / "below") is None


def test_an_outcome_that_is_no_number_is_never_written(plan, monkeypatch):
    original = trial.measure_latency
    monkeypatch.setattr(trial, "measure_latency", lambda *arguments: replace(original(*arguments), fps=float("nan")))
    job = build_job(plan, 0)
    with pytest.raises(ValueError, match="Out of range float"):
        run_job(job)
    assert read_result(job.path) is None
