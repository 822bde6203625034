"""The files under docker/, as far as they can be checked without a container engine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

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
