"""A comparison in the terminal, and as Markdown, CSV, JSON and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from rich.console import RenderableType
from rich.text import Text

from detectors.errors import InputError
from detectors.files import os_errors_as_input_errors, write_text
from studies.file.encoding import encode
from studies.show import differences, tables
from studies.show.comparison import Comparison
from studies.show.comparison_table import PUBLISHED_COLUMNS, Columns, explanations, row_columns

Format = Literal["markdown", "csv", "json"]


STEM = "comparison"
"""Name of a comparison's files in MLflow: ``comparison.md``, ``.csv``, ``.json`` and ``.png``."""


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of the detectors in the plot, from the Okabe-Ito palette, which colour-blind people can distinguish."""


def _cells(columns: Columns, items: Sequence[Any]) -> tuple[list[str], list[list[Any]]]:
    """Heads and rows of a table."""
    return [name for name, _ in columns], [[value(item) for _, value in columns] for item in items]


def terminal_parts(comparison: Comparison) -> Iterator[RenderableType]:
    """What ``study compare`` prints."""
    yield tables.table(*_cells(row_columns(comparison), comparison.rows))
    if comparison.published:
        yield tables.table(*_cells(PUBLISHED_COLUMNS, comparison.published), title="published")
    for line in explanations(comparison):
        yield Text(line, "dim")
    for line in said_of_pairs(comparison):
        yield Text(line)
    for line in comparison.remarks:
        yield Text(line, "yellow")


def said_of_pairs(comparison: Comparison) -> list[str]:
    """Sentences on which rows the test images tell apart; none where no two studies were scored on the same images."""
    return [line for group in comparison.same_images for line in differences.sentences(group)]


def to_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown, for a README or a wiki."""
    experiments = ", ".join(dict.fromkeys(row.experiment for row in comparison.rows))
    parts = [f"# Comparison on {experiments}", _markdown_table(*_cells(row_columns(comparison), comparison.rows))]
    if comparison.remarks:
        parts.append("\n".join(f"> **{line}**" for line in comparison.remarks))
    if pairs := said_of_pairs(comparison):
        parts += ["## On the same images", "\n".join(f"- {line}" for line in pairs)]
    if comparison.published:
        parts += ["## Published", _markdown_table(*_cells(PUBLISHED_COLUMNS, comparison.published))]
    parts.append("\n".join(f"- {line}" for line in explanations(comparison)))
    parts.append(
        f"Made {comparison.made} by `study compare {' '.join(dict.fromkeys(row.study for row in comparison.rows))}`."
    )
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [any(isinstance(row[index], int | float) for row in rows) for index in range(len(columns))]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[tables.shown(value).replace("|", "\\|") for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(comparison: Comparison) -> str:
    """The comparison as one CSV table of unrounded numbers; the column ``kind`` is ``study`` or ``published``."""
    rows: list[dict[str, Any]] = []
    for row in comparison.rows:
        plain = row.model_dump(exclude={"params"}, by_alias=True)
        rows.append(
            {
                "kind": "study",
                **plain,
                "layers": encode(row.layers),
                "image_size": "x".join(map(str, row.image_size)),
                "recall_per_defect": "; ".join(f"{kind} {share:.4g}" for kind, share in row.recall_per_defect.items()),
                "test_sets": "; ".join(f"{product} {count}" for product, count in row.test_sets.items()),
            }
        )
    for entry in comparison.published:
        plain = entry.model_dump(
            include={"detector", "source", "reference", "setting", "image_auroc", "pixel_auroc", "pixel_aupro"}
        )
        rows.append(
            {
                "kind": "published",
                **plain,
                "experiment": f"{entry.dataset}/{entry.category}",
                "protocol": "paper",
                "backbone": entry.params.get("backbone"),
                "layers": encode(entry.params["layers"]) if "layers" in entry.params else None,
                "mean_image_auroc": entry.mean.image_auroc if entry.mean else None,
                "comparable": "; ".join(entry.comparable),
                "differs": "; ".join(
                    f"{label}: {reason}" for label, reasons in entry.differs.items() for reason in reasons
                ),
            }
        )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(comparison: Comparison) -> str:
    """The comparison as JSON, with the fields of `Comparison`."""
    return comparison.model_dump_json(indent=1, by_alias=True) + "\n"


WRITERS: dict[Format, Callable[[Comparison], str]] = {"markdown": to_markdown, "csv": to_csv, "json": to_json}


SUFFIXES: dict[str, Format] = {".md": "markdown", ".csv": "csv", ".json": "json"}


def write_files(comparison: Comparison, folder: Path) -> None:
    """Write ``comparison.md``, ``.csv``, ``.json``, and ``.png`` if there is something to draw."""
    for suffix, name in SUFFIXES.items():
        write_text(folder / f"{STEM}{suffix}", WRITERS[name](comparison))
    write_plot(comparison, folder / f"{STEM}.png")


def save_plot(comparison: Comparison, path: Path) -> None:
    """Write the plot to `path`.

    Raises:
        InputError: there is nothing to draw, or the file cannot be written.
    """
    with os_errors_as_input_errors(path):
        if not write_plot(comparison, path):
            raise InputError(
                f"{path}: nothing to draw yet, because no study has both an image AUROC on test and a speed"
            )


def write_plot(comparison: Comparison, path: Path) -> bool:
    """Draw image AUROC with its interval against speed, one colour for each detector.

    Returns:
        Whether the file was written; it is not if no row has both figures.
    """
    drawn = [row for row in comparison.rows if row.image_auroc is not None and row.fps]
    if not drawn:
        return False
    detectors = list(dict.fromkeys(row.detector for row in drawn))
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in drawn:
        value, fps = row.image_auroc or 0.0, row.fps or 0.0
        low = value if row.image_auroc_low is None else row.image_auroc_low
        high = value if row.image_auroc_high is None else row.image_auroc_high
        axes.errorbar(
            [fps],
            [value],
            # A bootstrap interval does not always contain the value itself.
            yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o",
            capsize=4,
            color=COLOURS[detectors.index(row.detector) % len(COLOURS)],
        )
        axes.annotate(row.label, (fps, value), textcoords="offset points", xytext=(6, 5), fontsize=8)
    for index, detector in enumerate(detectors):
        axes.plot([], [], "o", color=COLOURS[index % len(COLOURS)], label=detector)
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        # Powers of ten would be drawn as formulas, with fonts that not every machine has.
        set_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.35)
    axes.set_ylim(top=min(1.02, axes.get_ylim()[1] + 0.02))
    axes.set(xlabel="images per second at batch 1", ylabel="image AUROC on test, 95 % interval")
    axes.set_title(", ".join(dict.fromkeys(row.experiment for row in drawn)), fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(detectors))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True
