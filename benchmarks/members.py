"""Whether several backbones together beat each alone: one setting of PatchCore, each backbone and all three, at two image sizes.

Fitted to train and scored on validation, as a trial is; test is not looked at.

    MVTEC_AD_ROOT=... python benchmarks/members.py --out benchmarks/results/members.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from detectors import catalog
from detectors.backbones.bundled import BUNDLED
from studies.executors.slots import available_cores
from studies.file.config import validate
from studies.home import Home
from studies.search.plan import Options, make_plan
from studies.search.samplers import derive_seed
from studies.worker.jobs import Job
from studies.worker.trial import run_job

SIZES = (256, 320)
SETTING: dict[str, Any] = {
    "layers": [8, 16],
    "coreset_ratio": 0.01,
    "neighbourhood": 0,
    "whitening": 0.05,
    "smoothing_sigma": 4.0,
}
"""The prior's first."""


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    backbones = [*BUNDLED, "+".join(BUNDLED)]
    raw = {
        "name": "members",
        "detector": "patchcore",
        "data": {"dataset": "mvtec", "category": "screw", "image_size": 256},
        "protocol": "holdout",
        "search": {"backbone": {"choices": backbones}},
    }
    config = validate(raw, source="members")
    defaults = {name: parameter.default for name, parameter in catalog.parameters("patchcore").items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home").prepare()
        plan = make_plan(config, home, Options(device="cpu", offline=True))
        for size in SIZES:
            for name in backbones:
                job = Job(
                    task="probe",
                    study_uid="0123456789ab",
                    number=0,
                    attempt=1,
                    config=config.to_json() | {"protocol": plan.splits.protocol},
                    params={**defaults, **SETTING, "backbone": name, "image_size": size},
                    strides=(8, 16),
                    weights_sha256=plan.backbones[name].sha256,
                    splits_digest=plan.splits.digest,
                    seed=derive_seed(0, "trial", 0),
                    structural_seed=0,
                    home=str(home.root),
                    folder=f"{folder}/{name}-{size}",
                    device="cpu",
                    threads=available_cores(),
                )
                metrics = run_job(job).metrics
                figures = ("val/image_auroc", "val/pixel_aupro", "train_seconds")
                rows.append({"backbone": name, "size": size} | {figure: metrics[figure] for figure in figures})
                print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"setting": SETTING, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
