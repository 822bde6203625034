"""What a detector is fitted to where good images are few: turned copies of them, never one of an image that it is to score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.base import FitContext, Head
from detectors.data.samples import ImageSet, Sample
from detectors.data.widgets import write_widgets
from detectors.detector import Detector
from detectors.features import Features
from detectors.heads.padim.head import Padim
from detectors.heads.patchcore.head import LEAST_BANK_OF_FEW, Patchcore
from detectors.heads.spade.head import Spade
from detectors.runtime.artifact import load_artifact
from studies.worker.jobs import DETECTOR, Job, Probe, TrialResult
from studies.worker.references import references
from studies.worker.trial import run_job
from tests.helpers.builders import BACKBONE, build_job, build_plan, make_config

SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": {"coreset_ratio": 0.01, "n_neighbors": 1, "projection": 8, "neighbourhood": 0, "whitening": 0.0},
    "spade": {"n_neighbors": 3, "n_correspondences": 1, "pooled": "deepest", "image_score": "map"},
    "padim": {"n_features": 12},
}


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed itself is measured elsewhere."""
    monkeypatch.setattr("detectors.runtime.latency.MIN_SECONDS", 0.0)
    monkeypatch.setattr("detectors.runtime.latency.MIN_RUNS", 2)


def good_images(folder: Path, count: int) -> Path:
    """A folder of good widgets."""
    source = write_widgets(folder / "source", train=count, good=1, dents=1) / "widget" / "train" / "good"
    source.rename(folder / "good")
    for other in (folder / "source").rglob("*.png"):
        other.unlink()
    return folder


def config_of(folder: Path, detector: str, **changes: Any) -> Any:
    return make_config(
        folder,
        detector=detector,
        data={"dataset": "folder", "root": str(folder), "image_size": 64},
        search={},
        fixed={},
        baselines=[{"backbone": BACKBONE, "layers": [8, 16], "smoothing_sigma": 2.0, **SETTINGS[detector]}],
        **{"protocol": "synthetic", "recipes": 2, "objectives": {"ranking_score": "maximize"}, **changes},
    )


def job_of(folder: Path, detector: str, home: Path, *, number: int = 0, **changes: Any) -> Job:
    fields = {name: changes.pop(name) for name in ("task", "probe") if name in changes}
    plan = build_plan(config_of(folder, detector, **changes), home)
    heads: dict[str, type[Head]] = {"patchcore": Patchcore, "spade": Spade, "padim": Padim}
    head = heads[detector]
    params = {parameter.name: parameter.default for parameter in head.searchable} | SETTINGS[detector]
    job = build_job(plan, number, **fields)
    params |= {"backbone": BACKBONE, "layers": [8, 16], "smoothing_sigma": 2.0}
    return Job(**{**job.__dict__, "params": params})


class Seen:
    """The features that detectors were fitted to, an array for each fit: [images, values] at stride 16."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fits: list[np.ndarray] = []
        self.copies: list[int] = []
        fit = Detector.fit_features

        def spied(detector: Detector, features: Features, context: FitContext) -> Detector:
            self.fits.append(features.maps[16].permute(2, 0, 1).flatten(1).cpu().numpy())
            self.copies.append(context.turned_copies)
            return fit(detector, features, context)

        monkeypatch.setattr(Detector, "fit_features", spied)


@pytest.mark.parametrize(("detector", "copies"), [("patchcore", 7), ("spade", 7), ("padim", 0)])
def test_a_threshold_of_few_images_rests_on_fits_without_any_copy_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: str, copies: int
) -> None:
    folder, seen = good_images(tmp_path / "parts", 6), Seen(monkeypatch)
    result = run_job(job_of(folder, detector, tmp_path / "home", task="final"))
    # One image is for test; of the other five each is left out once.
    whole, *twins = seen.fits
    assert len(whole) == 5 * (1 + copies)
    assert [len(twin) for twin in twins] == [4 * (1 + copies)] * 5
    assert set(seen.copies) == {copies}
    left_out = []
    for twin in twins:
        there = {row.tobytes() for row in twin}
        missing = [index for index, row in enumerate(whole) if row.tobytes() not in there]
        (own,) = [index for index in missing if index < 5]
        assert missing == [own, *(5 + own * copies + turn for turn in range(copies))]
        left_out.append(own)
    assert sorted(left_out) == [0, 1, 2, 3, 4]
    assert result.threshold is not None
    assert result.threshold["normals"] == 5
    assert result.threshold["expected_rate"] == pytest.approx(1 / 6)


def test_validation_in_turns_is_scored_without_copies_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    result = run_job(job_of(good_images(tmp_path / "parts", 6), "patchcore", tmp_path / "home"))
    assert [len(fit) for fit in seen.fits] == [4 * 8] * 5
    assert 0 <= result.metrics["val/ranking_score"] <= 1


@pytest.mark.parametrize("detector", ["patchcore", "spade"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_to_three_images_make_a_detector_without_a_threshold(tmp_path: Path, count: int, detector: str) -> None:
    folder = good_images(tmp_path / "parts", count)
    trial = run_job(job_of(folder, detector, tmp_path / "home"))
    assert trial.threshold is None
    job = job_of(folder, detector, tmp_path / "home", task="final")
    final: TrialResult = run_job(job)
    assert final.threshold is None
    assert not [name for name in final.metrics if name.startswith(("test/", "val/"))]
    artifact = load_artifact(job.path / DETECTOR)
    assert artifact.threshold is None
    assert len(artifact.normal_scores) == 0
    rgb = np.asarray(Image.open(next(iter((folder / "good").glob("*.png")))))
    damaged = rgb.copy()
    damaged[20:40, 20:40] = 0
    batch = torch.cat([artifact.resize(image) for image in (rgb, np.ascontiguousarray(rgb[:, ::-1]), damaged)])
    own, mirrored, defective = artifact.detector(batch).scores.tolist()
    assert defective > max(own, mirrored)
    # The mirrored image is among those that it was fitted to.
    assert mirrored == pytest.approx(own, abs=0.2 * defective)


def train_set(count: int) -> ImageSet:
    return ImageSet("train", tuple(Sample(key=str(index), file=Path(str(index))) for index in range(count)), (64, 64))


def test_which_studies_have_turned_copies(tmp_path: Path) -> None:
    folder = good_images(tmp_path / "parts", 16)
    images = ImageSet(
        "train", tuple(Sample(path.name, path) for path in sorted((folder / "good").glob("*.png"))), (64, 64)
    )

    def copies(head: Any, **changes: Any) -> int:
        return references(images, head, config_of(folder, "patchcore", **changes)).copies

    assert copies(Patchcore()) == copies(Spade()) == 7
    assert copies(Padim()) == 0
    # In a window around a position, a turned copy shows another place of the part.
    assert copies(Patchcore(window=1)) == 0
    assert copies(Patchcore(), turned_copies=False) == 0
    assert (
        copies(Patchcore(), recipes=None, objectives={"image_auroc": "maximize"}) == 0
    )  # stored before there were any
    assert copies(Patchcore(), recipes=None, objectives={"image_auroc": "maximize"}, turned_copies=True) == 7
    config = config_of(folder, "patchcore")
    # A part of more images is fitted as these are.
    assert references(images, Patchcore(), config, of=17).copies == 0
    assert references(train_set(17), Patchcore(), config).copies == 0


def test_a_probe_of_more_than_few_images_has_no_copies_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    folder = good_images(tmp_path / "parts", 22)
    run_job(job_of(folder, "patchcore", tmp_path / "home", task="probe", probe=Probe(1, 0.5)))
    assert sum(len(fit) for fit in seen.fits) == 4 * 10  # half of twenty, less a fifth in each turn
    assert set(seen.copies) == {0}


def test_the_bank_of_few_images_is_no_hundredth_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    features = Features({8: torch.randn(64, 6, 40, generator=generator)}, {8: (8, 8)}, (64, 64))
    head = Patchcore(coreset_ratio=0.01, projection=0)
    assert len(head.fit(features, FitContext()).bank_) == 26
    assert len(head.fit(features, FitContext(turned_copies=3)).bank_) == LEAST_BANK_OF_FEW
    assert len(head.fit(features.take([0]), FitContext(turned_copies=3)).bank_) == 64
    assert len(Patchcore(coreset_ratio=0.5, projection=0).fit(features, FitContext(turned_copies=3)).bank_) == 1280
