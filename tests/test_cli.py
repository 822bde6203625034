"""The command ``study`` as a person gives it: exit codes, one clear line per mistake, and the way from run to predict."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.shell import BACKBONE, NAMES, Shell, assert_told, make_shell, raw_study
from tests.helpers.widgets import draw_widget, write_widgets


@pytest.fixture
def shell(tmp_path: Path, empty_stores: Path) -> Shell:
    """A folder where stores are, but no study."""
    return make_shell(tmp_path / "work", empty_stores)


@pytest.fixture
def bare(tmp_path: Path) -> Shell:
    """A folder where nothing was done yet."""
    return make_shell(tmp_path / "work")


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Mistakes


def test_an_unknown_study_is_told_with_those_there_are(bare: Shell) -> None:
    assert_told(bare("run", "padim_scerw"), "no study 'padim_scerw'", "did you mean padim_screw?", "padim_carpet")
    assert not bare.home.exists()


@pytest.mark.parametrize("name", ["a/b", "../x", "/etc/passwd.yaml", "folder/", "no.yaml"])
def test_a_name_with_slashes_is_a_path(bare: Shell, name: str) -> None:
    assert_told(bare("run", name), "no such study file")
    assert not bare.home.exists()


def test_a_folder_is_no_study_file(bare: Shell) -> None:
    (bare.folder / "studies.yaml").mkdir()
    assert_told(bare("run", "studies.yaml"), "studies.yaml", "no images in it")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("serch.x=1", ["unknown key 'serch'", "did you mean search?"]),
        ("budget.trails=3", ["unknown key 'budget.trails'", "did you mean trials?"]),
        ("budget.trials=many", ["budget.trials", "'many'"]),
        ("budget.trials=0", ["budget.trials", "0"]),
        ("budget.timeout=soon", ["budget.timeout", "90s, 30m or 2h"]),
        ("data.image_size=7", ["data.image_size", "32 to 2048"]),
        ("search.n_features.int=[9,3]", ["search.n_features", "lower bound first"]),
        ("search.n_featurs.int=[3,9]", ["n_featurs", "did you mean n_features?"]),
        ("detector=padmi", ["padmi", "did you mean padim?"]),
        ("objectives={image_aurok: maximize}", ["image_aurok", "did you mean image_auroc?"]),
        ("constraints={fps: fast}", ["constraints.fps", ">= 10"]),
        ("protocol=paper", ["protocol paper"]),
        ("name=a/b", ["name", "a/b"]),
        ("name=[", ["--set name", "line 1"]),
        ("nonsense", ["--set nonsense", "KEY=VALUE"]),
        ("fixed.backbone=resnet18x", ["resnet18x", "did you mean"]),
        ("fixed.layers=[8,9]", ["fixed.layers", "4, 8, 16, 32"]),
    ],
)
def test_a_wrong_setting_is_told_with_its_key(bare: Shell, tiny_mvtec: Path, setting: str, words: list[str]) -> None:
    path = bare.write(raw_study(tiny_mvtec))
    assert_told(bare("run", path, "--set", setting), *words)
    assert not bare.home.exists()


def test_a_file_that_is_no_study_is_told(bare: Shell) -> None:
    for text, word in (("", "mapping"), ("- a\n- b\n", "mapping"), ("a: [", "line 1"), ("\0", "not YAML")):
        (bare.folder / "tiny.yaml").write_text(text)
        assert_told(bare("run", "tiny.yaml"), "tiny.yaml", word)


def test_wrong_usage_is_told_by_the_parser(bare: Shell) -> None:
    for words in (["run"], ["run", "padim_screw", "--trials", "0"], ["rum"], ["run", "padim_screw", "--nope"]):
        ended = bare(*words)
        assert ended.code == 2
        assert "Traceback" not in ended.err
    assert not bare.home.exists()


def test_a_missing_data_set_is_told_with_both_ways_out(bare: Shell) -> None:
    ended = bare("run", "padim_screw", "--set", "data.root=nowhere")
    assert_told(ended, "nowhere", "study data fetch mvtec", "--demo")
    assert not list(bare.home.glob("*.db"))


def test_a_missing_category_is_told_with_those_there_are(bare: Shell, tiny_mvtec: Path) -> None:
    path = bare.write(raw_study(tiny_mvtec))
    assert_told(bare("run", path, "--set", "data.category=wigdet"), "no category 'wigdet'", "did you mean widget?")


def test_a_category_without_good_images_is_told(bare: Shell, own_widgets: Path) -> None:
    for image in (own_widgets / "widget" / "train" / "good").iterdir():
        image.unlink()
    path = bare.write(raw_study(own_widgets))
    assert_told(bare("run", path), "no good training images", "train/good")


def test_labels_that_protocol_holdout_needs_are_asked_for(bare: Shell, own_widgets: Path) -> None:
    shutil.rmtree(own_widgets / "widget" / "test" / "dent")
    path = bare.write(raw_study(own_widgets))
    assert_told(bare("run", path), "widget", "protocol synthetic")


def _corrupt(root: Path) -> str:
    (root / "widget" / "train" / "good" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    return "train/good/003.png"


def _truncated(root: Path) -> str:
    path = root / "widget" / "test" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:-400])
    return "test/good/001.png"


def _empty(root: Path) -> str:
    (root / "widget" / "test" / "dent" / "001.png").write_bytes(b"")
    return "test/dent/001.png"


def _small_mask(root: Path) -> str:
    Image.new("L", (32, 32), 255).save(root / "widget" / "ground_truth" / "dent" / "002_mask.png")
    return "002_mask.png"


def _bomb(root: Path) -> str:
    write_bomb(root / "widget" / "test" / "good" / "bomb.png")
    return "test/good/bomb.png"


def write_bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_corrupt, "not a readable image"),
        (_truncated, "not a readable image"),
        (_empty, "not a readable image"),
        (_small_mask, "32 x 32"),
        (_bomb, "limit of 100 megapixels"),
    ],
)
def test_a_damaged_image_or_mask_is_told_before_anything_is_computed(
    bare: Shell, own_widgets: Path, damage: Callable[[Path], str], word: str
) -> None:
    subject = damage(own_widgets)
    path = bare.write(raw_study(own_widgets))
    assert_told(bare("run", path), subject, word)
    assert not list(bare.home.glob("*.db"))
    assert not (bare.home / "features").exists()


def test_a_backbone_without_weights_is_told_with_those_there_are(bare: Shell, tiny_mvtec: Path) -> None:
    path = bare.write(raw_study(tiny_mvtec))
    ended = bare("run", path, "--offline", "--set", "fixed.backbone=wide_resnet50_2")
    assert_told(ended, "wide_resnet50_2", "tf_efficientnet_lite0", "--weights-dir")
    assert not list(bare.home.glob("*.db"))


def test_a_folder_of_weights_that_is_not_there_is_told(bare: Shell, tiny_mvtec: Path) -> None:
    path = bare.write(raw_study(tiny_mvtec))
    assert_told(bare("run", path, "--weights-dir", "no-weights"), "no-weights")


def test_a_device_that_is_not_there_is_told(bare: Shell, tiny_mvtec: Path) -> None:
    path = bare.write(raw_study(tiny_mvtec))
    assert_told(bare("run", path, "--device", "gpu"), "'gpu'", "auto, cpu, cuda or cuda:N")
    assert_told(bare("run", path, "--device", "cuda:99"), "'cuda:99'", "--device cpu")


@pytest.mark.parametrize("deeper", [False, True])
def test_a_home_that_cannot_be_written_is_told(bare: Shell, tiny_mvtec: Path, deeper: bool) -> None:
    bare.home.write_text("a file")
    place = str(bare.home / "deeper" if deeper else bare.home)
    path = bare.write(raw_study(tiny_mvtec))
    assert_told(bare("run", path, STUDY_HOME=place), place, "STUDY_HOME")
    assert bare.home.read_text() == "a file"


@pytest.mark.parametrize("name", ["studies.db", "mlflow.db"])
def test_a_broken_database_is_told_and_left_alone(bare: Shell, tiny_mvtec: Path, name: str) -> None:
    bare.home.mkdir()
    (bare.home / name).write_bytes(b"no database" * 1000)
    path = bare.write(raw_study(tiny_mvtec))
    assert_told(bare("run", path, "--inline"), name)
    assert (bare.home / name).read_bytes() == b"no database" * 1000


def test_a_tracking_server_that_does_not_answer_is_told(shell: Shell, tiny_mvtec: Path) -> None:
    path = shell.write(raw_study(tiny_mvtec))
    ended = shell("run", path, "--inline", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert_told(ended, "http://127.0.0.1:9", "cannot be reached", "MLFLOW_TRACKING_URI")


@pytest.mark.parametrize(
    "words", [["list"], ["show", "tiny"], ["compare", "tiny"], ["predict", "tiny", "image.png"], ["show", "a/b"]]
)
def test_reading_commands_create_nothing(bare: Shell, words: list[str]) -> None:
    Image.new("RGB", (64, 64)).save(bare.folder / "image.png")
    assert_told(bare(*words), "no studies in", "study run --demo")
    assert not bare.home.exists()


@pytest.mark.parametrize("words", [["show", "tinny"], ["compare", "tiny", "tinny"], ["predict", "tinny", "x.png"]])
def test_an_unknown_study_is_told_where_there_are_others(done: Shell, words: list[str]) -> None:
    Image.new("RGB", (64, 64)).save(done.folder / "x.png")
    assert_told(done(*words), "no study 'tinny'", "did you mean tiny?")


def test_predict_on_a_folder_without_detector_is_told(bare: Shell) -> None:
    (bare.folder / "empty").mkdir()
    Image.new("RGB", (64, 64)).save(bare.folder / "x.png")
    assert_told(bare("predict", "empty", "x.png"), "empty", "no detector in this folder")
    assert not bare.home.exists()


def test_predict_tells_of_images_it_cannot_take(done: Shell) -> None:
    folder = done.folder / "bad"
    folder.mkdir(exist_ok=True)
    write_bomb(folder / "bomb.png")
    (folder / "text.png").write_text("no image")
    (done.folder / "nothing").mkdir(exist_ok=True)
    out = ["--out", str(done.folder / "bad-out")]
    assert_told(done("predict", "tiny", "bad/bomb.png", *out), "bad/bomb.png", "limit of 100 megapixels")
    assert_told(done("predict", "tiny", "bad/text.png", *out), "bad/text.png", "not a readable image")
    assert_told(done("predict", "tiny", "bad/none.png", *out), "bad/none.png", "no such file")
    assert_told(done("predict", "tiny", "nothing", *out), "nothing", "no images in this folder")
    assert not (done.folder / "bad-out").exists()


def test_a_bad_image_costs_no_other_its_score(done: Shell, tiny_mvtec: Path) -> None:
    folder = done.folder / "mixed"
    shutil.copytree(tiny_mvtec / "widget" / "test" / "dent", folder / "a")
    shutil.copytree(tiny_mvtec / "widget" / "test" / "dent", folder / "b")
    (folder / "torn.png").write_bytes(b"\x89PNG torn")
    ended = done("predict", "tiny", "mixed", "--out", "mixed-out")
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("error: mixed/torn.png")
    assert "the 10 highest scores of 24 images" in ended.out
    out = done.folder / "mixed-out"
    with (out / "scores.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25
    (torn,) = (row for row in rows if row["error"])
    assert torn["image"] == "mixed/torn.png"
    assert torn["score"] == ""
    assert len({row["heat map"] for row in rows}) == 25
    assert [path.name for path in (out / "sheets").iterdir()] == ["001.png"]


def test_names_that_spreadsheets_would_run_and_sheets_of_a_longer_list(done: Shell, tiny_mvtec: Path) -> None:
    good = tiny_mvtec / "widget" / "test" / "good" / "000.png"
    shutil.copy(good, done.folder / "=1+1.png")
    out = done.folder / "formulas"
    (out / "sheets").mkdir(parents=True)
    (out / "sheets" / "002.png").touch()
    assert done("predict", "tiny", "=1+1.png", good, "--out", "formulas").code == 0
    with (out / "scores.csv").open(encoding="utf-8-sig", newline="") as file:
        assert next(csv.DictReader(file))["image"] == "./=1+1.png"
    assert [path.name for path in (out / "sheets").iterdir()] == ["001.png"]
    none = [done.folder / f"none{number}.png" for number in range(2)]
    for path in none:
        path.touch()
    ended = done("predict", "tiny", *none, "--out", "nothing-out")
    assert ended.code == 2
    assert "error: 2 of 2 images could not be scored; nothing was written" in ended.err
    assert all(str(path) in ended.err for path in none)
    assert not (done.folder / "nothing-out").exists()


def test_a_changed_study_is_refused_on_resume_and_left_as_it_was(done: Shell) -> None:
    before = {name: digest for name, digest in contents(done.home).items() if not name.startswith("locks/")}
    changed = done("run", "tiny.yaml", "--inline", "--set", "search.n_features.int=[4,50]", "--trials", "5")
    assert_told(changed, "'tiny' was created differently", "search.n_features", "--fresh")
    after = {name: digest for name, digest in contents(done.home).items() if not name.startswith("locks/")}
    databases = {name for name in before | after if "studies.db" in name}
    assert {name for name in before | after if before.get(name) != after.get(name)} <= databases
    assert len(json.loads(done("show", "tiny", "--json").out)["trials"]) == 3


def test_images_that_changed_are_refused_on_resume(shell: Shell, own_widgets: Path) -> None:
    path = shell.write(raw_study(own_widgets, budget={"trials": 1}))
    assert shell("run", path, "--inline").code == 0
    image, _ = draw_widget(4711)
    Image.fromarray(image).save(own_widgets / "widget" / "train" / "good" / "new.png")
    assert_told(shell("run", path, "--inline", "--trials", "2"), "the images of train", "--fresh")


# The way from run to predict


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, empty_stores: Path, tiny_mvtec: Path) -> Shell:
    """A folder in which the study ``tiny`` was run to its end, over three backbones."""
    shell = make_shell(tmp_path_factory.mktemp("done"), empty_stores)
    backbones = ["tf_efficientnet_lite0", BACKBONE, "mobilenetv3_large_100@random"]
    raw = raw_study(
        tiny_mvtec,
        search={"backbone": {"choices": backbones}, "n_features": {"int": [4, 40]}},
        fixed={"layers": [8, 16]},
        budget={"trials": 3},
        baselines=[{"backbone": backbone, "n_features": 12} for backbone in backbones],
    )
    ended = shell("run", shell.write(raw), "--inline", "--offline", "--json")
    assert ended.code == 0, ended.err
    (shell.folder / "run.json").write_text(ended.out)
    return shell


def test_run_prints_its_outcome_as_json(done: Shell) -> None:
    outcome = json.loads((done.folder / "run.json").read_text())
    assert outcome["reason"] == "3 of 3 trials are done"
    assert [trial["state"] for trial in outcome["trials"]] == ["COMPLETE"] * 3
    assert [trial["params"]["backbone"] for trial in outcome["trials"]] == list(outcome["backbones"])
    (selected,) = [trial for trial in outcome["trials"] if trial["selected"]]
    assert selected["number"] == outcome["selected"]
    assert 0 <= selected["test_metrics"]["test/image_auroc"] <= 1
    assert Path(selected["detector"], "detector.json").is_file()
    assert len(outcome["ledger"]) == 1


def test_what_happens_can_be_read_line_by_line(shell: Shell, tmp_path: Path) -> None:
    path = shell.write(raw_study(write_widgets(tmp_path / "data"), name="watched"))
    ended = shell("run", path, "--offline", "--inline", "--device", "cpu", "--json-lines")
    assert ended.code == 0, ended
    events = [json.loads(line) for line in ended.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("opened") == 1
    started = [event["task"] for event in events if event["event"] == "started"]
    assert [task for task in started if task != "probe"] == ["trial", "trial", "final"]
    assert started.count("probe") in (0, 6)  # the two best are fitted again three times, where that is quick enough
    finished = [event for event in events if event["event"] == "finished"]
    assert [(event["trial"], event["state"], event["counted"]) for event in finished] == [
        (0, "COMPLETE", 1),
        (1, "COMPLETE", 2),
    ]
    assert kinds[-1] == "outcome"
    assert events[-1]["selected"] in (0, 1)
    assert_told(shell("run", path, "--json-lines", "--json"), "--json-lines goes with neither")
    quiet = shell("run", path, "--offline", "--inline", "--device", "cpu", "--quiet")
    assert quiet.code == 0
    assert "selected: trial" in quiet.out
    assert "search ended" not in quiet.out + quiet.err


def test_a_finished_study_is_not_run_again(done: Shell) -> None:
    ended = done("run", "tiny.yaml", "--inline", "--offline")
    assert ended.code == 0
    assert "continues after 3 trials" in ended.out
    assert "times the test images were scored so far: 1" in ended.out


def test_show_list_and_compare(done: Shell) -> None:
    shown = done("show", "tiny")
    assert shown.code == 0
    assert re.search(
        r"on test, which the search never saw: finds \d+ of \d+ defects at \d+ false alarms? in \d+ good images; image AUROC ",
        shown.out,
    )
    assert re.search(r"threshold \S+: rests on \d+ (held-out good images|good images out of fold)", shown.out)
    assert "mobilenetv3_large_100@random" in shown.out
    details = json.loads(done("show", "tiny", "--json").out)
    assert details["config"]["name"] == "tiny"
    (row,) = json.loads(done("list", "--json").out)
    assert (row["study"], row["trials"], row["failed"]) == ("tiny", 3, 0)
    assert "tiny/widget" in done("list").out
    (row,) = json.loads(done("compare", "tiny", "tiny", "--json").out)["rows"]
    assert row["image_auroc"] == details["trials"][row["trial"]]["test_metrics"]["test/image_auroc"]
    assert done("compare", "tiny").code == 0


@pytest.mark.parametrize("by", ["study", "folder"])
def test_predict_scores_judges_and_paints(done: Shell, tiny_mvtec: Path, tmp_path: Path, by: str) -> None:
    outcome = json.loads((done.folder / "run.json").read_text())
    model = "tiny" if by == "study" else outcome["trials"][outcome["selected"]]["detector"]
    test = tiny_mvtec / "widget" / "test"
    ended = done("predict", model, test / "good" / "000.png", test / "dent", "--out", tmp_path / "maps", "--json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert [Path(row["image"]).parent.name for row in rows] == ["good", *["dent"] * 12]
    assert {row["verdict"] for row in rows} <= {"good", "defective"}
    assert rows[0]["score"] < max(row["score"] for row in rows)
    for row in rows:
        with Image.open(row["heat map"]) as image:
            assert image.height >= 64
    assert len({row["heat map"] for row in rows}) == len(rows)
    table = done("predict", model, test / "good" / "000.png", "--out", tmp_path / "maps")
    assert table.code == 0
    told = next(line for line in table.out.splitlines() if line.startswith("threshold "))
    assert re.search(r": rests on \d+ .*good images.*; expect .* % false alarms, .* to .* % \(.+\)$", told)
    # A rate is told as kept only where the good images can promise it.
    assert ("at most 1 %" in told) != ("1 % cannot be promised by" in table.out)


def test_predict_gives_the_scores_that_the_study_saw(done: Shell, tiny_mvtec: Path, tmp_path: Path) -> None:
    """The verdicts on the test images lead to the error rates that the study reported."""
    outcome = json.loads((done.folder / "run.json").read_text())
    reported = outcome["trials"][outcome["selected"]]["test_metrics"]
    from studies.file.config import validate
    from studies.file.datasets import open_dataset, split
    from studies.home import Home

    config = validate(outcome["config"], source="run.json")
    test = split(open_dataset(config.data, Home(done.home)), config).test
    ended = done("predict", "tiny", *(sample.file for sample in test.samples), "--out", tmp_path, "--json")
    alarms = {row["image"]: row["verdict"] == "defective" for row in json.loads(ended.out)}
    good = [alarms[str(sample.file)] for sample in test.samples if not sample.label]
    bad = [alarms[str(sample.file)] for sample in test.samples if sample.label]
    assert sum(good) / len(good) == pytest.approx(reported["test/false_alarm_rate"])
    assert 1 - sum(bad) / len(bad) == pytest.approx(reported["test/miss_rate"])


def test_dry_run_shows_the_plan_and_writes_no_database(bare: Shell, tiny_mvtec: Path) -> None:
    ended = bare("run", bare.write(raw_study(tiny_mvtec)), "--dry-run")
    assert ended.code == 0, ended.err
    for word in ("tiny/widget", "n_features", BACKBONE, "holdout", "validation"):
        assert word in ended.out
    assert not list(bare.home.glob("*.db"))
    assert not (bare.home / "features").exists()


def test_fresh_starts_a_study_beside(shell: Shell, tiny_mvtec: Path) -> None:
    path = shell.write(raw_study(tiny_mvtec, budget={"trials": 1}))
    for words in ([], ["--fresh", "--set", "sampler.seed=1"]):
        assert shell("run", path, "--inline", *words).code == 0
    rows = json.loads(shell("list", "--json").out)
    assert [row["study"] for row in rows] == ["tiny", "tiny#2"]
    assert json.loads(shell("show", "tiny", "--json").out)["name"] == "tiny#2"
    assert json.loads(shell("show", "tiny#1", "--json").out)["name"] == "tiny"


def own_images(folder: Path, **types: int) -> Path:
    """A person's folder: images per type."""
    seed = 0
    for kind, count in types.items():
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            seed += 1
            image, _ = draw_widget(seed, dent=kind != "good")
            Image.fromarray(image).save(folder / kind / f"{index:02d}.png")
    return folder


@pytest.mark.parametrize(("types", "protocol"), [({"good": 20}, "synthetic"), ({"good": 20, "dent": 6}, "holdout")])
def test_a_folder_of_ones_own_needs_no_study_file(shell: Shell, types: dict[str, int], protocol: str) -> None:
    own_images(shell.folder / "my parts", **types)
    words = ["run", "padim", "--images", "my parts", "--offline", "--inline", "--trials", 1]
    ended = shell(*words, "--set", "data.image_size=64", "--json")
    assert ended.code == 0, ended.err
    outcome = json.loads(ended.out)
    assert (outcome["name"], outcome["experiment"]) == ("padim_my_parts", "folder/my parts")
    assert outcome["identity"]["protocol"] == protocol
    assert outcome["trials"][0]["params"]["backbone"] == "tf_efficientnet_lite0"
    judged = shell("predict", "padim_my_parts", "my parts/good/00.png", "--json")
    assert json.loads(judged.out)[0]["verdict"] in ("good", "defective")
    assert Path(shell.folder / "predictions" / "00.png").is_file()


def test_a_folder_of_any_name_makes_a_study(bare: Shell) -> None:
    own_images(bare.folder / "Teile (groß) #2", good=12)
    words = ["run", "padim", "--images", "Teile (groß) #2", "--offline", "--inline", "--trials", 1, "--json"]
    ended = bare(*words, "--set", "data.image_size=64")
    assert ended.code == 0, ended.err
    outcome = json.loads(ended.out)
    # A name that lost letters has a digest, so that no other folder makes the same one.
    assert re.fullmatch(r"padim_Teile_gro_2-[0-9a-f]{6}", outcome["name"])
    assert outcome["experiment"] == "folder/Teile (groß) #2"
    assert_told(bare(*words, "--name", "a/b"), "name", "a/b")


def test_images_and_name_go_together(bare: Shell) -> None:
    assert_told(bare("run", "padim_screw", "--name", "x"), "--name goes with a folder of images")
    assert_told(bare("run", "padim", "--images", "nowhere"), "nowhere", "no such folder")
    assert_told(bare("run", "padim", "--images", ".", "--demo"), "--demo", "the folder")


def test_inline_runs_one_trial_at_a_time(shell: Shell, tiny_mvtec: Path) -> None:
    path = shell.write(raw_study(tiny_mvtec))
    assert_told(shell("run", path, "--inline", "--jobs", "2"), "--inline", "--jobs")


def test_debug_shows_the_traceback(bare: Shell) -> None:
    ended = bare("--debug", "run", "nothing")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert "no study 'nothing'" in ended.err


def test_a_study_that_fails_ends_with_1_and_one_line(shell: Shell, tiny_mvtec: Path) -> None:
    path = shell.write(raw_study(tiny_mvtec, budget={"trials": 1}, constraints={"fps": ">= 1e9"}))
    ended = shell("run", path, "--inline")
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("error: no finished trial meets the constraints (fps >= 1e9); relax them")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["show", "tiny"],
        ["show", "tinny"],
        ["run", "padim_scerw"],
        ["run", "tiny.yaml", "--inline", "--offline"],
        ["predict", "tiny", "good.png"],
        ["predict", "tiny", "none.png"],
    ],
    ids=" ".join,
)
def test_in_a_process_of_its_own_a_command_prints_nothing_else(
    done: Shell, tiny_mvtec: Path, tmp_path: Path, words: list[str]
) -> None:
    """The other tests run commands within their own process, where a library's own lines could go unseen."""
    shutil.copytree(done.folder, tmp_path / "work")
    shutil.copy(tiny_mvtec / "widget" / "test" / "good" / "000.png", tmp_path / "work" / "good.png")
    shell = make_shell(tmp_path / "work")
    here, apart = shell(*words), shell.in_a_process(*words)
    assert (apart.code, apart.out, apart.err) == (here.code, here.out, here.err)


@pytest.mark.slow
def test_the_command_itself_with_worker_processes(tmp_path: Path, empty_stores: Path) -> None:
    """Installed script, spawned workers, two trials at a time, nothing patched."""
    shell = make_shell(tmp_path / "work", empty_stores)
    path = shell.write(raw_study(write_widgets(tmp_path / "data")))
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | shell.environment
    script = Path(sys.executable).with_name("study")
    done = subprocess.run(
        [script, "run", path, "--jobs", "2", "--offline", "--json"],
        cwd=shell.folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert [trial["state"] for trial in outcome["trials"]] == ["COMPLETE", "COMPLETE"]
    assert all(trial["metrics"]["fps"] > 0 for trial in outcome["trials"])
    artifacts = Path(outcome["trials"][0]["folder"]) / "artifacts"
    assert {"metrics.json", "roc.png", "pr.png", "heatmaps"} <= {path.name for path in artifacts.iterdir()}
