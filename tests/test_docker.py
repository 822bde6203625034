"""The files under docker/, as far as they can be checked without a container engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.helpers.servers import Postgres, free_port, skip_without_postgres
from tests.helpers.shell import raw_study

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    return instructions(DOCKER / "Dockerfile")


def test_the_image_holds_what_the_package_is_made_of(dockerfile):
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md", "constraints.txt"}
    copied = {
        name
        for what, arguments in dockerfile
        if what == "COPY" and "--from" not in arguments
        for name in arguments.split()[:-1]
    }
    assert copied == wanted
    assert all((ROOT / name).exists() for name in copied)
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert kept == wanted


def test_the_image_installs_extras_that_there_are(dockerfile):
    (extras,) = (found[1].split(",") for _, text in dockerfile if (found := re.search(r'"\.\[(.+?)\]"', text)))
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_the_container_is_nobody_special(dockerfile):
    last = [name for name, _ in dockerfile[::-1]]
    assert last.index("USER") < last.index("COPY")
    assert ("USER", "study") in dockerfile
    assert ("ENTRYPOINT", '["study"]') in dockerfile
    assert "study" in PROJECT["project"]["scripts"]


def test_the_ray_cluster_runs_the_tested_ray():
    cluster: dict[str, Any] = yaml.safe_load((DOCKER / "ray-cluster.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    for group in groups:
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert container["image"].startswith("anomaly-studies")
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/outputs"}


# --- compose


SECRETS = {
    "POSTGRES_PASSWORD": "a-password",
    "MLFLOW_ADMIN_PASSWORD": "a-long-password",
    "MLFLOW_SECRET_KEY": "a-key",
    "SERVE_TOKEN": "a-token",
    "MODEL": "tiny",
}


def composed(values: dict[str, str]) -> dict[str, Any]:
    """The compose file with its variables filled in, as `docker compose config` would."""

    def fill(found: re.Match[str]) -> str:
        name, kind, rest = found[1], found[2], found[3] or ""
        if values.get(name):
            return values[name]
        assert kind == ":-", f"{name}: {rest}"
        return rest

    text = "\n".join(line for line in (DOCKER / "compose.yaml").read_text().splitlines() if not line.startswith("#"))
    filled: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{([A-Z_]+)(?:(:-|:\?)([^}]*))?\}", fill, text))
    return filled


def test_no_service_starts_without_its_secrets() -> None:
    for missing in ("POSTGRES_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY", "SERVE_TOKEN"):
        with pytest.raises(AssertionError, match=r"put it into docker/\.env"):
            composed(SECRETS | {missing: ""})
    assert composed(SECRETS)["name"] == "anomaly-studies"
    named = {
        line.partition("=")[0] for line in (DOCKER / "example.env").read_text().splitlines() if line and line[0] != "#"
    }
    assert named >= set(SECRETS)


def test_the_services_fit_together() -> None:
    found = composed(SECRETS)
    services = found["services"]
    assert set(services) == {"postgres", "mlflow", "worker", "serve"}
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert place in found["volumes"] or place.startswith("../") or (DOCKER / place).is_file(), volume
        if name != "worker":
            assert service["healthcheck"]["test"]
        if name != "postgres":
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
    assert services["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"] in services["mlflow"]["volumes"][-1]


@pytest.mark.postgres
def test_the_commands_of_the_services_work_together_outside_containers(tiny_mvtec: Path, tmp_path: Path) -> None:
    """PostgreSQL, MLflow with passwords, a study, its promotion and the service, by the compose file's own commands."""
    skip_without_postgres()
    pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")
    port, serving = free_port(), free_port()
    services = composed(SECRETS)["services"]
    with Postgres() as postgres, ExitStack() as running:
        here = {
            "postgresql+psycopg://studies:a-password@postgres/studies": postgres.storage(),
            "postgresql+psycopg://studies:a-password@postgres/mlflow": postgres.database(),
            "http://mlflow:5000": f"http://127.0.0.1:{port}",
            "mlflow:5000": f"127.0.0.1:{port}",
            "--port=5000": f"--port={port}",
            "--port=8080": f"--port={serving}",
            "/etc/mlflow/auth.ini": str(tmp_path / "auth.ini"),
            "/artifacts": str(tmp_path / "artifacts"),
            "/outputs": str(tmp_path / "home"),
            "0.0.0.0": "127.0.0.1",
        }
        settings = (DOCKER / "mlflow-auth.ini").read_text().replace("/auth/users.db", f"{tmp_path}/users.db")
        (tmp_path / "auth.ini").write_text(settings)

        def local(text: str) -> str:
            for place, ours in here.items():
                text = text.replace(place, ours)
            return text

        def environment(name: str) -> dict[str, str]:
            clean = {key: value for key, value in os.environ.items() if not key.startswith(("STUDY_", "MLFLOW_"))}
            given = {key: local(str(value)) for key, value in services[name]["environment"].items() if key != "HOME"}
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            return clean | given | {"STUDY_HOME": str(tmp_path / "home"), "PATH": path}

        def start(name: str, words: list[str], ready: str) -> None:
            log = running.enter_context((tmp_path / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                words, cwd=tmp_path, env=environment(name), stdout=log, stderr=log, start_new_session=True
            )
            running.callback(process.wait)
            running.callback(os.killpg, process.pid, signal.SIGKILL)
            deadline = time.monotonic() + 120
            while True:
                with suppress(requests.RequestException):
                    if requests.get(ready, timeout=5).status_code == 200:
                        return
                told = (tmp_path / f"{name}.log").read_text()
                assert process.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(0.2)

        def study(*words: str) -> None:
            done = subprocess.run(
                [sys.executable, "-m", "studies.cli", *words],
                cwd=tmp_path,
                env=environment("worker"),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done

        words = [local(word) for word in (*services["mlflow"]["entrypoint"], *services["mlflow"]["command"])]
        start("mlflow", [sys.executable, "-m", *words], f"http://127.0.0.1:{port}/health")
        assert requests.get(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", timeout=20).status_code == 401
        raw = raw_study(tiny_mvtec, budget={"trials": 1}, gate={"floor": {}})
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
        run, _, offline = services["worker"]["command"]
        study(run, "tiny.yaml", offline, "--inline")
        study("promote", "tiny")
        command = [local(word) for word in services["serve"]["command"]]
        start("serve", [sys.executable, "-m", "studies.cli", *command], f"http://127.0.0.1:{serving}/readyz")
        image = next((tiny_mvtec / "widget" / "test" / "good").glob("*.png")).read_bytes()
        address = f"http://127.0.0.1:{serving}/predict"
        assert requests.post(address, files={"file": image}, timeout=60).status_code == 401
        answer = requests.post(address, files={"file": image}, headers={"Authorization": "Bearer a-token"}, timeout=60)
        assert answer.json()["model"] == {"name": "tiny", "version": "1"}
