"""The gate's rules, on real small detectors and images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectors.backbones.pyramid import build_backbone
from detectors.base import Detector, FitContext
from detectors.data.mvtec import read_mvtec
from detectors.data.splits import Splits, make_splits
from detectors.heads.padim.head import Padim
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact
from detectors.runtime.latency import DeviceLock
from detectors.scoring.evaluation import Evaluation
from studies.file.sections import GateConfig
from studies.release import gate as gate_module
from studies.release.gate import Contender, Gate, Measured
from tests.helpers.small_models import LATENCY
from tracking.model import packed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tiny_mvtec: Path) -> Splits:
    return make_splits(read_mvtec(tiny_mvtec, "widget", name="tiny"), protocol="holdout", image_size=(64, 64))


@pytest.fixture(scope="module")
def good(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector fitted on the good parts."""
    return fitted(splits.train.images(), tmp_path_factory.mktemp("good") / "detector")


@pytest.fixture(scope="module")
def bad(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that learnt what defects look like instead."""
    return fitted(255 - splits.train.images(), tmp_path_factory.mktemp("bad") / "detector")


def fitted(images: torch.Tensor, folder: Path) -> Path:
    backbone = build_backbone("resnet18@random", (8, 16))
    detector = Detector(backbone, Padim(n_features=24), image_size=(64, 64), smoothing_sigma=2.0)
    return save_artifact(Artifact(detector.fit(images, FitContext())), folder)


@pytest.fixture
def make(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    monkeypatch.setattr(gate_module, "measure_latency", lambda detector, images, device: LATENCY)

    def build(**config: Any) -> Gate:
        return Gate(
            config=GateConfig(**config),
            test=splits.test,
            data="tiny/widget",
            device=CPU,
            lock=DeviceLock(tmp_path / "locks", CPU),
            seed=0,
            environment={"host": "line-3", "device": "cpu"},
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


def test_a_defect_type_that_collapses_is_refused_though_the_mean_holds(
    make: Callable[..., Gate], splits: Splits
) -> None:
    def measured(**per_defect: float) -> Measured:
        evaluation = Evaluation(metrics={"image_auroc": 0.9}, per_defect=per_defect)
        return Measured("x", np.zeros(len(splits.test)), evaluation, LATENCY, 1.0)

    gate = make(per_defect_drop=0.1)
    old = measured(scratch=0.9, hole=0.8)
    assert gate._per_defect(measured(scratch=0.81, hole=0.9), old).verdict == "passed"
    rule = gate._per_defect(measured(scratch=0.79, hole=1.0), old)
    assert rule.verdict == "refused"
    assert "scratch, +0.1100" in rule.outcome


def test_not_worse_beyond_chance_refuses_within_epsilon(make: Callable[..., Gate], splits: Splits) -> None:
    """A small loss on many images that never is a gain."""
    labels = splits.test.labels
    old = labels + np.linspace(0, 0.5, len(labels))
    new = old.copy()
    worst = np.flatnonzero(labels == 0)[-1]
    new[worst] = old[labels == 1].max() + 1

    def measured(scores: Any) -> Measured:
        return Measured("x", scores, Evaluation(metrics={}), LATENCY, 1.0)

    rule, difference = make(epsilon=1.0)._not_worse(measured(new), measured(old))
    assert difference is not None
    assert difference[0] < 0
    assert rule.verdict == ("refused" if difference[2] < 0 else "passed")
    rule, _ = make(epsilon=0.001)._not_worse(measured(new), measured(old))
    assert rule.verdict == "refused"
    assert "more than 0.001 below it" in rule.outcome


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


def test_floors_are_known_metrics_from_0_to_1() -> None:
    assert GateConfig(floor={"image_auroc": 0.9}).floor == {"test/image_auroc": 0.9}
    with pytest.raises(ValueError, match="did you mean image_auroc"):
        GateConfig(floor={"test/image_aurok": 0.9})
    with pytest.raises(ValueError, match="from 0 to 1"):
        GateConfig(floor={"image_auroc": 90})
