"""The sizes that a study's backbones are given, told before the first trial; a study on tokens, run to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors import catalog
from detectors.errors import InputError
from detectors.runtime.artifact import load_artifact
from studies.file.library import load
from studies.search.seen_sizes import seen_sizes
from studies.worker.jobs import DETECTOR
from studies.worker.trial import run_job
from tests.helpers.builders import build_job, build_plan, make_config
from tests.helpers.study_files import check

VIT = "test_vit@random"
DINO = "vit_small_patch14_dinov2@random"


def on(*backbones: str, **changes):
    search = {"backbone": {"choices": list(backbones)}, "layers": {"choices": [[8, 16], [16], [14], [-1]]}}
    return check(**{"search": search | changes.pop("search", {}), "fixed": {}, "baselines": [], **changes})


def test_a_size_that_is_taken_as_it_is_needs_no_word():
    assert seen_sizes(on("resnet18@random", data={"image_size": 100}), ["resnet18@random"]) == ()
    assert seen_sizes(on(DINO, data={"image_size": 448}), [DINO]) == ()


def test_each_size_that_a_backbone_does_not_take_is_told_with_the_one_it_gets():
    config = on(VIT, DINO, search={"image_size": {"choices": [96, [100, 140]]}})
    assert seen_sizes(config, [VIT, DINO], [{"image_size": "99x112"}]) == (
        f"{VIT} takes multiples of 16 pixels: images of 96 x 112 for it instead of images of 99 x 112",
        f"{VIT} takes multiples of 16 pixels: images of 96 x 144 for it instead of images of 100 x 140",
        f"{DINO} takes multiples of 14 pixels: images of 98 x 98 for it instead of images of 96 x 96",
        f"{DINO} takes multiples of 14 pixels: images of 98 x 112 for it instead of images of 99 x 112",
        f"{DINO} takes multiples of 14 pixels: images of 98 x 140 for it instead of images of 100 x 140",
    )


def test_an_architecture_that_cannot_is_refused_before_the_first_trial(tiny_mvtec: Path, tmp_path: Path):
    search = {"backbone": {"choices": ["beit_base_patch16_224@random"]}}
    config = make_config(tiny_mvtec, search=search, fixed={"layers": [16]}, baselines=[])
    with pytest.raises(
        InputError, match=r"beit_base_patch16_224@random takes no images of 64 x 64 pixels; it was made for 224"
    ):
        build_plan(config, tmp_path)


def test_the_recipe_on_tokens_is_fitted_on_images_of_the_nearest_size(tiny_mvtec: Path, tmp_path: Path):
    """Layers, normalisation and image score of the shipped file, on a small network with drawn weights."""
    shipped = load("anomalydino")
    (recipe,) = shipped.baselines
    config = make_config(
        tiny_mvtec,
        detector="patchcore",
        data={"dataset": "tiny", "category": "widget", "root": str(tiny_mvtec), "image_size": 70},
        search={"backbone": {"choices": [VIT]}, "layers": {"choices": [[-1], [-4, -1]]}},
        fixed=dict(shipped.fixed) | {name: recipe[name] for name in ("coreset_ratio", "top_share", "smoothing_sigma")},
        baselines=[{"backbone": VIT, "layers": [-1]}],
    )
    plan = build_plan(config, tmp_path / "home")
    assert (
        f"{VIT} takes multiples of 16 pixels: images of 64 x 64 for it instead of images of 70 x 70" in plan.resolutions
    )
    defaults = {name: parameter.default for name, parameter in catalog.parameters("patchcore").items()}
    params = {**defaults, "backbone": VIT, "layers": [-1], **config.fixed}
    result = run_job(build_job(plan, params=params))
    # Pixels are counted at the study's size, whatever the network looks at.
    assert 0 <= result.metrics["val/pixel_auroc"] <= 1
    final = build_job(plan, task="final", params=params)
    run_job(final)
    detector = load_artifact(final.path / DETECTOR).detector
    assert detector.image_size == (64, 64)
    assert detector.backbone.strides == (-1,)
    assert detector.head.settings["normalize"] == "l2"
    assert detector.head.top_share == 0.01
