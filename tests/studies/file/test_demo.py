"""``--demo``: a study that runs anywhere."""

from __future__ import annotations

import pytest

from detectors.backbones.bundled import SMALLEST
from detectors.backbones.weights import PIXELS
from detectors.errors import InputError
from studies.file.demo import DEMO_TRIALS, load_demo
from studies.file.library import load
from tests.helpers.study_files import PACKAGED, write


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_file_has_a_demo(path):
    demo = load_demo(str(path))
    assert demo.name == f"{path.stem}-demo"
    assert demo.data.dataset == "rendered"
    assert set(demo.backbones) <= {SMALLEST, PIXELS}


def test_the_demo_is_the_search_itself_on_rendered_images(tmp_path):
    path = write(
        tmp_path,
        search={"backbone": {"choices": ["resnet18", SMALLEST]}, "n_features": {"int": [4, 40]}},
        fixed={"smoothing_sigma": 3.0},
        constraints={"fps": ">= 5"},
        baselines=[
            {"backbone": "resnet18", "n_features": 9},
            {"backbone": SMALLEST, "n_features": 8},
            {"n_features": 7},
        ],
        budget={"trials": 400, "timeout": "9h"},
        protocol="synthetic",
    )
    demo = load_demo(str(path))
    assert demo.name == "mine-demo"
    assert (demo.data.dataset, demo.data.category, demo.data.root) == ("rendered", "screw", None)
    assert demo.protocol == "holdout"
    assert demo.search["n_features"] == load(str(path)).search["n_features"]
    assert demo.backbones == [SMALLEST]
    assert demo.baselines == [{"n_features": 7}, {"backbone": SMALLEST, "n_features": 8}]
    assert (demo.budget.trials, demo.budget.timeout) == (DEMO_TRIALS, None)
    assert demo.fixed == {"smoothing_sigma": 3.0}
    assert demo.constraints == {"fps": ">= 5"}


def test_the_demo_of_a_fixed_backbone_and_of_baselines_alone(tmp_path):
    assert load_demo(str(write(tmp_path, "fixed"))).backbones == [SMALLEST]
    paper = write(tmp_path, "paper", protocol="paper", search={}, baselines=[{"n_features": 9}])
    assert load_demo(str(paper)).backbones == [SMALLEST]


def test_the_demo_keeps_pixels_where_a_detector_learns_from_them(tmp_path):
    search = {
        "backbone": {"choices": ["resnet18", SMALLEST]},
        "patchcore": {"backbone": {"choices": ["pixels"]}, "layers": {"choices": [[4], [2]]}},
    }
    several = write(tmp_path, "several", detector=["padim", "patchcore"], search=search, fixed={})
    demo = load_demo(str(several))
    assert demo.for_detector("padim").backbones == [SMALLEST]
    assert demo.for_detector("patchcore").backbones == [PIXELS]
    fixed = {"backbone": PIXELS, "layers": [4]}
    assert load_demo(str(write(tmp_path, "alone", fixed=fixed))).fixed == fixed


def test_the_demo_takes_overrides(tmp_path):
    path = write(tmp_path)
    assert load_demo(str(path), ["budget.trials=2", "data.image_size=64"]).budget.trials == 2
    with pytest.raises(InputError, match="with --demo: unknown key"):
        load_demo(str(path), ["budget.trails=2"])


@pytest.mark.parametrize("changes", [{"baselines": [5]}, {"search": [1]}, {"fixed": [1]}, {"baselines": 5}])
def test_the_demo_of_a_wrong_file_names_the_file(tmp_path, changes):
    (key,) = changes
    with pytest.raises(InputError, match=rf"mine\.yaml: {key}"):
        load_demo(str(write(tmp_path, **changes)))


def test_the_demo_of_something_that_is_no_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(InputError, match=r"list\.yaml: a study file is a mapping"):
        load_demo(str(path))
