"""Planning a study: images, backbones and devices are looked at before anything is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from detectors.backbones.bundled import SMALLEST
from detectors.errors import InputError
from studies.home import Home
from studies.search.plan import Options, make_plan
from tests.helpers.builders import BACKBONE, build_plan, make_config, paper_config


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_offline_drops_backbones_without_weights(tiny_mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr("detectors.backbones.weights.cached_file", lambda spec: None)
    config = make_config(
        tiny_mvtec, search={"backbone": {"choices": ["resnet18", BACKBONE]}}, fixed={"layers": [8, 16]}
    )
    plan = build_plan(config, tmp_path)
    assert list(plan.backbones) == [BACKBONE]
    assert plan.dropped == ("resnet18",)
    assert plan.space.backbones == (BACKBONE,)
    alone = make_config(tiny_mvtec, fixed={"backbone": "resnet18", "layers": [8, 16]})
    with pytest.raises(InputError) as caught:
        build_plan(alone, tmp_path)
    message = one_line(caught)
    for word in ("none of the study's backbones (resnet18) has weights", SMALLEST, "--weights-dir", "NAME@random"):
        assert word in message


def test_weights_of_a_folder_that_is_none(tiny_mvtec, tmp_path):
    with pytest.raises(InputError, match="no such weights folder"):
        build_plan(make_config(tiny_mvtec), tmp_path, weights_dir=tmp_path / "nowhere")


def test_progress_is_told(tiny_mvtec, tmp_path):
    seen: list[tuple[str, int, int]] = []
    options = Options(device="cpu", offline=True)
    make_plan(make_config(tiny_mvtec), Home(tmp_path), options, progress=lambda *told: seen.append(told))
    assert seen[-1] == ("checking images", 48, 48)
    seen.clear()
    make_plan(make_config(tiny_mvtec), Home(tmp_path), options, progress=lambda *told: seen.append(told))
    assert seen == []  # the same images are not decoded again


def test_images_that_are_labelled_and_for_training_are_told_at_every_run(own_widgets, tmp_path):
    folder = own_widgets / "widget"
    (folder / "train" / "good" / "twin.png").write_bytes((folder / "test" / "good" / "000.png").read_bytes())
    for _ in range(2):
        plan = build_plan(make_config(own_widgets), tmp_path)
        assert "train/good/twin.png" not in [sample.key for sample in plan.splits.train.samples]
        assert "widget: left out of train, having the pixels of a labelled image: 1 of " in plan.warnings[-1]
        assert "train/good/twin.png (test/good/000.png)" in plan.warnings[-1]


def test_pixel_objectives_need_masks(tiny_mvtec, own_widgets, tmp_path):
    objectives = {"pixel_aupro": "maximize"}
    assert build_plan(make_config(tiny_mvtec, objectives=objectives), tmp_path).splits.test.has_masks
    for mask in (own_widgets / "widget" / "ground_truth" / "dent").iterdir():
        mask.unlink()
    with pytest.raises(InputError, match="objective pixel_aupro needs a mask for every defective image of validation"):
        build_plan(make_config(own_widgets, objectives=objectives), tmp_path)


def test_a_damaged_image_is_told_before_anything_is_computed(own_widgets, tmp_path):
    damaged = own_widgets / "widget" / "train" / "good" / "005.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        build_plan(make_config(own_widgets), tmp_path / "home")
    message = one_line(caught)
    assert "005.png" in message
    assert "not a readable image" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"dataset": "tiny", "category": "widget"}, "data.root is missing: say where data set 'tiny' lies"),
        ({"dataset": "tiny", "root": "ROOT"}, "data.category is missing"),
        ({"dataset": "tiny", "root": "ROOT", "category": "gadget"}, "no category 'gadget'"),
        ({"dataset": "tiny", "root": "ROOT/none", "category": "widget"}, "no such folder"),
    ],
)
def test_data_that_are_not_there(tiny_mvtec, tmp_path, data, words):
    data = {key: value.replace("ROOT", str(tiny_mvtec)) for key, value in data.items()}
    with pytest.raises(InputError) as caught:
        build_plan(make_config(tiny_mvtec, data=data), tmp_path)
    assert words in one_line(caught)


def test_protocol_paper_has_no_validation(tiny_mvtec, tmp_path):
    plan = build_plan(paper_config(tiny_mvtec), tmp_path)
    assert plan.splits.validation is None
    assert set(plan.identity["data"]) == {"train", "test"}


def test_the_search_follows_the_backbones(tiny_mvtec: Path, tmp_path: Path) -> None:
    config = make_config(tiny_mvtec, search={"backbone": {"choices": [BACKBONE, SMALLEST]}}, fixed={"layers": [8, 16]})
    plan = build_plan(config, tmp_path)
    assert plan.space is plan.space
    assert plan.space.backbones == (BACKBONE, SMALLEST)
    fewer = replace(plan, backbones={SMALLEST: plan.backbones[SMALLEST]})
    assert fewer.space.backbones == (SMALLEST,)
    with pytest.raises(InputError, match=r"no backbone of search\.backbone has weights"):
        replace(plan, backbones={})


def test_a_search_that_the_backbone_does_not_allow_is_refused_before_it_runs(tiny_mvtec: Path, tmp_path: Path) -> None:
    pixels = make_config(
        tiny_mvtec,
        detector="patchcore",
        search={"coreset_ratio": {"float": [0.01, 0.1]}},
        fixed={"backbone": "pixels", "layers": [8]},
    )
    with pytest.raises(InputError, match=r"backbone pixels offers strides \[1, 2, 4\]"):
        build_plan(pixels, tmp_path)
