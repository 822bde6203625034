"""Metrics, counts, shares, durations and settings as the text of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from scipy.stats import binomtest

from detectors.catalog import head_class
from detectors.errors import InputError
from studies.show import tables

METRICS = {
    "image_auroc": "image AUROC",
    "ranking_score": "ranking score on painted defects",
    "image_ap": "image average precision",
    "image_f1_max": "image F1max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel average precision",
    "pixel_f1_max": "pixel F1max",
    "pixel_aupro": "AUPRO",
    "pixel_aupro_05": "AUPRO up to 5 % false positives",
    "image_recall": "recall at the threshold",
    "false_alarm_rate": "false-alarm rate at the threshold",
    "seg_f1": "pixel F1 at the threshold",
    "fps": "images per second",
    "throughput": "images per second in batches of 32",
    "latency_ms_p50": "ms per image (median)",
    "latency_ms_p95": "ms per image (95 %)",
    "peak_memory_mb": "peak memory in MB",
    "model_size_mb": "model size in MB",
    "train_seconds": "seconds to fit",
}
"""Names of the metrics for readers."""
STAGES = {
    "fit": "fitting",
    "validate": "validating on the way",
    "score": "scoring",
    "speed": "measuring speed",
    "plots": "drawing plots and heat maps",
    "pictures": "drawing plots and heat maps",  # what version 0.1 called it
    "backbone": "loading the backbone",
}
"""Names of the stages of a trial for readers; a stage that is not listed here keeps its own name."""
PROTOCOLS = {
    "holdout": "holdout: half of the labelled images guided the search, the other half (test) was kept from it",
    "paper": "paper: no search; every setting is scored on the whole official test set",
    "synthetic": "synthetic: no labelled defects; defects painted into held-out good images stand for them",
}
"""What each protocol does."""


def detector(name: str) -> str:
    """A detector's name as its authors write it: ``padim`` becomes ``PaDiM``."""
    try:
        return head_class(name).title or name
    except InputError:  # The package that added it is no longer installed.
        return name


def metric(name: str) -> str:
    """A metric's name in words; the image set in front of it is dropped: ``val/image_auroc`` becomes ``image AUROC``."""
    return METRICS.get(name.rpartition("/")[2], name)


def share(count: int, of: int, what: str = "") -> str:
    """A count of a total, with its share: ``16 of 58 defects (28 %)``."""
    named = f"{of} {what}".strip()
    return f"{count} of {named} ({percent(count / of)})" if of else f"none of {named}"


def share_with_interval(count: int, of: int) -> str:
    """A count of a total, with its share and the Wilson interval: ``16 of 58 (28 %, 95 % interval 18 to 40 %)``."""
    if not of:
        return "none of 0"
    low, high = binomtest(count, of).proportion_ci(confidence_level=0.95, method="wilson")
    return f"{count} of {of} ({percent(count / of)}, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def percent(part: float) -> str:
    """A share from 0 to 1 as ``28 %``; below one percent with one decimal."""
    return f"{100 * part:.1f} %" if 0 < part < 0.01 else f"{100 * part:.0f} %"


def interval(metrics: Mapping[str, float], name: str) -> str:
    """The interval of a metric, ``0.810 to 0.970``; empty if an end is not known."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return f"{low:.3f} to {high:.3f}" if low is not None and high is not None else ""


def duration(seconds: float) -> str:
    """Seconds as ``0.7 s``, ``42 s``, ``12 min`` or ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def speed(fps: float) -> str:
    """A rate as ``30 images per second (33.3 ms each)``."""
    return f"{fps:.3g} images per second ({1000 / fps:.3g} ms each)" if fps > 0 else "0 images per second"


def setting(params: dict[str, Any]) -> str:
    """Parameters as ``n_features 100, layers 8+16``."""
    return ", ".join(f"{name} {tables.shown(value)}" for name, value in params.items())


def moment(seconds: float) -> str:
    """Seconds since the epoch as date and time in UTC: ``2024-05-01 12:30 UTC``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def several(count: int, one: str, many: str = "") -> str:
    """A count with its noun: ``1 trial``, ``2 trials``. `many` is the plural if it is not the singular with an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def listed(words: Sequence[str]) -> str:
    """An enumeration: ``a, b and c``; empty without words."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
