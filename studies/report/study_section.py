"""The section of a report on one study, as plain data for the template ``study.html``.

Everything is read from storage and from the folders of the trials.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from studies.report import phrases
from studies.report.charts import Figure, Table
from studies.report.on_test import ProductOnTest, products_on_test
from studies.report.search import Search
from studies.report.search_charts import search_charts
from studies.report.section_tables import (
    TrialsTable,
    failures_table,
    measurement_tables,
    products_table,
    setting_table,
    trials_table,
)
from studies.report.summary import Tile, cautions, summary_sentences, tiles
from studies.search import advice_words
from studies.search.view import StudyView


@dataclass(frozen=True)
class StudySection:
    """All that the page shows of one study."""

    id: str
    """Id of its element, with which those of its parts begin."""
    name: str
    about: str
    """One line: detectors, data set, dates."""
    summary: tuple[str, ...]
    """Sentences, the most important one first."""
    cautions: tuple[str, ...]
    help_most: tuple[str, ...]
    """What would help most, the most important first."""
    tiles: tuple[Tile, ...]
    products: Table | None
    """Figures of each product; None in a study of a single one."""
    setting: Table | None
    """The selected configuration; None if nothing is selected yet."""
    tests: tuple[ProductOnTest, ...]
    figures: tuple[Figure, ...]
    search_title: str
    """Heading of the charts of the search."""
    missing_charts: str
    """Why charts of the search are missing; empty if none are."""
    trials: TrialsTable
    failures: Table | None
    measurements: tuple[tuple[str, Table], ...]
    """(title, table) of how the study was measured."""
    commands: tuple[tuple[str, str], ...]
    """(command, what it does)"""
    study_file: str
    """The configuration as YAML."""


def study_section(view: StudyView, id: str) -> StudySection:
    """The section of one study. `id` is the id of its element in the page."""
    search = Search(view, id)
    selected = next((trial for trial in search.trials if trial.selected), None)
    tests = products_on_test(view, selected, id=id) if selected is not None else []
    charts = search_charts(search)
    return StudySection(
        id=id,
        name=view.study.study_name,
        about=_about(view, search),
        summary=tuple(summary_sentences(search, selected, tests)),
        cautions=tuple(cautions(search, selected, tests)),
        help_most=tuple(f"{line[0].upper()}{line[1:]}." for line in advice_words.lines(view, selected)),
        tiles=tuple(tiles(search, selected, tests)),
        products=products_table(tests),
        setting=setting_table(search, selected) if selected is not None else None,
        tests=tuple(tests),
        figures=tuple(charts),
        search_title="The search" if view.config.search else "What was tried",
        missing_charts=_missing_charts(search),
        trials=trials_table(search),
        failures=failures_table(search),
        measurements=tuple(measurement_tables(search)),
        commands=tuple(_commands(view)),
        study_file=yaml.safe_dump(view.config.to_json(), sort_keys=False, allow_unicode=True),
    )


def _about(view: StudyView, search: Search) -> str:
    """Detectors, data set, and when the study began and brought its last result."""
    ends = [end for trial in search.trials if (end := trial.outcome.finished) is not None]
    last_result = f", last result {phrases.moment(max(ends))}" if ends else ""
    names = phrases.listed([phrases.detector(name) for name in view.config.detectors])
    return f"{names} on {view.header.experiment}, begun {phrases.moment(view.header.created)}{last_result}"


def _missing_charts(search: Search) -> str:
    """Why the charts of the parameters are missing; empty if they are there or were never due."""
    if not search.importances and len(search.finished) > 1 and search.config.search:
        return "How much each parameter mattered is not shown, because too few trials are finished or their values do not differ."
    return ""


def _commands(view: StudyView) -> Iterator[tuple[str, str]]:
    """Commands for whoever wants to repeat, inspect or use the study, each with what it does."""
    name = shlex.quote(view.address)
    file = f"{view.study.study_name.partition('#')[0]}.yaml"
    yield f"study run {shlex.quote(file)} --fresh", f"repeats the study; save the study file below as {file}"
    yield f"study show {name}", "shows trials and figures in the terminal"
    yield f"study predict {name} IMAGE...", "gives score, verdict and heat map of new images"
    yield f"study compare {name}", "puts the study beside the figures that others published"
