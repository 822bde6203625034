"""``study promote`` judges models at the threshold that they are run at; what a person forces is on record."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.base import FitContext
from detectors.data.samples import Sample
from detectors.data.splits import stable_order
from detectors.detector import Detector
from detectors.heads.padim.head import Padim
from detectors.runtime.artifact import load_artifact, save_artifact, with_threshold
from detectors.scoring.operating_point import Threshold
from studies.commands.promote import REFUSED
from studies.file import datasets
from studies.worker.ledger import chain_faults
from tests.helpers.grown import open_view
from tests.helpers.shell import Shell, assert_told, make_shell, raw_study
from tests.helpers.widgets import draw_widget, write_widgets

QUICK = ("--offline", "--device", "cpu", "--inline")


@pytest.fixture(scope="module")
def finished(empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A study of a single trial, with 20 good and 20 defective test images; never changed."""
    root = write_widgets(tmp_path_factory.mktemp("images"), good=40, dents=40)
    shell = make_shell(tmp_path_factory.mktemp("finished") / "work", empty_stores)
    path = shell.write(raw_study(root, budget={"trials": 1}, gate={"floor": {"image_auroc": 0.3}}))
    ended = shell("run", path, *QUICK)
    assert ended.code == 0, ended
    return shell


@pytest.fixture(scope="module")
def promoted(finished: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The same with a champion that finds most defects; never changed."""
    shell = copied(finished, tmp_path_factory.mktemp("promoted"))
    run_at(shell, share_found=0.8)
    assert shell("promote", "tiny").code == 0
    return shell


@pytest.fixture
def shell(promoted: Shell, tmp_path: Path) -> Shell:
    return copied(promoted, tmp_path)


def copied(shell: Shell, folder: Path) -> Shell:
    shutil.copytree(shell.folder, folder / "work")
    return make_shell(folder / "work")


def detector(shell: Shell, name: str = "tiny") -> Path:
    """Folder of the study's saved detector."""
    trial = open_view(shell.folder, name).selected()
    assert trial is not None
    assert trial.detector is not None
    return trial.detector


def defect_scores(shell: Shell) -> Any:
    """Ascending scores of the defective test images."""
    view = open_view(shell.folder, "tiny")
    images = datasets.load(view.config, view.home).parts[0].splits.test
    scores = load_artifact(detector(shell)).detector(images.images()).scores.numpy()
    return np.sort(scores[images.labels == 1])


def run_at(shell: Shell, *, share_found: float) -> float:
    """Give the study's detector the threshold at which it finds such a share of the test set's defects."""
    scores = defect_scores(shell)
    position = round((1 - share_found) * len(scores))
    value = float(scores[position]) if position < len(scores) else float(scores[-1]) * 2
    with_threshold(detector(shell), Threshold(value, "value", "given", normals=0))
    return value


def champions(shell: Shell, model: str = "tiny") -> dict[str, str]:
    """{alias: version}"""
    versions = json.loads(shell("models", model, "--json").out)[model]["versions"]
    return {alias: version["version"] for version in versions for alias in version["aliases"]}


def test_a_higher_auroc_that_misses_more_defects_does_not_become_champion(finished: Shell, tmp_path: Path) -> None:
    """The better detector at a threshold that hardly a defect reaches, against a weaker one that finds more."""
    shell = copied(finished, tmp_path)
    saved = detector(shell)
    strong = shutil.copytree(saved, tmp_path / "strong")
    weak = load_artifact(strong)
    noise = torch.randint(0, 255, (8, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    other = Detector(weak.detector.backbone, Padim(n_features=4), image_size=(64, 64), smoothing_sigma=2.0)
    save_artifact(replace(weak, detector=other.fit(noise, FitContext())), saved)
    run_at(shell, share_found=0.7)
    first = shell("promote", "tiny", "--force", "a weak champion to begin with")
    assert first.code == 0, first

    shutil.rmtree(saved)
    shutil.copytree(strong, saved)
    run_at(shell, share_found=0.25)
    ended = shell("promote", "tiny")
    assert ended.code == REFUSED, ended
    told = [line for line in (ended.out + ended.err).splitlines() if line.startswith("refused: ")]
    assert len(told) == 1
    assert told[0].startswith("refused: finds 5 of 20 defects where the champion finds 14 (45 % fewer")
    assert "missed defects (95 % interval)" in ended.out
    assert "15 of 20 (75 %, 53 to 89 %)" in ended.out
    assert champions(shell) == {"champion": "1", "challenger": "2"}
    (report,) = (shell.home / "gates" / "tiny").glob("2-*/gate.json")
    gate = json.loads(report.read_text())
    assert gate["difference"][0] > 0.1  # AUROC alone would have promoted it
    assert [rule["name"] for rule in gate["rules"] if rule["verdict"] == "refused"] == ["recall at the threshold"]
    assert "15 of 20 (75 %, 53 to 89 %)" in report.with_name("gate.md").read_text()
    shown = json.loads(shell("models", "tiny", "--json").out)["tiny"]["versions"]
    assert [(version["version"], version["image_recall"]) for version in shown] == [("2", 0.25), ("1", 0.7)]
    table = shell("models", "tiny").out
    assert "recall" in table
    assert "false alarms" in table


def test_a_retraining_with_one_spoilt_image_among_thirty_does_not_become_champion(shell: Shell, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for number in range(30):
        Image.fromarray(draw_widget(900 + number)[0]).save(new / f"{number:03d}.png")
    # The negative of a good part.
    samples = [Sample(key=f"new/{path.name}", file=path) for path in sorted(new.iterdir())]
    spoilt = stable_order(samples)[4].file
    Image.fromarray(255 - np.asarray(Image.open(spoilt))).save(spoilt)
    retrained = json.loads(shell("retrain", "tiny", "--images", new, "--device", "cpu", "--json").out)
    assert any(f"one image alone decides the threshold, {spoilt}: " in warning for warning in retrained["warnings"])
    ended = shell("promote", "tiny", "--version", "2")
    assert ended.code == REFUSED, ended
    told = [line for line in (ended.out + ended.err).splitlines() if line.startswith("refused: ")]
    assert len(told) == 1
    counts = re.match(r"refused: finds (\d+) of 20 defects where the champion finds 16 \(", told[0])
    assert counts is not None
    assert int(counts[1]) <= 8
    assert "its threshold is too high" in told[0]
    assert champions(shell) == {"champion": "1", "challenger": "2"}


def test_what_a_person_forces_is_promoted_and_on_record(shell: Shell) -> None:
    run_at(shell, share_found=0.4)
    assert_told(shell("promote", "tiny", "--force", "  "), "force: give the reason")
    dry = shell("promote", "tiny", "--force", "new lamp", "--dry-run")
    assert dry.code == 0, dry
    assert "--force would promote it all the same (new lamp); nothing was changed" in dry.out
    assert champions(shell) == {"champion": "1"}
    ended = shell("promote", "tiny", "--force", "new lamp,\nuntil Friday", "--json")
    assert ended.code == 0, ended
    outcome = json.loads(ended.out)
    assert (outcome["promoted"], outcome["forced"]) == (True, "new lamp, until Friday")
    assert (outcome["gate"]["passed"], outcome["gate"]["forced"]) == (False, "new lamp, until Friday")
    assert champions(shell) == {"champion": "2", "previous": "1"}
    told = json.loads(shell("models", "tiny", "--json").out)["tiny"]
    line = told["record"][-1]
    assert (line["action"], line["version"], line["details"]["gate"]) == ("promoted", "2", "refused")
    assert line["details"]["forced"] == "new lamp, until Friday"
    assert line["user"]
    assert line["details"]["reasons"][0].startswith("finds 8 of 20 defects where the champion finds 16")
    assert told["versions"][0]["tags"]["gate.forced"] == "new lamp, until Friday"
    assert told["faults"] == []
    assert "forced: new lamp, until Friday" in " ".join(shell("models", "tiny").out.split())


def test_force_has_no_part_in_a_promotion_that_passes(shell: Shell) -> None:
    run_at(shell, share_found=0.85)
    ended = shell("promote", "tiny", "--force", "just in case", "--json")
    assert ended.code == 0, ended
    assert json.loads(ended.out)["forced"] is None
    told = json.loads(shell("models", "tiny", "--json").out)["tiny"]
    assert "forced" not in told["record"][-1]["details"]


def test_a_model_without_a_threshold_is_not_promoted_even_by_force(shell: Shell) -> None:
    without = load_artifact(detector(shell))
    without.detector.threshold = None
    save_artifact(without, detector(shell))
    ended = shell("promote", "tiny", "--force", "whatever")
    assert ended.code == REFUSED, ended
    assert "set one: study threshold tiny --rate 0.01" in " ".join(ended.out.split())
    assert "--force does not help here" in ended.out
    assert champions(shell)["champion"] == "1"


def test_another_products_detector_is_bad_input_until_it_is_forced(shell: Shell, tmp_path: Path) -> None:
    root = write_widgets(tmp_path / "other")
    for path in sorted(root.rglob("*.png")):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    (root / "widget").rename(root / "carpet")
    raw = raw_study(root, name="carpets", budget={"trials": 1}, gate={"floor": {}})
    raw["data"]["category"] = "carpet"
    assert shell("run", shell.write(raw), *QUICK).code == 0
    before = (shell.home / "registry.jsonl").read_text()
    for extra in ((), ("--dry-run",)):
        ended = shell("promote", "carpets", "--to", "tiny", "--device", "cpu", *extra)
        assert_told(ended, "is of tiny/carpet, but model 'tiny' is of tiny/widget (version 1)", "--force REASON")
    assert (shell.home / "registry.jsonl").read_text() == before
    assert not open_view(shell.folder, "carpets").ledger()[1:]  # nothing was scored but the selected trial

    ended = shell("promote", "carpets", "--to", "tiny", "--force", "the same part in a new folder")
    assert ended.code == 0, ended
    assert champions(shell) == {"champion": "2", "previous": "1"}
    line = json.loads(shell("models", "tiny", "--json").out)["tiny"]["record"][-1]
    assert any("is of tiny/carpet" in reason for reason in line["details"]["reasons"])
    # The images are those of the carpets: their ledger has all three scorings, that of the widgets' model too.
    gate = [line for line in open_view(shell.folder, "carpets").ledger() if line.purpose == "gate"]
    assert [line.model for line in gate] == ["tiny/2", "tiny/1", "tiny/2"]
    assert {line.study for line in gate} == {"carpets"}
    assert not chain_faults(shell.home / "ledgers" / f"{gate[0].study_uid}.jsonl")


def test_the_gates_scorings_are_lines_of_the_ledger(shell: Shell) -> None:
    """Of the first promotion: the challenger, and what was saved of it; of a second one also the champion."""
    view = open_view(shell.folder, "tiny")
    lines = [(line.purpose, line.model, line.trial) for line in view.ledger()]
    assert lines == [("selected", None, 0), ("gate", "tiny/1", 0), ("gate", "tiny/1", 0)]
    run_at(shell, share_found=0.9)
    assert shell("promote", "tiny", "--dry-run").code == 0
    added = view.ledger()[3:]
    assert [(line.purpose, line.model, line.trial) for line in added] == [("gate", None, 0), ("gate", "tiny/1", 0)]
    assert all(line.image_auroc is not None for line in added)
    assert len({line.test_digest for line in view.ledger()}) == 1
    # The storage counts them, so that lines which are taken out are noticed.
    path = shell.home / "ledgers" / f"{view.header.uid}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    (fault,) = json.loads(shell("show", "tiny", "--json").out)["ledger_faults"]
    assert "lines were taken out" in fault


def test_real_screws_retrained_with_one_spoilt_image_among_thirty(
    real_data: Path, empty_stores: Path, tmp_path: Path
) -> None:
    """The same on photographs: one of the thirty is overexposed, as by a stuck shutter."""
    screw, root = real_data / "MVTecAD" / "screw", tmp_path / "images"
    photographs = sorted((screw / "train" / "good").glob("*.png"))
    (root / "screw" / "train" / "good").mkdir(parents=True)
    for path in photographs[:120]:
        shutil.copy(path, root / "screw" / "train" / "good")
    shutil.copytree(screw / "test", root / "screw" / "test")
    shutil.copytree(screw / "ground_truth", root / "screw" / "ground_truth")
    new = tmp_path / "new"
    new.mkdir()
    for path in photographs[120:150]:
        shutil.copy(path, new)
    samples = [Sample(key=f"new/{path.name}", file=path) for path in sorted(new.iterdir())]
    spoilt = stable_order(samples)[4].file
    pixels = np.asarray(Image.open(spoilt).convert("RGB"), dtype=float)
    Image.fromarray(np.clip(4 * pixels, 0, 255).astype(np.uint8)).save(spoilt)

    shell = make_shell(tmp_path / "work", empty_stores)
    raw = raw_study(root, name="screws", search={}, gate={"floor": {}}, budget={"trials": 1})
    raw["data"] = {"dataset": "mvtec", "category": "screw", "root": str(root), "image_size": 256}
    raw["threshold"] = {"rate": 0.05}
    fixed = {"backbone": "tf_efficientnet_lite0", "layers": [8, 16], "smoothing_sigma": 4.0}
    raw["detector"], raw["fixed"] = "patchcore", fixed
    raw["baselines"] = [{"coreset_ratio": 0.02, "neighbourhood": 0}]
    assert shell("run", shell.write(raw), *QUICK).code == 0
    assert shell("promote", "screws", "--device", "cpu").code == 0
    assert shell("retrain", "screws", "--images", new, "--device", "cpu").code == 0
    ended = shell("promote", "screws", "--version", "2", "--device", "cpu")
    assert ended.code == REFUSED, ended
    (told,) = [line for line in (ended.out + ended.err).splitlines() if line.startswith("refused: ")]
    counts = re.search(r"finds (\d+) of (\d+) defects where the champion finds (\d+) \(", told)
    assert counts is not None, told
    assert int(counts[1]) < int(counts[3])
    assert champions(shell, "screws") == {"champion": "1", "challenger": "2"}
