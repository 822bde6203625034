"""The gate's report: what was measured and decided, for scripts, for people and for the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from detectors.data.samples import ImageSet
from studies.file.sections import GateConfig
from studies.release.measured import Measured, share_text
from studies.release.rules import Rule


@dataclass(frozen=True)
class GateReport:
    """What the gate measured and decided."""

    model: str
    challenger: Measured
    champion: Measured | None
    rules: tuple[Rule, ...]
    test: ImageSet
    data: str
    """``<dataset>/<category>``"""
    config: GateConfig
    difference: tuple[float, float, float] | None = None
    """Image AUROC of the challenger minus that of the champion, and the ends of its 95 % interval."""
    environment: dict[str, str] = field(default_factory=dict)
    """Host, device and versions."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    nested: Mapping[str, float] | None = None
    """Of a study that keeps no images for test, the nested estimate of its choice, empty where there is none; else None."""
    forced: str = ""
    """Why a person had it promoted though it was refused; empty where that is not so."""

    @property
    def passed(self) -> bool:
        """Whether no rule refused the challenger."""
        return all(rule.verdict != "refused" for rule in self.rules)

    @property
    def reasons(self) -> list[str]:
        """Why the challenger was refused; empty if it passed."""
        return [rule.outcome for rule in self.rules if rule.verdict == "refused"]

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about the challenger and was no reason to refuse it."""
        return [rule.outcome for rule in self.rules if rule.verdict == "warning"]

    @property
    def forcible(self) -> bool:
        """Whether a person may have the challenger promoted though it was refused."""
        return all(rule.forcible for rule in self.rules if rule.verdict == "refused")

    @property
    def models(self) -> list[Measured]:
        """The challenger, and the champion if there is one."""
        return [self.challenger, *([self.champion] if self.champion else [])]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able data, for scripts and for the record."""
        return {
            "model": self.model,
            "passed": self.passed,
            "forced": self.forced or None,
            "time": self.time,
            "data": self.data,
            "test_digest": self.test.digest,
            "test_counts": self.test.counts,
            "pictures": [sample.key for sample in self.test.samples],
            "nested": None if self.nested is None else dict(self.nested),
            "rules": [rule.to_json() for rule in self.rules],
            "warnings": self.warnings,
            "difference": self.difference,
            "challenger": self.challenger.to_json(),
            "champion": self.champion.to_json() if self.champion else None,
            "config": self.config.model_dump(mode="json"),
            "environment": self.environment,
        }

    def to_markdown(self) -> str:
        """The report as Markdown."""
        lines = [
            f"# Gate report: {self.model}",
            "",
            f"**{'Passed' if self.passed else 'Refused'}** on {self.time}, measured on the {self.images} of {self.data} "
            f"({', '.join(f'{count} {kind}' for kind, count in self.test.counts.items())}; digest "
            f"`{self.test.digest[:16]}`), {self.environment.get('device', '')} of {self.environment.get('host', '')}.",
            "",
            *([f"Promoted all the same, by `--force`: {self.forced}", ""] if self.forced else []),
            "| rule | verdict | |",
            "|---|---|---|",
            *(f"| {rule.name} | {rule.verdict} | {_cell(rule.outcome)} |" for rule in self.rules),
            "",
            f"| | {' | '.join(model.label for model in self.models)} |",
            f"|---|{'---|' * len(self.models)}",
            *(f"| {name} | {' | '.join(cells)} |" for name, cells in self.figures()),
            "",
        ]
        if self.difference:
            value, low, high = self.difference
            lines += [
                f"Difference of the image AUROC, challenger minus champion, on the same images: {value:+.4f} "
                f"(95 % interval {low:+.4f} to {high:+.4f}, paired bootstrap).",
                "",
            ]
        return "\n".join(lines)

    @property
    def images(self) -> str:
        """What the models were measured on, in words."""
        return "test images" if self.nested is None else "labelled images (which took part in the choice)"

    def figures(self) -> list[tuple[str, list[str]]]:
        """Rows of the table of figures: name, and one cell for each of `models`."""
        models = self.models
        rows = []
        if self.nested is not None:
            others = ["-"] * (len(models) - 1)
            rows.append(("image AUROC, nested estimate (95 % interval)", [_nested_auroc(self.nested), *others]))
        rows.append(("image AUROC (95 % interval)", [_with_interval(model) for model in models]))
        for name, title in (("pixel_auroc", "pixel AUROC"), ("pixel_aupro", "AUPRO")):
            rows.append((title, [_shown(model.evaluation.metrics.get(name)) for model in models]))
        rows += [
            ("threshold", [_shown(None if m.threshold is None else m.threshold.value, ".4g") for m in models]),
            ("missed defects (95 % interval)", [_missed(model) for model in models]),
            ("false alarms (95 % interval)", [_false_alarms(model) for model in models]),
        ]
        for kind in dict.fromkeys(kind for model in models for kind in model.evaluation.per_defect):
            rows.append((f"AUROC of {kind}", [_shown(model.evaluation.per_defect.get(kind)) for model in models]))
        for kind in dict.fromkeys(kind for m in models if m.counts is not None for kind in m.counts.per_defect):
            rows.append((f"missed of {kind}", [_missed_of(model, kind) for model in models]))
        rows.append(
            (
                "latency p50 / p95, ms",
                [f"{m.latency.latency_ms_p50:.1f} / {m.latency.latency_ms_p95:.1f}" for m in models],
            )
        )
        rows.append(("size, MB", [_shown(model.size_mb, ".1f") for model in models]))
        return rows


def _missed(model: Measured) -> str:
    """``16 of 58 (28 %, 18 to 40 %)``: how many defects the model misses at its threshold."""
    counts = model.counts
    return "-" if counts is None else share_text(counts.defective - counts.caught, counts.defective)


def _false_alarms(model: Measured) -> str:
    """The same for the good images that it stops."""
    return "-" if model.counts is None else share_text(model.counts.alarms, model.counts.good)


def _missed_of(model: Measured, kind: str) -> str:
    """``3 of 12``: how many defects of a type the model misses."""
    if model.counts is None or kind not in model.counts.per_defect:
        return "-"
    caught, of = model.counts.per_defect[kind]
    return f"{of - caught} of {of}"


def _with_interval(model: Measured) -> str:
    metrics = model.evaluation.metrics
    if (low := metrics.get("image_auroc_low")) is None:
        return _shown(model.auroc)
    return f"{_shown(model.auroc)} ({low:.3f} to {metrics['image_auroc_high']:.3f})"


def _nested_auroc(nested: Mapping[str, float]) -> str:
    name = "nested/image_auroc"
    if name not in nested:
        return "-"
    return f"{_shown(nested[name])} ({nested[f'{name}_low']:.3f} to {nested[f'{name}_high']:.3f})"


def _shown(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def _cell(text: str) -> str:
    """A text that does not end the cell of a Markdown table."""
    return text.replace("|", "\\|")
