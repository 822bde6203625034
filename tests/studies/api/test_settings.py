"""`study run NAME` for every stored study: where the settings come from, what stays of earlier runs, what starts no trial."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

import studies
from studies import api
from studies.home import Home
from studies.search import plan as plan_module
from studies.search.notices import Notice, Remark
from studies.search.plan import Plan
from studies.search.storage import ENDED, HEADER, look_up, open_storage
from tests.helpers import preloaded
from tests.helpers.builders import BACKBONE
from tests.helpers.command_line import study

SMALL = {"data.image_size": 64, "search": {"n_features": {"int": [4, 40]}}, "baselines": []}
SMALL |= {"fixed": {"backbone": BACKBONE, "layers": [8, 16], "smoothing_sigma": 2.0}}
OPTIONS: dict[str, Any] = {"offline": True, "executor": "inline", "device": "cpu"}


def run(which: str, **options: Any) -> tuple[studies.Study, list[str]]:
    """The study, and the remarks of the run."""
    notices: list[Notice] = []
    ran = studies.run(which, **{**OPTIONS, "progress": notices.append, **options})
    return ran, [notice.text for notice in notices if isinstance(notice, Remark)]


def plan(which: str, **options: Any) -> Plan:
    return api.plan_study(which, offline=True, device="cpu", **options)


def own(trials: int = 1, **options: Any) -> tuple[studies.Study, list[str]]:
    """A study of a folder of images, for which there is no file."""
    return run("padim", images="parts", trials=trials, settings=SMALL, **options)


def write(path: str, **changes: Any) -> None:
    """`tiny.yaml` with changes, elsewhere."""
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(yaml.safe_dump(yaml.safe_load(Path("tiny.yaml").read_text()) | changes))


def forget(home: Path, name: str) -> None:
    """Make a stored study one of version 0.2: without what was noted since."""
    stored = optuna.load_study(study_name=name, storage=open_storage(Home(home)))
    header = dict(stored.user_attrs[HEADER])
    del header["origin"]
    stored.set_user_attr(HEADER, header)
    stored.set_user_attr(ENDED, "")


@pytest.fixture
def folder(new_home: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to write study files in, with ``parts`` and ``tiny.yaml``; nothing was run there."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "parts").symlink_to(place / "parts")
    shutil.copy(place / "tiny.yaml", work)
    monkeypatch.chdir(work)
    with ExitStack() as patches:
        for patch in preloaded.quick_patches():
            patches.enter_context(patch)
        yield work


# Studies without a file


def test_a_study_of_a_folder_of_images_goes_on_by_its_name(folder: Path) -> None:
    first, _ = own()
    assert first.name == "padim_parts"
    before = list(first.trials.index)
    again, remarks = run("padim_parts", settings={"threshold.rate": 0.17})
    assert list(again.trials.index) == before
    assert again.config.threshold.rate == 0.17
    assert again.outcome is not None
    assert again.outcome.reason == "1 of 1 trials are done"
    (line,) = [line for line in remarks if "as it was stored" in line]
    assert f"its images: {folder / 'parts'}" in line
    assert again.best is not None
    assert (again.view.selected().final.threshold or {})["rate"] == 0.17  # type: ignore[union-attr]
    # More trials are asked for aloud.
    assert len(run("padim_parts", trials=2)[0].trials) == 2


def test_a_stored_study_is_found_from_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own()
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert plan("padim_parts").images.source == str(folder / "parts")
    moved = folder.parent / "moved"
    (folder / "parts").rename(moved)
    with pytest.raises(studies.InputError, match="parts"):
        plan("padim_parts")
    found = plan("padim_parts", settings={"data.root": str(moved), "gate.epsilon": 0.1})
    assert found.images.source == str(moved)
    # That the images lie elsewhere starts no trial.
    assert found.settles


def test_relative_images_of_a_file_are_found_from_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mine.yaml", name="mine", data={"dataset": "folder", "root": "parts", "image_size": 64}, budget={"trials": 1})
    run("mine.yaml")
    monkeypatch.chdir(folder.parent)
    assert plan("mine").images.source == str(folder / "parts")


def test_a_demonstration_goes_on_by_its_name(folder: Path) -> None:
    demo = {**SMALL, "fixed": {"backbone": "tf_efficientnet_lite0", "layers": [16], "smoothing_sigma": 2.0}}
    settings = {**demo, "gate.floor": {}}
    made = api.plan_study("padim_screw", demo=True, trials=1, settings=settings, device="cpu")
    assert made.origin is not None
    api.run_plan(made, _Quiet(), executor="inline")
    ran, remarks = run("padim_screw-demo", settings={"gate.epsilon": 0.2}, offline=False)
    assert ran.name == "padim_screw-demo"
    assert len(ran.trials) == 1
    assert any("as it was stored" in line for line in remarks)
    # Without network, as it was begun; --demo once more means the same study.
    assert plan("padim_screw-demo").options.offline
    assert api.plan_study("padim_screw-demo", demo=True, device="cpu").generation == "padim_screw-demo"


class _Quiet:
    def preparing(self, name: str, done: int, total: int) -> None:
        """Nothing to see."""

    def __call__(self, notice: Notice) -> None:
        """Nothing to hear."""


def test_a_generation_goes_on_by_its_number(folder: Path) -> None:
    run("tiny.yaml", trials=1)
    run("tiny.yaml", trials=1, fresh=True)
    ran, _ = run("tiny#1", trials=2)
    assert ran.name == "tiny"
    assert {one.name: len(one.trials) for one in studies.list_studies()} == {"tiny": 2, "tiny#2": 1}
    assert run("tiny#2", trials=2)[0].name == "tiny#2"
    # The name alone is the last one.
    assert plan("tiny").generation == "tiny#2"
    with pytest.raises(studies.InputError, match="no study 'tiny#3'; did you mean tiny#2"):
        plan("tiny#3")


def test_a_trial_of_an_older_generation_is_promoted_there(folder: Path) -> None:
    run("tiny.yaml", trials=2)
    run("tiny.yaml", trials=1, fresh=True)
    older = studies.open_study("tiny#1")
    other = next(number for number in older.trials.index if older.best is not None and number != older.best.number)
    older.promote(trial=int(other), dry_run=True, device="cpu")
    assert other in [line.trial for line in older.view.ledger()]


def test_fresh_repeats_a_stored_study(folder: Path) -> None:
    own()
    ran, _ = run("padim_parts", fresh=True)
    assert ran.name == "padim_parts#2"
    assert (len(ran.trials), ran.config.fixed["backbone"]) == (1, BACKBONE)


def test_a_copy_of_a_stored_study_under_another_name(folder: Path) -> None:
    own()
    assert run("padim_parts", settings={"name": "copy"})[0].name == "copy"
    assert len(studies.list_studies()) == 2


def test_unknown_names_list_what_is_stored(folder: Path) -> None:
    run("tiny.yaml", trials=1)
    with pytest.raises(studies.InputError, match=r"did you mean tiny\? stored here: tiny; files: .*padim_screw"):
        plan("tinny")
    with pytest.raises(studies.InputError, match="a stored study, with images of its own; leave out --images"):
        plan("tiny", images="parts")
    with pytest.raises(studies.InputError, match="a stored study, with images of its own; leave out --demo"):
        plan("tiny", demo=True)


def test_the_images_of_a_stored_study_are_checked(folder: Path) -> None:
    own()
    (report,) = studies.check_images(study="padim_parts")
    assert report.ok


# A file and a stored study of one name


def test_a_file_wins_where_the_study_was_made_from_it(folder: Path) -> None:
    write("configs/tiny.yaml")
    run("tiny", trials=1)
    write("configs/tiny.yaml", gate={"epsilon": 0.3})
    planned = plan("tiny")
    assert planned.config.gate.epsilon == 0.3
    assert not any("as it was stored" in line for line in planned.remarks)
    write("configs/tiny.yaml", sampler={"seed": 4})
    with pytest.raises(studies.InputError, match=r"created differently: seed \(was 0, now 4\)"):
        plan("tiny")
    # Without the file, as it was at the last run.
    Path("configs/tiny.yaml").unlink()
    assert plan("tiny").config.sampler.seed == 0


def test_a_name_that_means_two_things_is_told(folder: Path) -> None:
    own(name="padim_screw")
    planned = plan("padim_screw", settings={"threshold.rate": 0.2})
    assert planned.images.source == str(folder / "parts")
    (line,) = planned.remarks
    assert "the settings are those of study padim_screw as it was stored" in line
    assert "configs/padim_screw.yaml is another study: `study run " in line
    write("other.yaml", name="padim_screw")
    with pytest.raises(studies.InputError, match=r"created differently.*`study run 'padim_screw#1'`"):
        plan("other.yaml")
    # That is what the message says.
    assert plan("padim_screw#1").images.source == str(folder / "parts")
    assert plan("other.yaml", settings={"name": "new"}).config.name == "new"


def test_the_study_file_of_a_report_is_the_study(folder: Path) -> None:
    ran, _ = own()
    Path("padim_parts.yaml").write_text(yaml.safe_dump(ran.config.to_json(), sort_keys=False))
    planned = plan("padim_parts.yaml", settings={"gate.epsilon": 0.1})
    assert (planned.generation, planned.settles) == ("padim_parts", True)


# What stays of earlier runs


def test_the_last_trials_count_and_not_the_files(folder: Path) -> None:
    run("tiny.yaml", trials=1)
    ran, remarks = run("tiny.yaml", settings=["threshold.rate=0.2"])
    assert len(ran.trials) == 1
    assert "kept from earlier runs of study tiny: --trials 1 (tiny.yaml: 3)" in remarks
    # What is set this time is no news.
    assert not any("kept" in line for line in plan("tiny.yaml", trials=2, settings={"threshold.rate": 0.3}).remarks)
    assert len(run("tiny.yaml", trials=2)[0].trials) == 2
    assert plan("tiny.yaml").config.budget.trials == 2


def test_an_edit_of_the_files_budget_is_a_later_wish(folder: Path) -> None:
    run("tiny.yaml", trials=1)
    write("tiny.yaml", budget={"trials": 5})
    assert plan("tiny.yaml").config.budget.trials == 5
    # An edit of something else is not.
    write("tiny.yaml", budget={"trials": 3, "stagnation": 7})
    planned = plan("tiny.yaml")
    assert (planned.config.budget.trials, planned.config.budget.stagnation) == (1, 7)


def test_a_budget_set_by_its_key_is_kept_too_and_a_time_limit_is_not(folder: Path) -> None:
    run("tiny.yaml", settings={"budget": {"trials": 1, "timeout": "1h"}})
    assert plan("tiny.yaml").config.budget.trials == 1
    assert plan("tiny.yaml").config.budget.timeout is None
    run("tiny.yaml", timeout="50m")
    assert plan("tiny.yaml").config.budget.timeout is None
    assert plan("tiny").config.budget.timeout is None


def test_what_the_study_was_begun_with_need_not_be_said_again(folder: Path) -> None:
    run("tiny.yaml", trials=1, settings={"data.image_size": 96, "threshold.rate": 0.3})
    planned = plan("tiny.yaml", settings={"gate.epsilon": 0.1})
    assert planned.config.data.size == (96, 96)
    assert planned.config.threshold.rate == 0.3
    assert "--set data.image_size=96 (tiny.yaml: 64)" in planned.remarks[0]
    assert planned.settles
    # A new study begins with the file.
    assert plan("tiny.yaml", fresh=True).config.data.size == (64, 64)


def test_a_folder_of_images_given_again_keeps_its_budget(folder: Path) -> None:
    own()
    planned = plan("padim", images="parts")
    assert planned.generation == "padim_parts"
    assert planned.config.budget.trials == 1
    assert planned.config.fixed["backbone"] == BACKBONE


def test_what_auto_came_to_is_found_anew_at_each_run(folder: Path) -> None:
    first, _ = own()
    assert first.config.sampler.name == "gp"
    assert plan("padim_parts").sampler.name == "gp"
    assert plan("padim_parts", trials=200).sampler.name == "tpe"
    assert plan("padim_parts", settings={"sampler.name": "random"}).sampler.name == "random"
    # It is no change of the study.
    assert plan("padim", images="parts", settings={"gate.epsilon": 0.2}).settles


@pytest.mark.parametrize("version", ["0.2", "0.3"])
def test_a_study_that_is_older_than_auto_keeps_its_sampler(folder: Path, new_home: Path, version: str) -> None:
    write("tiny.yaml", sampler={"name": "tpe"})
    run("tiny.yaml", trials=1)
    if version == "0.2":
        forget(new_home, "tiny")
    # A file that named none: then it meant TPE.
    write("tiny.yaml", sampler={"seed": 0})
    for _ in range(2):
        ran, remarks = run("tiny.yaml", trials=1)
        assert ran.config.sampler.name == "tpe"
    assert "kept from earlier runs of study tiny: --set sampler.name=tpe (tiny.yaml: auto)" in remarks
    assert plan("tiny.yaml", settings={"sampler.name": "auto"}).sampler.name == "gp"
    assert plan("tiny.yaml", fresh=True).sampler.name == "gp"


def test_a_file_that_says_auto_since_is_followed(folder: Path) -> None:
    write("tiny.yaml", sampler={"name": "tpe"})
    run("tiny.yaml", trials=1)
    write("tiny.yaml", sampler={"name": "auto"})
    assert plan("tiny.yaml").sampler.name == "gp"


# What a command line leaves of the file


def test_baselines_that_the_settings_leave_no_place_for_are_told(folder: Path) -> None:
    settings = {"search.backbone.choices": ["tf_efficientnet_lite0"]}
    planned = plan("padim", images="parts", settings=settings)
    assert planned.config.baselines
    assert {baseline["backbone"] for baseline in planned.config.baselines} == {"tf_efficientnet_lite0"}
    (line, *_) = planned.remarks
    assert line.startswith("baseline 2 of ")  # the first is the prior's, with the backbone that stays
    assert "because --set leaves no place for it: backbone: 'resnet18' is not among the choices" in line
    assert plan("padim", images="parts").remarks == ()


def test_they_are_left_out_again_when_the_study_goes_on(folder: Path) -> None:
    write("tiny.yaml", baselines=[{"n_features": 30}, {"n_features": 6}])
    first, told = run("tiny.yaml", trials=1, settings={"search.n_features.int": [4, 20]})
    again, told_again = run("tiny.yaml", trials=2)
    assert again.trials.n_features[0] == first.trials.n_features[0] == 6
    for lines in (told, told_again):
        assert [line for line in lines if "baseline 1 of tiny.yaml is left out" in line]


# Warm starts


def test_a_study_starts_from_the_winners_of_others(folder: Path) -> None:
    first, _ = run("tiny.yaml", trials=2)
    assert first.best is not None
    second, _ = run("tiny.yaml", trials=3, fresh=True, warm_from=["tiny"])
    assert second.name == "tiny#2"
    assert [trial.attributes.warm_from for trial in second.view.trials()[:1]] == [f"tiny#1 trial {first.best.number}"]
    assert second.view.trials()[0].params == first.best.params
    third, remarks = run("spade", images="parts", trials=1, settings=OF_SPADE, warm_from="tiny#1, tiny#2")
    assert [trial.attributes.origin for trial in third.view.trials()] == ["search"]
    assert "warm start from tiny#1 skipped: its detector is padim, and this study is over spade" in remarks


OF_SPADE = {"data.image_size": 64, "search": {"n_neighbors": {"int": [1, 9]}}, "baselines": []}
OF_SPADE |= {"fixed": {"backbone": BACKBONE, "layers": [8, 16]}}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("tinny", "--warm-from tinny: no study of this name was run here; there are: none yet"),
        ("a,,b", "--warm-from a,,b: give STUDY or STUDY,STUDY"),
        ([3], "warm_from: names of studies, not [3]"),
    ],
)
def test_names_to_start_from_that_are_none(folder: Path, names: Any, words: str) -> None:
    with pytest.raises(studies.InputError) as caught:
        plan("tiny.yaml", warm_from=names)
    assert words in str(caught.value)


def test_the_command_says_what_is_tried_first(folder: Path) -> None:
    run("tiny.yaml", trials=1)
    dry = study("run", "tiny.yaml", "--fresh", "--warm-from", "tiny", "--offline", "--device", "cpu", "--dry-run")
    assert dry.code == 0, dry.err
    assert "warm start from" in dry.out
    wrong = study("run", "tiny.yaml", "--warm-from", "tiny,tinny", "--offline", "--device", "cpu")
    assert wrong.code == 2
    assert "--warm-from tinny: no study of this name was run here; did you mean tiny? there are: tiny" in wrong.err


def test_an_idea_that_the_backbone_does_not_offer_is_refused_before_anything_is_stored(folder: Path) -> None:
    write("tiny.yaml", fixed={"backbone": "visformer_tiny@random", "smoothing_sigma": 2.0})
    with pytest.raises(studies.InputError, match=r"--enqueue layers=4\+8: visformer_tiny@random offers the layers"):
        run("tiny.yaml", enqueue=["layers=4+8"], settings={"data.image_size": 224})
    with pytest.raises(studies.InputError, match="no study"):
        studies.open_study("tiny")


def test_an_idea_may_have_other_layers_than_the_file(folder: Path) -> None:
    ran, _ = run("tiny.yaml", trials=1, enqueue=["layers=4"])
    assert ran.trials["layers"][0] == "4"
    assert ran.trials.state[0] == "COMPLETE"


def test_a_file_that_is_sound_only_with_a_setting(folder: Path) -> None:
    raw = yaml.safe_load(Path("tiny.yaml").read_text())
    del raw["detector"]
    Path("tiny.yaml").write_text(yaml.safe_dump(raw))
    run("tiny.yaml", trials=1, settings={"detector": "padim"})
    assert plan("tiny.yaml").config.budget.trials == 1


def test_a_store_that_does_not_know_what_was_given_keeps_its_budget(folder: Path, new_home: Path) -> None:
    run("tiny.yaml", trials=1)
    forget(new_home, "tiny")
    planned = plan("tiny.yaml")
    assert planned.config.budget.trials == 1
    (line,) = planned.remarks
    assert "was to have 1 trials when version 0.2 or an older one ran it last" in line
    assert "`--trials 3` goes on to these" in line
    ran, _ = run("tiny.yaml", settings={"gate.epsilon": 0.1})
    assert len(ran.trials) == 1
    # It is noted from now on.
    assert plan("tiny.yaml").remarks == (
        "kept from earlier runs of study tiny: --trials 1 (tiny.yaml: 3), --set gate.epsilon=0.1 (tiny.yaml: 0.005)",
    )
    assert look_up(Home(new_home), "tiny").origin is not None  # type: ignore[union-attr]
    forget(new_home, "tiny")
    assert plan("tiny", settings={"gate.epsilon": 0.2}).config.budget.trials == 1
    assert len(run("tiny")[0].trials) == 1


# What starts no trial


def test_a_search_that_ended_at_its_time_limit_is_not_started_by_a_threshold(folder: Path) -> None:
    first, _ = run("tiny.yaml", trials=400, timeout="1s")
    assert first.outcome is not None
    assert "time limit" in first.outcome.reason
    count = len(first.trials)
    for section in ({"threshold.rate": 0.2}, {"gate.epsilon": 0.2}, {"execution.attempts": 3}, {"seeds": 2}):
        ran, remarks = run("tiny.yaml", settings=section)
        assert len(ran.trials) == count
        assert any(line.startswith("no trial is started") for line in remarks)
    assert len(ran.view.selected().replicates) == 2  # type: ignore[union-attr]
    assert ran.outcome is not None
    assert "time limit" in ran.outcome.reason
    # The same by an edit of the file; without one, the search goes on.
    write("tiny.yaml", gate={"epsilon": 0.05})
    assert plan("tiny.yaml").settles
    assert plan("tiny.yaml", settings={"gate.epsilon": 0.2}).settles
    assert not plan("tiny.yaml", settings={"gate.epsilon": 0.2}, trials=500).settles
    assert not plan("tiny.yaml", settings={"gate.epsilon": 0.2}, enqueue=["n_features=8"]).settles
    assert not plan("tiny.yaml", settings={"constraints.fps": ">= 1"}).settles
    more, _ = run("tiny", timeout="1s")
    assert len(more.trials) > count


def test_a_search_that_tried_everything_is_not_started_by_a_threshold(folder: Path, new_home: Path) -> None:
    write("few.yaml", name="few", search={"n_features": {"choices": [8, 12]}}, budget={"trials": 9})
    run("few.yaml")
    asked = len(optuna.load_study(study_name="few", storage=open_storage(Home(new_home))).get_trials())
    run("few.yaml", settings={"threshold.rate": 0.3})
    assert len(optuna.load_study(study_name="few", storage=open_storage(Home(new_home))).get_trials()) == asked


def test_a_search_that_was_cut_off_goes_on(folder: Path) -> None:
    def interrupt(notice: Notice) -> None:
        if type(notice).__name__ == "Finished":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("tiny.yaml", progress=interrupt)
    assert not plan("tiny.yaml", settings={"threshold.rate": 0.2}).settles
    assert len(run("tiny.yaml", settings={"threshold.rate": 0.2})[0].trials.query("state == 'COMPLETE'")) == 3


# What is told beforehand


def test_a_dry_run_tells_the_same(folder: Path) -> None:
    def state(*words: str) -> str:
        ended = study("run", *words, "--dry-run", "--offline", "--device", "cpu")
        assert ended.code == 0, ended.err
        return " ".join(ended.out.split())

    assert "state new study" in state("tiny.yaml")
    run("tiny.yaml", trials=1)
    told = state("tiny", "--set", "threshold.rate=0.2")
    assert "no trial is started, because the search has ended: 1 of 1 trials are done" in told
    assert "as it was stored" in told
    assert "goes on after 1 trials, up to 2" in state("tiny.yaml", "--trials", "2")
    assert "state new study" in state("tiny.yaml", "--fresh")
    ended = study("run", "tiny.yaml", "--dry-run", "--offline", "--set", "sampler.seed=9")
    assert ended.code == 2
    assert "created differently: seed (was 0, now 9)" in ended.error


def test_stagnation_is_told_beforehand(folder: Path) -> None:
    run("tiny.yaml", settings={"budget.stagnation": 1}, trials=9)
    assert "no better trial among the last 1" in plan("tiny.yaml").standing


def test_the_header_is_plain_json(folder: Path, new_home: Path) -> None:
    own()
    stored = look_up(Home(new_home), "padim_parts")
    assert stored is not None
    assert json.loads(json.dumps(stored.header.origin)) == stored.header.origin
    assert stored.origin is not None
    assert (stored.origin.kind, stored.origin.root) == ("images", str(folder / "parts"))
    assert stored.origin.base["budget"]["trials"] == 30
    assert stored.origin.settings["budget.trials"] == 1


def test_nothing_is_fetched_for_a_backbone_that_the_study_was_begun_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        "two.yaml",
        name="two",
        search={"backbone": {"choices": [BACKBONE, "wide_resnet50_2"]}},
        fixed={},
        budget={"trials": 1},
    )
    first, _ = run("two.yaml")
    assert first.view.header.dropped == ["wide_resnet50_2"]
    looked_for: list[str] = []
    find = plan_module.find_weights
    monkeypatch.setattr(
        plan_module, "find_weights", lambda spec, **how: looked_for.append(str(spec)) or find(spec, **how)
    )
    # Without --offline, as the report recommends it.
    planned = api.plan_study("two", settings={"threshold.rate": 0.2}, device="cpu")
    assert set(looked_for) == {BACKBONE}
    assert planned.settles
