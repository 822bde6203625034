"""What the gate measures of a model on the test images, at the model's own stored threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.runtime.latency import Latency
from detectors.scoring.evaluation import Evaluation
from detectors.scoring.operating_point import Counts, Threshold, share_interval
from detectors.scoring.ranked_by import RANKING_SCORE

MAX_WARNINGS, MAX_WARNING = 10, 500
"""Warnings that are taken over from a detector's description, and characters of each: a description is anybody's text."""


@dataclass(frozen=True)
class Measured:
    """The figures of a model on the test images."""

    label: str
    scores: NDArray[np.float64]
    """[N] image scores."""
    evaluation: Evaluation
    latency: Latency
    size_mb: float
    """Size of the detector's tensors in units of 10^6 bytes."""
    threshold: Threshold | None = None
    """The one that is stored with the model, at which it would be run; None where there is none."""
    counts: Counts | None = None
    """What that threshold catches and stops of the test images; None without a threshold."""
    timed: int = 1
    """How often the latency was measured; the quietest measurement counts."""
    warnings: tuple[str, ...] = ()
    """What whoever fitted the detector wrote down as doubtful, in words."""

    @property
    def auroc(self) -> float | None:
        """Image AUROC; None if it is undefined."""
        return self.evaluation.metrics.get("image_auroc")

    @property
    def ranks(self) -> float | None:
        """Image AUROC, or of painted defects the ranking score; None if it is undefined."""
        return self.evaluation.metrics.get(RANKING_SCORE, self.auroc)

    @property
    def alarms(self) -> NDArray[np.bool_] | None:
        """[N] whether each test image raises an alarm; None without a threshold."""
        return None if self.threshold is None else self.scores >= self.threshold.value

    def to_json(self) -> dict[str, Any]:
        """The figures and scores as JSON-able data."""
        counts = self.counts
        return {
            "label": self.label,
            "metrics": self.evaluation.metrics,
            "per_defect": self.evaluation.per_defect,
            "per_defect_recall": self.evaluation.per_defect_recall,
            "undefined": self.evaluation.undefined,
            "threshold": None if self.threshold is None else self.threshold.to_json(),
            "missed": None if counts is None else counts.defective - counts.caught,
            "defective": None if counts is None else counts.defective,
            "false_alarms": None if counts is None else counts.alarms,
            "good": None if counts is None else counts.good,
            "latency_ms_p50": self.latency.latency_ms_p50,
            "latency_ms_p95": self.latency.latency_ms_p95,
            "latency_load": self.latency.latency_load,
            "times_timed": self.timed,
            "size_mb": self.size_mb,
            "warnings": list(self.warnings),
            "scores": [float(score) for score in self.scores],
        }


def warnings_of(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts under ``warnings`` of a detector's provenance, each in one line; what is no text is left out."""
    listed = provenance.get("warnings")
    texts = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
    lines = (" ".join(text.split())[:MAX_WARNING] for text in texts[:MAX_WARNINGS])
    return tuple(line for line in lines if line)


def share_text(part: int, of: int) -> str:
    """``16 of 58 (28 %, 18 to 40 %)``: a count with its share and the share's 95 % interval; ``-`` of none."""
    if not of:
        return "-"
    low, high = share_interval(part, of)
    return f"{part} of {of} ({100 * part / of:.0f} %, {100 * low:.0f} to {100 * high:.0f} %)"
