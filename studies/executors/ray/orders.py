"""What a job becomes before it goes to a node: without paths of the driver's folder, with what nodes must know and must have."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

from detectors.files import write_text
from detectors.head_texts import HeadCode, text_of
from studies.executors.ray.node import Orders
from studies.home import Home, mvtec_folder
from studies.worker.jobs import Job


def orders_of(job: Job) -> Orders:
    """What nodes must know; leaves the beacon by which they recognise the driver's home."""
    secret = uuid.uuid4().hex
    beacon = Home(Path(job.home)).locks / f"ray-{secret[:12]}"
    write_text(beacon, secret)
    weights = os.environ.get("STUDY_WEIGHTS")
    codes = [HeadCode.from_json(record) for record in job.config.get("heads", {}).values()]
    return Orders(
        str(beacon),
        secret,
        str(mvtec_folder()),
        str(Path(weights).expanduser().absolute()) if weights else None,
        heads={code.sha256: text_of(code) for code in codes},
    )


def need_of(job: Job) -> str:
    """What a node must have for a job."""
    return " ".join([job.splits_digest, job.weights_sha256, *sorted(job.networks.values())])


def absolute(job: Job) -> Job:
    """The job without paths that depend on the driver's working folder."""
    data = dict(job.config.get("data", {}))
    if isinstance(data.get("root"), str):
        data["root"] = str(Path(data["root"]).expanduser().absolute())
    weights = str(Path(job.weights_dir).expanduser().absolute()) if job.weights_dir else None
    return replace(job, config={**job.config, "data": data}, weights_dir=weights)
