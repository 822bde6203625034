"""Which model is served: what happens when another is wanted, when it is broken, and when nobody can say."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.errors import InputError
from detectors.runtime.verdicts import Verdict, judge
from studies.home import Home
from studies.serving import models
from studies.serving.models import (
    LONGEST_RETRY_SECONDS,
    RETRY_SECONDS,
    FolderSource,
    Keeper,
    ModelVersion,
    RegistrySource,
    StudySource,
    find_source,
)
from studies.serving.settings import Settings
from tests.helpers.command_line import set_home
from tests.helpers.in_process import running, started
from tests.helpers.servers import MlflowServer
from tests.helpers.small_models import make_run, random_images, save_detector, source
from tests.helpers.widgets import copy_stores
from tracking.patience import Patience
from tracking.registry import Registry

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("kept")
    return [save_detector(folder / str(features), features=features) for features in (8, 12)]


class Script:
    """A source that says what it is told to, and the keeper of what it says."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = dict(zip("ab", folders, strict=True))
        self.identity, self.wrong, self.unfetchable = "a", None, None
        self.fetched: list[str] = []
        self.said: list[str] = []
        self.outcomes: list[str] = []
        self.now = 1000.0
        self.keeper = Keeper(
            self,
            device=torch.device("cpu"),
            say=self.said.append,
            swapped=self.outcomes.append,
            clock=lambda: self.now,
        )

    def latest(self) -> ModelVersion:
        if self.wrong is not None:
            raise self.wrong
        return ModelVersion(self.identity, "widgets", self.identity)

    def fetch(self, version: ModelVersion) -> Path:
        self.fetched.append(version.identity)
        if self.unfetchable is not None:
            raise self.unfetchable
        return self.folders[version.identity]

    @property
    def served(self) -> str:
        assert self.keeper.current is not None
        return self.keeper.current.version.number


@pytest.fixture
def script(folders: list[Path]) -> Script:
    made = Script(folders)
    made.keeper.start()
    return made


def test_another_model_takes_the_place_of_the_present_one_once(script: Script) -> None:
    assert script.keeper.check() is False
    script.identity = "b"
    assert [script.keeper.check() for _ in range(3)] == [True, False, False]
    assert (script.served, script.outcomes) == ("b", ["swapped"])
    assert script.said == ["now serving widgets version b"]
    assert script.fetched == ["a", "b"]


def test_a_threshold_that_is_given_is_for_the_first_model_alone(folders: list[Path]) -> None:
    script = Script(folders)
    script.keeper = Keeper(script, device=torch.device("cpu"), threshold=7.5, say=script.said.append)
    loaded = script.keeper.start()
    threshold = loaded.artifact.threshold
    assert threshold is not None
    assert (threshold.value, threshold.rule, loaded.describe()["threshold"]["value"]) == (7.5, "value", 7.5)
    script.identity = "b"
    assert script.keeper.check() is True
    assert script.said[1] == "the threshold that was given, 7.5, was for the model before; this one has its own"
    assert script.keeper.current is not None
    assert script.keeper.current.artifact.threshold.value != 7.5
    script.identity = "a"
    assert script.keeper.check() is True
    assert len(script.said) == 3


@pytest.mark.parametrize("wrong", [InputError("the store is away"), OSError("no route"), KeyError("x")])
def test_a_source_that_cannot_say_changes_nothing_and_is_told_of_once(script: Script, wrong: Exception) -> None:
    script.wrong = wrong
    assert [script.keeper.check() for _ in range(3)] == [False] * 3
    (line,) = script.said
    assert "the present one continues" in line
    script.wrong, script.identity = None, "b"
    assert script.keeper.check() is True
    assert script.said[1:] == ["the source of the model answers again", "now serving widgets version b"]


@pytest.mark.parametrize("wrong", [InputError("its files are gone"), OSError("disk full"), MemoryError()])
def test_a_model_that_fails_is_tried_again_but_not_at_every_poll(script: Script, wrong: Exception) -> None:
    script.identity, script.unfetchable = "b", wrong
    tried = []
    for _ in range(4 * int(LONGEST_RETRY_SECONDS / RETRY_SECONDS)):
        count = len(script.fetched)
        assert script.keeper.check() is False
        if len(script.fetched) > count:
            tried.append(script.now)
        script.now += RETRY_SECONDS / 3
    pauses = np.diff(tried)
    assert pauses[0] == pytest.approx(RETRY_SECONDS)
    assert (pauses[1:] >= np.minimum(2 * pauses[:-1], LONGEST_RETRY_SECONDS) - 1).all()
    assert script.served == "a"
    assert script.outcomes == ["failed"] * len(tried)
    (line,) = script.said
    assert line.startswith("widgets version b is not served: ")
    script.unfetchable = None
    script.now += LONGEST_RETRY_SECONDS
    assert script.keeper.check() is True
    assert script.served == "b"


def test_a_third_model_need_not_wait_for_a_broken_one(script: Script, folders: list[Path]) -> None:
    script.identity = "broken"
    assert script.keeper.check() is False
    script.identity = "b"
    assert script.keeper.check() is True


def test_a_model_whose_map_is_not_finite_is_not_served(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(model: object, rgb: list) -> list[Verdict]:
        (verdict,) = judge(model, rgb)
        return [Verdict(verdict.score, None, None, None, np.full_like(verdict.anomaly_map, np.nan))]

    monkeypatch.setattr(models, "judge", nothing)
    script.identity = "b"
    assert script.keeper.check() is False
    assert script.served == "a"
    assert "not finite" in script.said[0]


def test_following_goes_on_in_the_background_until_it_is_ended(script: Script) -> None:
    end = script.keeper.follow(0.01)
    script.identity = "b"
    wait_for(lambda: script.served == "b")
    end()
    time.sleep(0.1)
    script.identity = "a"
    time.sleep(0.1)
    assert script.served == "b"


def wait_for(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_study_is_followed_to_a_better_trial(folders: list[Path]) -> None:
    selected = {"padim_screw": folders[0]}
    keeper = Keeper(StudySource("padim_screw", selected.__getitem__), device=torch.device("cpu"))
    first = keeper.start()
    assert first.version.name == "padim_screw"
    assert keeper.check() is False
    selected["padim_screw"] = folders[1]
    assert keeper.check() is True
    assert keeper.current is not None
    assert keeper.current.artifact.provenance["trial"] == 12
    del selected["padim_screw"]
    assert keeper.check() is False
    assert keeper.current.artifact.provenance["trial"] == 12


def test_a_model_is_a_folder_a_study_or_a_registered_one(finished: Path, folders: list[Path]) -> None:
    def no_registry(home: Home) -> Registry:
        raise InputError("asked for the registry")

    with pytest.MonkeyPatch.context() as patch:
        set_home(patch, finished)
        home = Home.from_environment()
        # The home that is given counts, not the environment's.
        patch.setenv("STUDY_HOME", str(finished / "elsewhere"))
        study = find_source("tiny", home, open_registry=no_registry)
        assert isinstance(study, StudySource)
        assert study.fetch(study.latest()).is_dir()
        patch.chdir(folders[0])
        folder = find_source(".", home, open_registry=no_registry)
        assert isinstance(folder, FolderSource)
        assert folder.name == "8"
        for wrong, words in {
            "no_such": "no study",
            "models:/widgets": "models:/NAME@champion",
            "models:/widgets@champion": "asked for the registry",
        }.items():
            with pytest.raises(InputError, match=words):
                find_source(wrong, home, open_registry=no_registry)


@pytest.fixture
def server(empty_stores: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    home = copy_stores(empty_stores, tmp_path / "server")
    with MlflowServer(home, f"sqlite:///{home / 'mlflow.db'}") as started_one:
        yield started_one


def test_a_registry_that_is_away_for_a_while_costs_nothing(
    server: MlflowServer, folders: list[Path], tmp_path: Path
) -> None:
    registry = Registry(server.uri, audit=tmp_path / "registry.jsonl", cache=tmp_path / "models")
    run = make_run(server.uri, tmp_path / "artifacts")
    versions = [registry.register("widgets", source(one, run, key=str(n))) for n, one in enumerate(folders)]
    registry.promote(versions[0], details={})
    registry = Registry(
        server.uri,
        audit=tmp_path / "registry.jsonl",
        cache=tmp_path / "models",
        patience=Patience(give_up_seconds=0.2),
    )
    said: list[str] = []
    keeper = Keeper(RegistrySource(registry, "widgets", "champion"), device=torch.device("cpu"), say=said.append)
    assert keeper.start().version.number == "1"
    server.kill()
    assert [keeper.check() for _ in range(2)] == [False, False]
    (line,) = said
    assert "the present one continues" in line
    assert keeper.current is not None
    assert judge(keeper.current.artifact, [random_images(1, 7)[0].permute(1, 2, 0).numpy()])[0].score > 0
    server.start()
    assert keeper.check() is False
    registry.promote(versions[1], details={})
    assert keeper.check() is True
    assert said[1:] == ["the source of the model answers again", "now serving widgets version 2"]


def test_a_service_does_not_wait_for_a_silent_source_to_end(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, let_go = started(folders[0]), threading.Event()
    events: list[str] = []

    def silent() -> bool:
        events.append("asked")
        let_go.wait(60)
        events.append("answered")
        return False

    monkeypatch.setattr(keeper, "check", silent)
    with running(keeper, Settings(poll_seconds=0.01)):
        wait_for(lambda: events)
    assert events == ["asked"]
    let_go.set()
