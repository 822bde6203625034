"""The report in a real browser: the table sorts and filters, points lead to rows, nothing is blocked or missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from studies.report.page import render
from tests.helpers.browser import PHONE, console, show
from tests.helpers.command_line import set_home, study
from tests.helpers.grown import grown, open_view

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROWS = "return [...document.querySelectorAll('table.sortable tbody tr')].filter(row => !row.hidden)"
FIRST_CELLS = f"{ROWS}.map(row => parseInt(row.cells[0].textContent))"


@pytest.fixture(scope="module")
def address(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report as the command writes it, of a study that was grown to fifty trials."""
    view = grown(open_view(finished, "tiny"), 49)
    path = tmp_path_factory.mktemp("report") / "tiny.html"
    path.write_text(render([view]), encoding="utf-8")
    return path.as_uri()


def click_head(browser: Chrome, name: str) -> None:
    browser.execute_script(
        "[...document.querySelectorAll('table.sortable th button')].find(b => b.textContent === arguments[0]).click()",
        name,
    )


def column(browser: Chrome, name: str) -> list[str]:
    return browser.execute_script(
        f"""const rows = (() => {{ {ROWS} }})();
        const heads = [...document.querySelectorAll('table.sortable th')];
        const at = heads.findIndex(head => head.textContent === arguments[0]);
        return rows.map(row => row.cells[at].dataset.key)""",
        name,
    )


def test_the_table_is_sorted_by_a_click(chromium: Chrome, address: str) -> None:
    show(chromium, address)
    assert chromium.execute_script(FIRST_CELLS) == list(range(50))
    click_head(chromium, "images per second")
    values = column(chromium, "images per second")
    known = [float(value) for value in values if value]
    assert known == sorted(known)
    assert values[len(known) :] == [""] * (50 - len(known))
    head = chromium.execute_script("return document.querySelector('th[aria-sort]').textContent")
    assert head == "images per second"
    click_head(chromium, "images per second")
    values = column(chromium, "images per second")
    assert [float(value) for value in values if value] == sorted(known, reverse=True)
    assert values[-1] == ""
    click_head(chromium, "trial")
    assert chromium.execute_script(FIRST_CELLS) == list(range(50))
    assert console(chromium) == []


def test_the_table_is_filtered_by_words_and_states(chromium: Chrome, address: str) -> None:
    show(chromium, address)
    search = chromium.find_element("css selector", "form.filter input[type=search]")
    output = chromium.find_element("css selector", "form.filter output")
    assert output.text == "50 of 50 shown"
    search.send_keys("exception more")
    assert set(column(chromium, "state")) == {"failed"}
    assert output.text == "5 of 50 shown"
    chromium.find_element("css selector", "form.filter input[value=failed]").click()
    assert output.text == "0 of 50 shown"
    # A point of a chart leads to its row, whatever the filter says.
    chromium.execute_script(
        "document.querySelector('svg.chart a[href=\"#s1-t7\"]').dispatchEvent(new MouseEvent('click'))"
    )
    assert chromium.execute_script("return location.hash") == "#s1-t7"
    assert chromium.find_element("id", "s1-t7").is_displayed()
    assert output.text == "50 of 50 shown"
    assert console(chromium) == []


def test_the_gallery_shows_its_images(chromium: Chrome, address: str) -> None:
    show(chromium, address)
    sizes = chromium.execute_script(
        "return [...document.querySelectorAll('.gallery img')].map(img => [img.naturalWidth, img.alt, img.complete])"
    )
    assert len(sizes) >= 12
    assert all(width > 64 and alt and complete for width, alt, complete in sizes)
    assert console(chromium) == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_schemes(chromium: Chrome, address: str, dark: bool) -> None:
    show(chromium, address, size=PHONE, dark=dark)
    assert chromium.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    background, ink = chromium.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color].map("
        "colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765)"
    )
    assert (background < 0.2 < 0.8 < ink) if dark else (ink < 0.2 < 0.8 < background)
    # Letters of the charts beside each other can still be read.
    heights = chromium.execute_script(
        "return [...document.querySelectorAll('.half svg.chart text')].map(text => text.getBoundingClientRect().height)"
    )
    assert min(height for height in heights if height) > 9
    assert console(chromium) == []


def test_without_its_script_the_page_is_whole(chromium: Chrome, address: str) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(chromium, address)
        assert len(chromium.find_elements("css selector", "table.sortable tbody tr")) == 50
        assert not chromium.find_element("css selector", "form.filter").is_displayed()
        assert chromium.find_element("css selector", "table.sortable th").text == "trial"
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_what_the_command_writes_is_what_is_shown(
    chromium: Chrome, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_home(monkeypatch, finished)
    ended = study("report", "tiny", "defaults", "--no-log")
    show(chromium, Path(ended.out.strip()).as_uri())
    assert chromium.title == "tiny, defaults: report"
    assert chromium.find_element("id", "compared").is_displayed()
    assert console(chromium) == []
