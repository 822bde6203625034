"""Fixtures of the tests of `studies`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from studies.file.config import validate
from studies.home import Home
from studies.search.plan import Plan
from tests.helpers.bench import Bench
from tests.helpers.builders import BACKBONE, build_plan, raw_config
from tests.helpers.command_line import set_home, study
from tests.helpers.widgets import copy_stores


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


@pytest.fixture(scope="session")
def finished(tiny_mvtec: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the home of two finished studies, ``tiny`` and ``defaults``; add to it, and change nothing in it."""
    folder = tmp_path_factory.mktemp("finished")
    copy_stores(empty_stores, folder / "home")
    studies = [
        raw_config(tiny_mvtec, budget={"trials": 1}),
        raw_config(tiny_mvtec, name="defaults", protocol="paper", search={}, baselines=[{"n_features": 12}]),
    ]
    with pytest.MonkeyPatch.context() as patch:
        set_home(patch, folder)
        for raw in studies:
            file = folder / f"{raw['name']}.yaml"
            file.write_text(yaml.safe_dump(raw))
            ended = study("run", file, "--inline", "--device", "cpu", "--offline")
            assert ended.code == 0, ended.err
    return folder
