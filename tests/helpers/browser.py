"""A real headless Chromium for the tests of pages, with a profile of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
DESKTOP, PHONE = (1280, 900), (390, 844)
SECONDS = 30
"""Until a page that does not load counts as broken."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for the tests of a file, gone after them: other tests count processes.

    Skips with the reason where none is installed.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("no selenium here: pip install 'anomaly-studies[test]'")
    # Selenium's own search for a browser would ask the network.
    os.environ.update(SE_OFFLINE="true", SE_AVOID_STATS="true")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(executable_path=driver))
    browser.set_page_load_timeout(SECONDS)
    try:
        yield browser
    finally:
        browser.quit()


def show(browser: Chrome, address: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
    """Load a page at a size in pixels, in the light or dark scheme; what was logged before is forgotten."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")
    # The same address with another fragment would not be loaded again.
    browser.get("about:blank")
    browser.get(address)


def console(browser: Chrome) -> list[str]:
    """Warnings and errors that the page caused since it was loaded."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
