"""Fixtures of the tests of `studies`."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import Bench
from builders import BACKBONE, build_plan, raw_config

from studies.config import validate
from studies.home import Home
from studies.plan import Plan


@pytest.fixture(scope="module")
def base_plan(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    raw = raw_config(tiny_mvtec) | {
        "search": {"backbone": {"choices": [BACKBONE, "mobilenetv3_small_050@random"]}},
        "fixed": {"layers": [8, 16]},
    }
    return build_plan(validate(raw, source="tiny.yaml"), tmp_path_factory.mktemp("plan"))


@pytest.fixture
def bench(base_plan: Plan, tiny_mvtec: Path, study_home: Path) -> Bench:
    return Bench(base_plan, tiny_mvtec, Home(study_home))
