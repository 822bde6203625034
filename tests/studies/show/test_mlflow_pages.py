"""MLflow's own pages in a real browser, served by ``study ui``: a study's run, its trials below it, two of them compared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.browser import show
from tests.helpers.command_line import set_home, study
from tests.helpers.servers import free_port
from tests.helpers.widgets import copy_stores

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SECONDS = 60
"""Until a page that does not show what it should counts as broken."""


@pytest.fixture(scope="module")
def pages(
    chromium: Chrome, tiny_mvtec: Path, empty_stores: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Addresses: ``MLflow``, and the study's page."""
    import yaml

    from tests.helpers.builders import raw_config

    folder = tmp_path_factory.mktemp("pages")
    copy_stores(empty_stores, folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        set_home(patch, folder)
        file = folder / "tiny.yaml"
        file.write_text(yaml.safe_dump(raw_config(tiny_mvtec, budget={"trials": 3})))
        ended = study("run", file, "--inline", "--device", "cpu", "--offline")
        assert ended.code == 0, ended.err
        process = subprocess.Popen(
            [sys.executable, "-m", "studies.cli", "ui", "--port", str(free_port())],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C ends it" in line:
                break
        yield dict(re.findall(r"(\w+): (http\S+)", said))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def until(browser: Chrome, script: str, *arguments: object) -> Any:
    """What a script gives as soon as that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, SECONDS).until(lambda driver: driver.execute_script(script, *arguments))


def sees(browser: Chrome, *words: str) -> None:
    until(browser, "return arguments[0].every(words => document.body.innerText.includes(words))", list(words))


def click(browser: Chrome, row: str, css: str) -> None:
    """Press what a row of the table holds; the row is known by its run's name."""
    script = """const row = [...document.querySelectorAll('.ag-row')].find(
        row => [...row.querySelectorAll('a')].some(link => link.innerText === arguments[0]));
        const found = row && row.querySelector(arguments[1]);
        if (found) found.click();
        return Boolean(found)"""
    until(browser, script, row, css)


def test_a_study_unfolds_into_trials_that_can_be_compared(chromium: Chrome, pages: dict[str, str]) -> None:
    show(chromium, pages["tiny"].partition("?")[0], size=(1600, 1000))
    sees(chromium, "Studies of tiny/widget", "matching runs")
    assert "tiny 000" not in chromium.execute_script("return document.body.innerText")
    click(chromium, "tiny", "[col-id='attributes.`Run Name`'] button")
    sees(chromium, "tiny 000", "tiny 001", "tiny 002")
    for name in ("tiny 000", "tiny 001"):
        click(chromium, name, ".ag-selection-checkbox input")
    until(
        chromium,
        "const button = document.querySelector('[data-testid=runs-compare-button]');"
        "if (button && !button.disabled) { button.click(); return true } return false",
    )
    sees(chromium, "Comparing 2 Runs", "tiny 000", "tiny 001", "n_features")
    assert "tiny 002" not in chromium.execute_script("return document.body.innerText")


def test_a_studys_page_has_the_columns_that_matter(chromium: Chrome, pages: dict[str, str]) -> None:
    show(chromium, pages["tiny"], size=(1800, 1000))
    sees(chromium, "tiny 002", "val/image_auroc", "fps", "n_features")
    trigger = "return document.querySelector('[data-testid=saved-views-trigger]')?.innerText"
    assert until(chromium, trigger) == "tiny"


def test_the_list_of_studies_shows_their_figures_without_opening_one(chromium: Chrome, pages: dict[str, str]) -> None:
    address = re.sub("viewStateShareKey=.*", "viewStateShareKey=studies", pages["tiny"])
    show(chromium, address, size=(1800, 1000))
    sees(chromium, "tiny", "test/image_recall", "test/false_alarm_rate", "test/image_auroc", "1 matching run")
    cells = """const row = document.querySelector('.ag-center-cols-container .ag-row');
        return row && [...row.querySelectorAll('[col-id*="metrics."]')].map(
            cell => [cell.getAttribute('col-id'), cell.innerText])"""
    shown = dict(until(chromium, cells))
    recall = next(text for column, text in shown.items() if "test/image_recall" in column)
    assert 0 <= float(recall) <= 1


def test_a_studys_run_says_what_came_of_it(chromium: Chrome, pages: dict[str, str]) -> None:
    show(chromium, pages["tiny"].partition("?")[0], size=(1600, 1000))
    click(chromium, "tiny", "a")
    sees(chromium, "On test, which the search never saw: finds", "study report tiny", "tiny 002")
    sees(chromium, "test/image_recall", "test/false_alarm_rate_high", "best/val/image_auroc", "trials/complete")
