"""The service's page in a real browser: an image in, verdict and heat map out."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.helpers.browser import DESKTOP, PHONE, console, show
from tests.helpers.small_models import random_images, save_detector

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from studies.serving.settings import Settings
from tests.helpers.in_process import running, started

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SECONDS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("page") / "detector")


@pytest.fixture(scope="module")
def open_address(folder: Path) -> Iterator[str]:
    with running(started(folder)) as address:
        yield address


@pytest.fixture(scope="module")
def locked_address(folder: Path) -> Iterator[str]:
    with running(started(folder), Settings(token="s3cret")) as address:
        yield address


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("locked", [False, True], ids=["open", "with a token"])
def test_a_person_chooses_an_image_and_sees_what_is_wrong(
    chromium: Chrome, request: pytest.FixtureRequest, locked: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    address = request.getfixturevalue("locked_address" if locked else "open_address")
    path = tmp_path / "a part & <more>.png"
    Image.fromarray(random_images(1, 3)[0].permute(1, 2, 0).numpy()).resize((640, 480)).save(path)
    show(chromium, address, size=size)
    wait = WebDriverWait(chromium, SECONDS)
    if locked:
        wait.until(lambda browser: browser.find_element(By.ID, "secret").is_displayed())
        assert "token" in chromium.find_element(By.ID, "status").text
        field = chromium.find_element(By.ID, "secret")
        field.send_keys("s3cret")
        chromium.execute_script("arguments[0].dispatchEvent(new Event('change'))", field)
    wait.until(lambda browser: "widgets" in browser.find_element(By.ID, "model").text)
    chromium.find_element(By.ID, "files").send_keys(str(path))
    wait.until(lambda browser: browser.find_elements(By.TAG_NAME, "article"))
    card = chromium.find_element(By.TAG_NAME, "article")
    assert card.find_element(By.TAG_NAME, "h2").text == path.name
    assert card.find_element(By.CLASS_NAME, "verdict").text in ("Good", "Defective")
    assert "threshold" in card.find_element(By.CLASS_NAME, "numbers").text
    images = card.find_elements(By.TAG_NAME, "img")
    wait.until(lambda browser: all(image.get_property("naturalWidth") == 640 for image in images))
    assert all(image.get_attribute("alt") for image in images)
    assert chromium.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    chromium.save_screenshot(str(tmp_path / "page.png"))
    assert [line for line in console(chromium) if "401" not in line] == []


DROP = """
    const names = arguments[0], bytes = Uint8Array.from(atob(arguments[1]), (letter) => letter.charCodeAt(0));
    const carried = new DataTransfer();
    for (const name of names) carried.items.add(new File([name.endsWith(".png") ? bytes : "no image"], name));
    const event = new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true});
    return document.querySelector(arguments[2]).dispatchEvent(event);
"""
"""Returns whether the browser would still do what it does by itself with a file that is dropped: leave the page for it."""


@pytest.mark.parametrize("place", ["#drop", "body"])
def test_files_that_are_dropped_are_judged_each_for_itself(chromium: Chrome, open_address: str, place: str) -> None:
    file = io.BytesIO()
    Image.fromarray(random_images(1, 3)[0].permute(1, 2, 0).numpy()).save(file, format="PNG")
    show(chromium, open_address, dark=True)
    data = base64.b64encode(file.getvalue()).decode()
    assert chromium.execute_script(DROP, ["1.png", "notes.txt", "2.png"], data, place) is False
    wait = WebDriverWait(chromium, SECONDS)
    wait.until(lambda browser: len(browser.find_elements(By.TAG_NAME, "article")) == 3)
    last, failed, first = chromium.find_elements(By.TAG_NAME, "article")
    assert [card.find_element(By.TAG_NAME, "h2").text for card in (first, failed, last)] == [
        "1.png",
        "notes.txt",
        "2.png",
    ]
    assert "not a readable image" in failed.find_element(By.CLASS_NAME, "wrong").text
    assert not failed.find_elements(By.CLASS_NAME, "verdict")
    assert chromium.find_element(By.ID, "status").text in ("2.png: Good", "2.png: Defective")
    assert [line for line in console(chromium) if "422" not in line] == []
