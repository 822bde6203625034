"""Versions, aliases and the record in a real MLflow store; what a process that died left is taken up."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from PIL import Image

from detectors.errors import InputError
from detectors.runtime.artifact import DESCRIPTION, load_artifact
from tests.helpers.small_models import make_run, random_images, save_detector, source
from tests.helpers.widgets import copy_stores
from tracking.registered_models import SOURCE
from tracking.registry import CHALLENGER, CHAMPION, PENDING, PREVIOUS, Registry

NAME = "widgets"
WRITES = (
    "create_registered_model",
    "create_logged_model",
    "log_model_artifacts",
    "log_metric",
    "finalize_logged_model",
    "create_model_version",
    "copy_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
    "delete_registered_model_tag",
)


class Gone(BaseException):
    """The process is dead: nothing more of it runs."""


class Shop:
    """One store with its registry and two detectors."""

    def __init__(self, home: Path, folders: list[Path], run_id: str) -> None:
        self.home, self.folders, self.run_id = home, folders, run_id
        self.uri = f"sqlite:///{home / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def registry(self) -> Registry:
        """As another process would open it."""
        return Registry(self.uri, audit=self.home / "registry.jsonl", cache=self.home / "models")

    def source(self, number: int) -> Any:
        return source(self.folders[number], self.run_id, key=f"uid/{number}//abc", auroc=0.9 + number / 100)

    def aliases(self, name: str = NAME) -> dict[str, str]:
        return {alias: str(at) for alias, at in self.client.get_registered_model(name).aliases.items()}

    def deeds(self, name: str = NAME) -> list[tuple[str, str, str | None]]:
        return [(line.action, line.version, line.before) for line in self.registry().audit.lines(name)]


@pytest.fixture(scope="module")
def stocked(empty_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Two versions, none of them champion; never changed."""
    folder = tmp_path_factory.mktemp("stocked")
    home = copy_stores(empty_stores, folder / "home")
    folders = [save_detector(folder / f"detector{number}", features=8 + number) for number in range(2)]
    uri = f"sqlite:///{home / 'mlflow.db'}"
    shop = Shop(home, folders, make_run(uri, folder / "artifacts"))
    for number in range(2):
        shop.registry().register(NAME, shop.source(number))
    return shop


@pytest.fixture
def shop(stocked: Shop, tmp_path: Path) -> Shop:
    home = tmp_path / "home"
    shutil.copytree(stocked.home, home)
    return Shop(home, stocked.folders, stocked.run_id)


# --- versions


def test_a_source_is_registered_once(shop: Shop) -> None:
    first = shop.registry().register(NAME, shop.source(0))
    assert [version.version for version in shop.registry().versions(NAME)] == ["2", "1"]
    assert (first.version, first.tags[SOURCE]) == ("1", "uid/0//abc")
    assert shop.aliases() == {CHALLENGER: "1"}
    assert shop.deeds() == [("registered", "1", None), ("registered", "2", None)]
    assert shop.registry().faults(NAME) == []


def test_a_model_says_what_its_aliases_mean_until_a_person_says_otherwise(shop: Shop) -> None:
    told = shop.client.get_registered_model(NAME).description
    assert all(f"**{alias}**" in told for alias in (CHALLENGER, CHAMPION, PREVIOUS))
    assert f"study rollback {NAME} " in told
    shop.client.update_registered_model(NAME, "Line 3.")
    shop.registry().register(NAME, shop.source(1))
    assert shop.client.get_registered_model(NAME).description == "Line 3."


def test_the_metrics_are_linked_to_the_logged_model_and_its_images(stocked: Shop) -> None:
    experiment = stocked.client.get_experiment_by_name("tiny/widget")
    found = stocked.client.search_logged_models([experiment.experiment_id])
    assert len(found) == 2
    for model in found:
        (metric,) = model.metrics
        assert (metric.key, metric.dataset_name, metric.dataset_digest) == (
            "test/image_auroc",
            "tiny/widget",
            "0123abcd",
        )
        assert str(model.status) == "READY"


def test_a_version_that_is_not_there_is_told_with_those_that_are(shop: Shop) -> None:
    with pytest.raises(InputError, match="no registered model 'screws'; there are: widgets"):
        shop.registry().version("screws", CHAMPION)
    with pytest.raises(InputError, match=r"'widgets' has no 'champion'; versions: 2 \(challenger\), 1"):
        shop.registry().version(NAME, CHAMPION)


def test_a_fetched_detector_scores_as_the_saved_one(shop: Shop) -> None:
    version = shop.registry().version(NAME, "1")
    folder = shop.registry().fetch(version)
    assert shop.registry().fetch(version) == folder
    images = random_images(2, 5)
    wanted = load_artifact(shop.folders[0]).detector(images).scores
    assert load_artifact(folder).detector(images).scores.equal(wanted)
    # The store keeps its own.
    shutil.rmtree(shop.home / "models")
    assert shop.registry().fetch(version).is_dir()


# --- the MLflow model


def encoded(count: int, seed: int) -> list[str]:
    texts = []
    for image in random_images(count, seed).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        texts.append(base64.b64encode(file.getvalue()).decode())
    return texts


def test_the_model_answers_requests_through_mlflow(shop: Shop) -> None:
    version = shop.registry().promote(shop.registry().version(NAME, "1"), details={})
    mlflow.set_tracking_uri(shop.uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    finally:
        mlflow.set_tracking_uri(None)
    first, second = model.predict([{"image": text, "return_heatmap": n == 0} for n, text in enumerate(encoded(2, 7))])
    artifact = load_artifact(shop.folders[0])
    scores = artifact.detector(random_images(2, 7)).scores
    assert [first.score, second.score] == pytest.approx(scores.tolist(), rel=1e-6)
    assert first.threshold == artifact.detector.threshold.value
    assert first.verdict == ("defective" if first.score >= first.threshold else "good")
    assert 0 <= first.normals_below <= 1
    assert first.model_version == f"{NAME}/{version.version}"
    heat = Image.open(io.BytesIO(base64.b64decode(first.heatmap)))
    assert (heat.format, heat.size) == ("PNG", (64, 64))
    assert second.heatmap is None


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"image": "no base64!"}, "not base64"),
        ({"image": base64.b64encode(b"no image").decode()}, "not a readable image"),
        ({"image": "x"}, "image"),
        ({"image": "x", "path": "/etc/passwd"}, "path"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(stocked: Shop, request_: dict[str, str], words: str) -> None:
    model = mlflow.pyfunc.load_model(str(stocked.registry().fetch_model(stocked.registry().version(NAME, "1"))))
    with pytest.raises(Exception, match=words):
        model.predict([request_])


def test_the_model_loads_with_its_own_code_where_ours_is_not_installed(stocked: Shop, tmp_path: Path) -> None:
    folder = stocked.registry().fetch_model(stocked.registry().version(NAME, "1"))
    script = f"""
import sys
sys.modules["tracking"] = sys.modules["studies"] = None
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "detectors" and not any("/code" in place for place in sys.path):
            raise ImportError("not installed here")
sys.meta_path.insert(0, Hide())
import mlflow
answers = mlflow.pyfunc.load_model({str(folder)!r}).predict([{{"image": {encoded(1, 7)[0]!r}}}])
import detectors
print(detectors.__file__)
print(answers[0].score)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    place, score = done.stdout.split()[-2:]
    assert str(folder) in place
    wanted = float(load_artifact(stocked.folders[0]).detector(random_images(1, 7)).scores[0])
    assert float(score) == pytest.approx(wanted, rel=1e-5)


def test_the_model_holds_no_pickle_and_pins_what_it_needs(stocked: Shop) -> None:
    folder = stocked.registry().fetch_model(stocked.registry().version(NAME, "1"))
    # Python may have left compiled code beside the model's when it was loaded; that is no part of the model.
    files = [path for path in folder.rglob("*") if path.parent.name != "__pycache__"]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".pyc")]
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in text and "+" not in text for text in lines)
    assert {"torch", "timm", "mlflow", "safetensors"} <= {text.partition("==")[0] for text in lines}
    assert (folder / "artifacts" / "detector" / DESCRIPTION).is_file()


# --- promotion and the way back


def test_promotions_and_the_way_back(shop: Shop) -> None:
    registry = shop.registry()
    registry.promote(registry.version(NAME, "1"), details={"gate": "passed"})
    assert shop.aliases() == {CHALLENGER: "2", CHAMPION: "1"}
    registry.promote(registry.version(NAME, "2"), details={})
    assert shop.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    registry.promote(registry.version(NAME, "2"), details={})
    now, before = registry.roll_back(NAME, reason="too many false alarms")
    assert (now.version, before.version) == ("1", "2")
    assert shop.aliases() == {CHAMPION: "1", PREVIOUS: "2"}
    registry.roll_back(NAME)
    assert shop.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    moved = [("promoted", "1", None), ("promoted", "2", "1"), ("rolled back", "1", "2"), ("rolled back", "2", "1")]
    assert shop.deeds()[2:] == moved
    assert registry.audit.lines(NAME)[4].details == {"reason": "too many false alarms"}
    assert registry.faults(NAME) == []


def test_without_a_champion_before_there_is_no_way_back(shop: Shop) -> None:
    with pytest.raises(InputError, match="has no 'champion'"):
        shop.registry().roll_back(NAME)
    shop.registry().promote(shop.registry().version(NAME, "1"), details={})
    with pytest.raises(InputError, match="version 1 has no champion before it"):
        shop.registry().roll_back(NAME)


def test_a_copy_is_made_once_and_starts_as_challenger(shop: Shop) -> None:
    registry = shop.registry()
    for _ in range(2):
        copied = registry.copy(registry.version(NAME, "1"), "line-3")
    assert [version.version for version in registry.versions("line-3")] == ["1"]
    assert copied.tags["copied.from"] == f"{NAME}/1"
    assert shop.aliases("line-3") == {CHALLENGER: "1"}
    scores = [
        load_artifact(folder).detector(random_images(1, 2)).scores
        for folder in (registry.fetch(copied), shop.folders[0])
    ]
    assert scores[0].equal(scores[1])


def test_a_lost_record_shows(shop: Shop) -> None:
    shop.registry().promote(shop.registry().version(NAME, "1"), details={})
    path = shop.home / "registry.jsonl"
    path.write_text("".join(text + "\n" for text in path.read_text().splitlines()[:-1]))
    (fault,) = shop.registry().faults(NAME)
    assert fault.startswith("promoted version 1 of widgets")


# --- death at every step


def dying(shop: Shop, monkeypatch: pytest.MonkeyPatch, action: Callable[[Registry], Any], step: int, when: str) -> bool:
    """Run an action whose n-th write to the store is its last; whether there were so many."""
    calls = 0

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step and when == "before":
                raise Gone
            value = original(*arguments, **more)
            if calls == step:
                raise Gone
            return value

        return call

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, deadly(getattr(MlflowClient, name)))
        try:
            action(shop.registry())
        except Gone:
            return True
    return False


def consistent(shop: Shop) -> None:
    aliases = shop.aliases()
    there = {version.version for version in shop.registry().versions(NAME)}
    assert set(aliases.values()) <= there
    assert CHAMPION not in aliases or aliases[CHAMPION] != aliases.get(PREVIOUS)
    assert PENDING not in shop.client.get_registered_model(NAME).tags
    assert shop.registry().faults(NAME) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_promotion_that_dies_at_any_step_is_finished_or_not_begun(
    stocked: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    step, seen = 0, set()
    while True:
        step += 1
        home = tmp_path / str(step)
        shutil.copytree(stocked.home, home)
        shop = Shop(home, stocked.folders, stocked.run_id)
        shop.registry().promote(shop.registry().version(NAME, "1"), details={})
        died = dying(
            shop, monkeypatch, lambda registry: registry.promote(registry.version(NAME, "2"), details={}), step, when
        )
        assert CHAMPION in shop.aliases()  # never without, not even now
        shop.registry().settle(NAME)
        consistent(shop)
        assert shop.aliases()[CHAMPION] in "12"
        seen.add(shop.aliases()[CHAMPION])
        shop.registry().promote(shop.registry().version(NAME, "2"), details={})
        consistent(shop)
        assert shop.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
        assert shop.deeds()[3:] == [("promoted", "2", "1")]
        if not died:
            break
    assert step > 5
    # Decided once the goal is written: the first write.
    assert seen == ({"1", "2"} if when == "before" else {"2"})


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rollback_that_dies_at_any_step_swaps_once(
    stocked: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    step = 0
    died = True
    while died:
        step += 1
        home = tmp_path / str(step)
        shutil.copytree(stocked.home, home)
        shop = Shop(home, stocked.folders, stocked.run_id)
        for version in ("1", "2"):
            shop.registry().promote(shop.registry().version(NAME, version), details={})
        died = dying(shop, monkeypatch, lambda registry: registry.roll_back(NAME), step, when)
        begun = shop.registry().settle(NAME) or shop.aliases()[CHAMPION] == "1"
        consistent(shop)
        assert shop.aliases() == ({CHAMPION: "1", PREVIOUS: "2"} if begun else {CHAMPION: "2", PREVIOUS: "1"})
        assert len(shop.deeds()) == (5 if begun else 4)
    assert step > 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_registration_that_dies_at_any_step_makes_one_version(
    stocked: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    from tracking import registered_models as module

    # Packing takes seconds and is the same each time.
    packed = tmp_path / "packed"
    shutil.copytree(stocked.registry().fetch_model(stocked.registry().version(NAME, "1")), packed)
    monkeypatch.setattr(module, "packed", lambda folder, metadata: nullcontext(packed))
    step, died = 0, True
    while died:
        step += 1
        home = tmp_path / str(step)
        shutil.copytree(stocked.home, home)
        shop = Shop(home, stocked.folders, stocked.run_id)
        third = source(stocked.folders[0], stocked.run_id, key="uid/9//new")
        died = dying(shop, monkeypatch, lambda registry, third=third: registry.register(NAME, third), step, when)
        version = shop.registry().register(NAME, third)
        assert [found.version for found in shop.registry().versions(NAME)] == ["3", "2", "1"]
        assert (version.version, version.aliases) == ("3", (CHALLENGER,))
        assert load_artifact(shop.registry().fetch(version)).provenance["trial"] == 8
        assert [deed for deed in shop.deeds() if deed[1] == "3"] == [("registered", "3", None)]
        consistent(shop)
        models = shop.client.search_logged_models([shop.client.get_experiment_by_name("tiny/widget").experiment_id])
        assert len([model for model in models if model.tags[SOURCE] == "uid/9//new"]) == 1
    assert step > 6
