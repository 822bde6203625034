"""What a sound study file means."""

from __future__ import annotations

from detectors.backbones.bundled import SMALLEST
from detectors.scoring.evaluation import METRICS
from studies.file.config import validate
from studies.file.sections import COST_METRICS
from tests.helpers.builders import BACKBONE
from tests.helpers.study_files import check


def test_defaults():
    config = check(sampler=None)
    assert (config.protocol, config.objectives, config.constraints) == ("holdout", {"image_auroc": "maximize"}, {})
    assert config.direction == "maximize"
    assert (config.sampler.name, config.sampler.seed, config.sampler.startup) == ("auto", 0, 5)
    assert (config.budget.trials, config.budget.timeout, config.budget.stagnation) == (3, None, None)
    assert (config.execution.attempts, config.threshold.rate) == (2, 0.01)


def test_plain_form_and_back():
    config = check(
        constraints={"fps": ">= 10", "latency_ms_p95": "<= 2.5e1"},
        budget={"trials": 5, "timeout": "1h30m"},
        data={"category": "screw", "image_size": [64, 96]},
        baselines=[{"n_features": 12}],
        search={"n_features": {"int": [4, 40], "log": True}, "layers": {"choices": [[8], [8, 16]]}},
        fixed={"backbone": BACKBONE},
    )
    assert config.budget.timeout == 5400
    assert config.data.size == (64, 96)
    assert validate(config.to_json(), source="again") == config


def test_backbones_in_the_order_of_the_file():
    config = check(
        search={"backbone": {"choices": ["resnet18", SMALLEST]}},
        fixed={},
        baselines=[{"backbone": SMALLEST}, {"backbone": "resnet18"}],
    )
    assert config.backbones == ["resnet18", SMALLEST]


def test_baselines_alone_may_name_the_backbone():
    config = check(search={}, fixed={}, baselines=[{"backbone": "resnet18"}, {"backbone": SMALLEST}])
    assert config.backbones == ["resnet18", SMALLEST]


def test_every_metric_may_be_constrained():
    limits = dict.fromkeys((*METRICS, *COST_METRICS), "<= 1e3")
    assert check(constraints=limits).constraints == limits
