"""What a resumed study must agree on with the study that was started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from detectors.backbones.pyramid import WeightsIdentity
from studies.file.config import StudyConfig
from studies.file.datasets import StudyImages

Identity = dict[str, Any]
"""Part by part, as JSON can hold it: what is kept in the storage and compared on resume."""


def study_identity(config: StudyConfig, images: StudyImages, networks: Mapping[str, WeightsIdentity]) -> Identity:
    """The identity of a study over these images.

    Args:
        networks: the networks that detectors of the study start from, with their pretrained weights.
    """
    search = {name: dimension.model_dump(mode="json", exclude_none=True) for name, dimension in config.search.items()}
    started_from = {name: networks[name].sha256 for name in config.networks()}
    heads = {name: record.sha256 for name, record in config.heads.items()}
    # Absent where there are none, as in studies of version 0.1.
    code = ({"networks": started_from} if started_from else {}) | ({"heads": heads} if heads else {})
    return code | {
        "detector": config.detector,
        "protocol": images.protocol,
        "data": images.digests,
        "image_size": list(config.data.size),
        "search": search,
        "fixed": dict(config.fixed),
        # In their order, which is that of Optuna's values; the first one selects.
        "objectives": [[name, direction] for name, direction in config.objectives.items()],
        "seed": config.sampler.seed,
    }


def differences(stored: Identity, wanted: Identity) -> list[str]:
    """Where two identities differ, one entry for each value, for a person to read."""
    lines = []
    for key in sorted({*stored, *wanted}):
        before, now = stored.get(key), wanted.get(key)
        if before == now:
            continue
        if key == "heads":
            edited = {name for name, _ in {*(before or {}).items()} ^ {*(now or {}).items()}}
            lines.append(f"the code of {', '.join(sorted(edited))}")
            continue
        if not (isinstance(before, dict) and isinstance(now, dict)):
            lines.append(f"{key} ({_change(before, now)})")
            continue
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if key == "data":
            lines.append(f"the images of {', '.join(changed)}")
        else:
            lines += [f"{key}.{name} ({_change(before.get(name), now.get(name))})" for name in changed]
    return lines


def _change(before: Any, now: Any) -> str:
    return f"was {_written(before)}, now {_written(now)}"


def _written(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)
