"""A detector of a person's own, from a file and from a package: searched, promoted, and served where it is not installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from studies.home import Home
from tests.helpers.servers import free_port
from tests.helpers.shell import Shell, assert_told, make_shell, raw_study
from tests.helpers.worked_example import EXAMPLE
from tracking.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("--offline", "--device", "cpu", "--inline")
LOAD = """
import json, sys
import mlflow.pyfunc
(answer,) = mlflow.pyfunc.load_model(sys.argv[1]).predict([{"image": sys.argv[2]}])
import detectors.catalog
print(json.dumps({"score": answer.score, "code": detectors.__file__, "names": detectors.catalog.names()}))
"""


@pytest.fixture
def shell(tmp_path: Path, empty_stores: Path) -> Shell:
    return make_shell(tmp_path / "work", empty_stores)


@pytest.fixture
def image(tiny_mvtec: Path) -> Path:
    return next((tiny_mvtec / "widget" / "test" / "dent").glob("*.png"))


def study_file(root: Path, detector: str) -> dict[str, Any]:
    changes = {"detector": detector, "search": {"regularization": {"float": [0.001, 0.1]}}, "budget": {"trials": 1}}
    return raw_study(root, **changes)


def clean_environment(shell: Shell, nowhere: Path) -> dict[str, str]:
    """Of a process that finds no code of ours by PYTHONPATH, and works elsewhere."""
    nowhere.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by name
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{shell.home / 'mlflow.db'}"}
    for name in ("PYTHONPATH", "STUDY_HEADS", "STUDY_HOME"):
        environment.pop(name, None)
    return environment


@contextmanager
def served(model: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """``mlflow models serve``; its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--port", str(port), "--workers", "1"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, body: Any, log: Path) -> Any:
    deadline = time.monotonic() + 180
    while True:
        try:
            answer = requests.post(address, json=body, timeout=60)
        except requests.ConnectionError:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
            continue
        assert answer.status_code == 200, answer.text
        return answer.json()


def score_of(shell: Shell, model: str, image: Path, **environment: str) -> float:
    ended = shell.in_a_process("predict", model, image, "--json", **environment)
    assert ended.code == 0, ended
    return float(json.loads(ended.out)[0]["score"])


@pytest.mark.slow
def test_a_head_from_a_file_is_searched_promoted_and_served_elsewhere(
    shell: Shell, tiny_mvtec: Path, image: Path, tmp_path: Path
) -> None:
    (shell.folder / "heads").mkdir()
    shutil.copy(EXAMPLE, shell.folder / "heads" / "mine.py")
    path = shell.write(study_file(tiny_mvtec, "heads/mine.py:Diagonal"))  # beside the study file
    ended = shell("run", path, *QUICK)
    assert ended.code == 0, ended
    assert "diagonal" in ended.out
    score = score_of(shell, "tiny", image)

    # Its text belongs to the study.
    with (shell.folder / "heads" / "mine.py").open("a") as file:
        file.write("\n# edited\n")
    assert_told(shell("run", path, *QUICK, "--quiet"), "the code of diagonal", "--fresh")
    (shell.folder / "heads" / "mine.py").unlink()
    assert_told(shell("run", path, *QUICK, "--quiet"), "mine.py: cannot be read")

    # Later commands use the text that was kept.
    assert score_of(shell, "tiny", image) == score
    ended = shell("promote", "tiny")
    assert ended.code == 0, ended
    assert score_of(shell, "models:/tiny@champion", image) == pytest.approx(score, rel=1e-6)

    # Where nobody ever named the file, the commands run no code for a store's or a registry's sake ...
    shutil.move(shell.home / "heads", tmp_path / "heads")
    for model in ("tiny", "models:/tiny@champion"):
        assert_told(shell.in_a_process("predict", model, image), "a file mine.py that nobody named here", "STUDY_HEADS")
    shown = shell("show", "tiny")
    assert shown.code == 0, shown
    assert "diagonal" in shown.out
    assert score_of(shell, "models:/tiny@champion", image, STUDY_HEADS=str(EXAMPLE)) == pytest.approx(score, rel=1e-6)

    # ... and MLflow serves the model by the code that it brings.
    environment = clean_environment(shell, tmp_path / "nowhere")
    body = {"inputs": [{"image": base64.b64encode(image.read_bytes()).decode(), "return_heatmap": False}]}
    with served("models:/tiny@champion", tmp_path / "nowhere", environment) as address:
        (prediction,) = ask(address, body, tmp_path / "nowhere" / "serve.log")["predictions"]
    assert prediction["score"] == pytest.approx(score, rel=1e-5)


@pytest.mark.slow
def test_a_head_from_a_file_runs_in_worker_processes_without_a_study_file(shell: Shell, tiny_mvtec: Path) -> None:
    shutil.copy(EXAMPLE, shell.folder / "mine.py")
    words = ["run", "mine.py:Diagonal", "--images", tiny_mvtec / "widget" / "train", "--trials", 1, "--json"]
    ended = shell(*words, "--offline", "--device", "cpu", "--set", "data.image_size=64", "--set", "protocol=synthetic")
    assert ended.code == 0, ended
    assert json.loads(ended.out)["name"] == "mine_train"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent.py:Mine", "absent.py: cannot be read"),
        ("mine.py:Absent", "mine.py: has no class Absent; its heads: Diagonal"),
        ("mine.py:BLOCK", "mine.py: BLOCK is no subclass of detectors.base.Head"),
        ("mine.py", "give a detector of your own as FILE.py:CLASS"),
        ("broken.py:Mine", "broken.py, line 1: invalid syntax"),
    ],
)
def test_a_file_that_is_no_head_is_told_in_one_line(
    shell: Shell, tiny_mvtec: Path, reference: str, message: str
) -> None:
    shutil.copy(EXAMPLE, shell.folder / "mine.py")
    (shell.folder / "broken.py").write_text("class Mine(Head:\n")
    assert_told(shell("run", shell.write(study_file(tiny_mvtec, reference)), *QUICK), message, "tiny.yaml: detector: ")
    assert_told(shell("run", reference, "--images", tiny_mvtec / "widget" / "train"), message)


# --- a package


def install(site: Path) -> None:
    """A package with the example's head, as an installer would leave it."""
    package = site / "flat_defects"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Detectors for flat parts."""\n')
    (package / "diagonal.py").write_text(
        EXAMPLE.read_text().replace("BLOCK = 256", "from flat_defects.sizes import BLOCK")
    )
    (package / "sizes.py").write_text("BLOCK = 256\n")
    metadata = site / "flat_defects-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flat-defects\nVersion: 1.2\nRequires-Dist: anomaly-studies>=0.1\n"
        "Requires-Dist: rich>=10\nRequires-Dist: not-there>=1; extra == 'docs'\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[anomaly_studies.detectors]\ndiagonal = flat_defects.diagonal:Diagonal\n"
    )
    files = ["flat_defects/__init__.py,,", "flat_defects/diagonal.py,,", "flat_defects/sizes.py,,"]
    (metadata / "RECORD").write_text("\n".join([*files, "flat_defects-1.2.dist-info/METADATA,,", ""]))


@pytest.mark.slow
def test_a_packages_head_is_served_where_the_package_is_not_installed(
    shell: Shell, tiny_mvtec: Path, image: Path, tmp_path: Path
) -> None:
    install(tmp_path / "site")
    study = [sys.executable, "-m", "studies.cli"]
    here = {
        **os.environ,
        **shell.environment,
        "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{tmp_path / 'site'}",
    }
    path = shell.write(study_file(tiny_mvtec, "diagonal"))
    for words in (["run", str(path), *QUICK], ["promote", "tiny"], ["predict", "tiny", str(image), "--json"]):
        done = subprocess.run(
            [*study, *words], cwd=shell.folder, env=here, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done
    score = json.loads(done.stdout)[0]["score"]

    # Without the package: told what is missing, and how to bring it.
    ended = shell.in_a_process("predict", "tiny", image)
    assert_told(ended, "unknown detector 'diagonal'", "FILE.py:CLASS", "entry point")
    assert shell("show", "tiny").code == 0

    home = Home(shell.home)
    registry = Registry(home.tracking_uri, audit=shell.home / "registry.jsonl", cache=shell.home / "models")
    model = registry.fetch_model(registry.version("tiny", "champion"))
    assert sorted(path.name for path in (model / "code").iterdir() if "dist-info" not in path.name) == [
        "detectors",
        "flat_defects",
    ]
    needed = (model / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in needed if line.startswith(("rich", "anomaly", "not-there"))] == ["rich"]
    assert all("==" in line for line in needed)
    environment = clean_environment(shell, tmp_path / "nowhere")
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(model), base64.b64encode(image.read_bytes()).decode()],
        cwd=tmp_path / "nowhere",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["score"] == pytest.approx(score, rel=1e-5)
    assert answer["code"].startswith(str(model / "code"))
    assert "diagonal" in answer["names"]
    assert "padim" in answer["names"]
    assert yaml.safe_load((model / "MLmodel").read_text())["flavors"]["python_function"]["code"] == "code"
