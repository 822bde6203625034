"""The gate's rules, on real small detectors and images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.data.mvtec import read_mvtec
from detectors.data.splits import Splits, make_splits
from detectors.detector import Detector
from detectors.heads.padim.head import Padim
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact, with_threshold
from detectors.runtime.latency import DeviceLock
from detectors.scoring.operating_point import Threshold
from studies.file.sections import GateConfig
from studies.release import gate as gate_module
from studies.release import timing as timing_module
from studies.release.gate import Contender, Gate
from tests.helpers.small_models import LATENCY
from tests.studies.release.test_rules import RECALL
from tracking.model import packed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tiny_mvtec: Path) -> Splits:
    return make_splits(read_mvtec(tiny_mvtec, "widget", name="tiny"), protocol="holdout", image_size=(64, 64))


@pytest.fixture(scope="module")
def good(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector fitted on the good parts."""
    folder = fitted(splits.train.images(), tmp_path_factory.mktemp("good") / "detector")
    set_threshold(folder, splits)
    return folder


@pytest.fixture(scope="module")
def bad(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that learnt what defects look like instead."""
    folder = fitted(255 - splits.train.images(), tmp_path_factory.mktemp("bad") / "detector")
    set_threshold(folder, splits)
    return folder


def fitted(images: torch.Tensor, folder: Path) -> Path:
    backbone = build_backbone("resnet18@random", (8, 16))
    detector = Detector(backbone, Padim(n_features=24), image_size=(64, 64), smoothing_sigma=2.0)
    return save_artifact(Artifact(detector.fit(images, FitContext())), folder)


def set_threshold(folder: Path, splits: Splits, *, alarms: int = 1) -> None:
    """Give a detector the threshold that so many good test images reach."""
    scores = load_artifact(folder).detector(splits.test.images()).scores.numpy()
    good = np.sort(scores[splits.test.labels == 0])
    value = float(good[-alarms]) if alarms else float(good[-1]) * 1.01
    with_threshold(folder, Threshold(value, "value", "given", normals=0))


@pytest.fixture
def make(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    monkeypatch.setattr(timing_module, "measure_latency", lambda detector, images, device: LATENCY)

    def build(**config: Any) -> Gate:
        return Gate(
            config=GateConfig(**config),
            test=splits.test,
            data="tiny/widget",
            device=CPU,
            lock=DeviceLock(tmp_path / "locks", CPU),
            seed=0,
            environment={"host": "line-3", "device": "cpu"},
            scored=lambda contender, auroc: None,
            study="tiny",
        )

    return build


def verdicts(report: Any) -> dict[str, str]:
    return {rule.name: rule.verdict for rule in report.rules}


def test_the_first_model_passes_by_its_own_figures(make: Callable[..., Gate], good: Path) -> None:
    report = make().judge("tiny", Contender("version 1", good, original=good), None)
    assert report.passed
    assert verdicts(report) == {
        "floor": "passed",
        "latency": "not applicable",
        "size": "not applicable",
        "threshold": "passed",
        "reload equality": "passed",
        "serving": "not applicable",
        "not worse": "not applicable",
    }
    assert report.challenger.auroc is not None
    assert report.challenger.auroc > 0.8
    assert json.loads(json.dumps(report.to_json()))["passed"]
    assert "**Passed**" in report.to_markdown()


def test_what_a_fit_warns_of_is_shown_and_refuses_nothing(
    make: Callable[..., Gate], good: Path, tmp_path: Path
) -> None:
    artifact = load_artifact(good)
    warned = replace(artifact, provenance={"warnings": ["the threshold jumped", "x" * 1000]})
    folder = save_artifact(warned, tmp_path / "warned")
    report = make().judge("tiny", Contender("version 2", folder), Contender("champion, version 1", good))
    assert report.passed
    assert report.reasons == []
    shown = [(rule.verdict, rule.outcome) for rule in report.rules if rule.name == "fit"]
    assert shown == [("warning", "the threshold jumped"), ("warning", "x" * 500)]
    assert "| fit | warning | the threshold jumped |" in report.to_markdown()
    unreadable = save_artifact(replace(artifact, provenance={"warnings": "text"}), tmp_path / "unreadable")
    assert "fit" not in verdicts(make().judge("tiny", Contender("version 3", unreadable), None))


def test_a_worse_model_is_refused_with_the_reason(make: Callable[..., Gate], good: Path, bad: Path) -> None:
    report = make(floor={}).judge("tiny", Contender("version 2", bad), Contender("champion, version 1", good))
    assert not report.passed
    assert verdicts(report)["not worse"] == "refused"
    assert report.difference is not None
    assert report.difference[0] < -0.1
    assert any("against the champion" in reason for reason in report.reasons)
    text = report.to_markdown()
    assert "**Refused**" in text
    assert "champion, version 1" in text


def test_the_same_model_is_not_worse(make: Callable[..., Gate], good: Path) -> None:
    report = make().judge("tiny", Contender("version 2", good), Contender("champion, version 1", good))
    assert report.passed
    assert report.difference == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("config", "rule", "words"),
    [
        ({"floor": {"image_auroc": 1.0, "pixel_aupro": 1.0}}, "floor", "test/pixel_aupro"),
        ({"latency_ms_p95": 5.9}, "latency", "at most 5.9"),
        ({"model_size_mb": 0.1}, "size", "at most 0.1"),
    ],
)
def test_each_limit_refuses(
    make: Callable[..., Gate], good: Path, config: dict[str, Any], rule: str, words: str
) -> None:
    report = make(**config).judge("tiny", Contender("version 1", good), None)
    assert [name for name, verdict in verdicts(report).items() if verdict == "refused"] == [rule]
    assert words in report.reasons[0]


def test_a_model_that_changed_on_its_way_is_refused(make: Callable[..., Gate], good: Path, bad: Path) -> None:
    report = make(floor={}).judge("tiny", Contender("version 1", bad, original=good), None)
    assert verdicts(report)["reload equality"] == "refused"


def test_a_request_goes_through_the_mlflow_model(make: Callable[..., Gate], good: Path, bad: Path) -> None:
    with packed(good, metadata={}) as model:
        report = make().judge("tiny", Contender("version 1", model / "artifacts" / "detector", model=model), None)
        assert verdicts(report)["serving"] == "passed"
        other = make(floor={}).judge("tiny", Contender("version 1", bad, model=model), None)
        assert verdicts(other)["serving"] == "refused"
        (model / "artifacts" / "detector" / "detector.json").write_text("{}")
        broken = make().judge("tiny", Contender("version 1", good, model=model), None)
        assert verdicts(broken)["serving"] == "refused"
        assert any("the model does not answer" in reason for reason in broken.reasons)


def test_models_of_different_sizes_each_see_the_original_images(
    make: Callable[..., Gate], splits: Splits, good: Path, tmp_path: Path
) -> None:
    large = replace(splits.train, image_size=(96, 96))
    backbone = build_backbone("resnet18@random", (8, 16))
    detector = Detector(backbone, Padim(n_features=24), image_size=(96, 96), smoothing_sigma=2.0)
    folder = save_artifact(Artifact(detector.fit(large.images(), FitContext())), tmp_path / "detector")
    report = make(floor={}).judge("tiny", Contender("version 2", folder), Contender("champion, version 1", good))
    wanted = load_artifact(folder).detector(replace(splits.test, image_size=(96, 96)).images()).scores
    assert np.allclose(report.challenger.scores, wanted.numpy(), rtol=1e-4)


# --- at the threshold that each model is run at


def test_a_higher_auroc_does_not_make_up_for_missed_defects(
    make: Callable[..., Gate], good: Path, bad: Path, splits: Splits, tmp_path: Path
) -> None:
    """Real detectors: the better one is run at a threshold that nearly nothing reaches."""
    better = copied(good, tmp_path / "better")
    scores = load_artifact(better).detector(splits.test.images()).scores.numpy()
    with_threshold(better, Threshold(float(scores.max()), "value", "given", normals=0))
    worse = copied(bad, tmp_path / "worse")
    scores = load_artifact(worse).detector(splits.test.images()).scores.numpy()
    value = float(np.median(scores[splits.test.labels == 1]))
    with_threshold(worse, Threshold(value, "value", "given", normals=0))
    report = make(floor={}).judge("tiny", Contender("version 2", better), Contender("champion, version 1", worse))
    assert report.difference is not None
    assert report.difference[0] > 0.1  # what decided alone before
    assert [rule.name for rule in report.rules if rule.verdict == "refused"] == [RECALL]
    defects = int(splits.test.labels.sum())
    assert report.reasons[0].startswith(f"finds 1 of {defects} defects where the champion finds ")
    assert f"| missed defects (95 % interval) | {defects - 1} of {defects} (" in report.to_markdown()
    told = report.to_json()["challenger"]
    assert (told["missed"], told["defective"]) == (defects - 1, defects)


def test_a_model_without_a_threshold_is_refused_and_told_the_way_out(
    make: Callable[..., Gate], good: Path, splits: Splits, tmp_path: Path
) -> None:
    without = fitted(splits.train.images(), tmp_path / "detector")
    gate = make(floor={"image_recall": 0.1})
    report = gate.judge("tiny", Contender("version 2", without), Contender("champion, version 1", good))
    told = verdicts(report)
    assert (told["threshold"], told["floor"], told[RECALL]) == ("refused", "refused", "not applicable")
    assert any("set one: study threshold tiny --rate" in reason for reason in report.reasons)
    assert "test/image_recall is unknown (there is no threshold)" in report.reasons
    assert not report.forcible
    old = make(floor={}).judge("tiny", Contender("version 3", good), Contender("champion, version 1", without))
    assert verdicts(old)[RECALL] == "not applicable"
    assert verdicts(old)["threshold"] == "passed"


def test_a_ceiling_refuses_false_alarms(make: Callable[..., Gate], good: Path, splits: Splits, tmp_path: Path) -> None:
    noisy = copied(good, tmp_path / "noisy")
    set_threshold(noisy, splits, alarms=2)
    report = make(ceiling={"false_alarm_rate": 0.01}).judge("tiny", Contender("version 1", noisy), None)
    assert [rule.name for rule in report.rules if rule.verdict == "refused"] == ["ceiling"]
    assert "is above 0.01" in report.reasons[0]
    with pytest.raises(ValueError, match="known: false_alarm_rate"):
        GateConfig(ceiling={"image_auroc": 0.9})
    with pytest.raises(ValueError, match="from 0 to 1"):
        GateConfig(ceiling={"false_alarm_rate": 5})


def test_warnings_are_one_line_each_and_bounded(make: Callable[..., Gate], good: Path, tmp_path: Path) -> None:
    doubtful = load_artifact(good)
    warnings = ["the threshold moved from 193 to 462,\nbecause of new/007.png", 7, "x" * 9000]
    folder = save_artifact(replace(doubtful, provenance={"warnings": warnings}), tmp_path / "detector")
    report = make().judge("tiny", Contender("version 2", folder), Contender("champion, version 1", good))
    assert report.passed
    assert report.warnings[0] == "the threshold moved from 193 to 462, because of new/007.png"
    assert [len(text) for text in report.warnings[1:]] == [500]
    assert [rule.verdict for rule in report.rules if rule.name == "fit"] == ["warning", "warning"]
    assert report.to_json()["warnings"] == report.warnings


# --- how it is measured


def test_challenger_champion_and_original_are_scored_alike(
    make: Callable[..., Gate], good: Path, bad: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def watched(model: Any, images: Any) -> Any:
        device = model.detector.backbone.mean.device
        calls.append((device.type, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"), len(images)))
        verdicts = judge(model, images)
        calls[-1] += (verdicts[0].anomaly_map.dtype,)
        return verdicts

    judge = gate_module.judge
    monkeypatch.setattr(gate_module, "judge", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # as a program around it may have it
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            report = make(floor={}).judge("tiny", Contender("2", good, original=good), Contender("1", bad))
    finally:
        torch.set_float32_matmul_precision(before)
    assert report.champion is not None
    each = len(calls) // 3
    assert calls[:each] == calls[each : 2 * each] == calls[2 * each :]
    assert {call[:3] for call in calls} == {("cpu", "highest", False)}
    assert {call[4] for call in calls} == {np.dtype(np.float32)}
    assert sum(call[3] for call in calls[:each]) == len(splits.test)


def test_every_scoring_of_the_test_images_is_put_on_record(make: Callable[..., Gate], good: Path, bad: Path) -> None:
    gate, lines = make(floor={}), list[tuple[Any, ...]]()
    gate.scored = lambda contender, auroc: lines.append((contender.label, contender.version, contender.trial, auroc))
    challenger = Contender("version 2", good, original=good, trial=7, version="tiny/2")
    report = gate.judge("tiny", challenger, Contender("champion", bad, trial=3, version="tiny/1"))
    assert report.champion is not None
    assert lines == [
        ("version 2", "tiny/2", 7, report.challenger.auroc),
        ("champion", "tiny/1", 3, report.champion.auroc),
        ("version 2, as it was saved", "tiny/2", 7, report.challenger.auroc),
    ]


def copied(folder: Path, target: Path) -> Path:
    return shutil.copytree(folder, target)


def test_floors_are_known_metrics_from_0_to_1() -> None:
    assert GateConfig(floor={"image_auroc": 0.9}).floor == {"test/image_auroc": 0.9}
    with pytest.raises(ValueError, match="did you mean image_auroc"):
        GateConfig(floor={"test/image_aurok": 0.9})
    with pytest.raises(ValueError, match="from 0 to 1"):
        GateConfig(floor={"image_auroc": 90})
