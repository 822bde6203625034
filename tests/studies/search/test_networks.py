"""Networks that a detector starts from with pretrained weights: found before a study begins, and the same in each trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from detectors import catalog
from detectors.backbones.bundled import SMALLEST
from detectors.data.samples import file_sha256
from detectors.errors import InputError
from studies.executors.ray import node
from studies.file.config import StudyConfig
from studies.file.demo import load_demo
from studies.home import Home
from studies.search.plan import Plan
from studies.search.storage import create_or_resume, open_storage
from studies.worker.trial import run_job
from tests.helpers.builders import build_job, build_plan, make_config, raw_config

NETWORK = "resnet10t"
SETTING = {"backbone": "pixels", "layers": [2], "network": NETWORK}
CHEAP = {"epochs": 1, "steps": 1, "batch": 2}


def save_weights(folder: Path, *, seed: int = 0) -> Path:
    """A file of weights as they come; which ones does not matter here."""
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(timm.create_model(NETWORK, pretrained=False).state_dict(), folder / f"{NETWORK}.safetensors")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder that holds the network."""
    return save_weights(tmp_path_factory.mktemp("network") / "weights")


@pytest.fixture(autouse=True)
def _nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    monkeypatch.setattr("detectors.backbones.weights.cached_file", lambda spec: None)


def cutpaste(root: Path, **changes: Any) -> StudyConfig:
    fixed = {"backbone": "pixels", "layers": [2], "smoothing_sigma": 2.0, **CHEAP}
    search = {"network": {"choices": ["tail", NETWORK]}}
    return make_config(root, **{"detector": "cutpaste", "search": search, "fixed": fixed} | changes)


def cutpaste_job(plan: Plan, folder: Path, **changes: Any) -> Any:
    defaults = {name: parameter.default for name, parameter in catalog.parameters("cutpaste").items()}
    params = {**defaults, **SETTING, **CHEAP}
    return build_job(plan, folder=folder, params=params, networks=plan.networks_of(params), **changes)


def test_only_pretrained_networks_need_weights():
    assert catalog.networks(catalog.head_class("cutpaste"), {"network": NETWORK}) == [NETWORK]
    assert catalog.networks(catalog.head_class("cutpaste"), {"network": f"{NETWORK}@random"}) == []
    assert catalog.networks(catalog.head_class("cutpaste"), {}) == []
    assert catalog.networks(catalog.head_class("padim"), {"network": NETWORK}) == []


def test_what_a_study_may_start_from(tiny_mvtec: Path):
    assert cutpaste(tiny_mvtec).networks() == [NETWORK]
    fixed = {"backbone": "pixels", "layers": [2], "network": "resnet18"}
    study = cutpaste(tiny_mvtec, search={"variant": {"choices": ["scar", "3way"]}}, fixed=fixed)
    assert study.networks() == ["resnet18"]
    assert study.networks([{"network": NETWORK}, {"network": "tail"}]) == ["resnet18", NETWORK]
    several = make_config(
        tiny_mvtec,
        detector=["padim", "cutpaste"],
        search={"smoothing_sigma": {"float": [1.0, 4.0]}},
        fixed={"backbone": "pixels", "layers": [2], "cutpaste.network": NETWORK},
    )
    assert several.networks([{"detector": "padim", "n_features": 3}]) == [NETWORK]
    assert make_config(tiny_mvtec).networks() == []


def test_a_demonstration_needs_no_network_but_the_bundled_one(tiny_mvtec: Path, tmp_path: Path):
    raw = raw_config(
        tiny_mvtec,
        detector="cutpaste",
        search={"network": {"choices": ["tail", NETWORK, SMALLEST]}, "backbone": {"choices": ["pixels"]}},
        fixed={"layers": [2]},
        baselines=[{**SETTING}, {**SETTING, "network": SMALLEST}],
    )
    (file := tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    demo = load_demo(str(file))
    assert demo.networks(demo.baselines) == [SMALLEST]
    assert [base["network"] for base in demo.baselines] == [SMALLEST]
    raw |= {"search": {"variant": {"choices": ["scar", "3way"]}}, "baselines": []}
    file.write_text(yaml.safe_dump(raw | {"fixed": {"backbone": "pixels", "layers": [2], "network": NETWORK}}))
    assert load_demo(str(file)).networks() == [SMALLEST]


def test_missing_weights_are_told_before_a_study_begins(tiny_mvtec: Path, tmp_path: Path):
    with pytest.raises(InputError, match=rf"no weights for backbone {NETWORK} .*`study weights fetch {NETWORK}`"):
        build_plan(cutpaste(tiny_mvtec), tmp_path)
    own = cutpaste(tiny_mvtec, search={"network": {"choices": ["tail", f"{NETWORK}@random"]}})
    assert build_plan(own, tmp_path).networks == {}
    with pytest.raises(InputError, match=f"no weights for backbone {NETWORK}"):
        build_plan(own, tmp_path, ideas=({"network": NETWORK},))


def test_a_study_is_resumed_with_the_same_weights_only(
    tiny_mvtec: Path, weights: Path, study_home: Path, tmp_path: Path
):
    plan = build_plan(cutpaste(tiny_mvtec), study_home, weights_dir=weights)
    sha256 = file_sha256(weights / f"{NETWORK}.safetensors")
    assert plan.identity["networks"] == {NETWORK: sha256}
    storage = open_storage(Home(study_home))
    create_or_resume(storage, plan, fresh=False)
    create_or_resume(storage, plan, fresh=False)
    other = build_plan(cutpaste(tiny_mvtec), study_home, weights_dir=save_weights(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match=rf"created differently: networks\.{NETWORK} \(was .{sha256}"):
        create_or_resume(storage, other, fresh=False)


def test_what_somebody_tries_once_is_no_part_of_the_study(tiny_mvtec: Path, weights: Path, tmp_path: Path):
    own = cutpaste(tiny_mvtec, search={"network": {"choices": ["tail", f"{NETWORK}@random"]}})
    with_idea = build_plan(own, tmp_path, weights_dir=weights, ideas=(SETTING,))
    assert with_idea.networks_of(SETTING) == {NETWORK: file_sha256(weights / f"{NETWORK}.safetensors")}
    without = build_plan(own, tmp_path, weights_dir=weights)
    assert with_idea.identity == without.identity
    assert without.networks_of(SETTING) == {}
    assert "networks" not in without.identity


def test_a_trial_starts_from_the_studys_weights(tiny_mvtec: Path, weights: Path, tmp_path: Path):
    plan = build_plan(cutpaste(tiny_mvtec), tmp_path / "home", weights_dir=weights)
    job = cutpaste_job(plan, tmp_path / "job", weights_dir=str(weights))
    assert run_job(job).params["network"] == NETWORK
    elsewhere = str(save_weights(tmp_path / "other", seed=1))
    other = cutpaste_job(plan, tmp_path / "refused", weights_dir=elsewhere)
    with pytest.raises(InputError, match=f"network {NETWORK}: the weights on this machine are not those"):
        run_job(other)
    assert not (tmp_path / "refused" / "result.json").exists()


def test_a_node_without_the_studys_weights_is_left_out(tiny_mvtec: Path, weights: Path, tmp_path: Path):
    plan = build_plan(cutpaste(tiny_mvtec), tmp_path / "home", weights_dir=weights)
    job = cutpaste_job(plan, tmp_path / "job", weights_dir=str(weights))
    orders = node.Orders(beacon="", secret="none", data_root=None, weights=None)
    assert node.check(job, orders) is None
    elsewhere = str(save_weights(tmp_path / "other", seed=1))
    told = node.check(replace(job, weights_dir=elsewhere), orders)
    assert told is not None
    assert f"network {NETWORK}: the weights on this machine are not those" in told
    told = node.check(replace(job, weights_dir=None), orders)
    assert told is not None
    assert f"no weights for backbone {NETWORK} on this machine" in told
