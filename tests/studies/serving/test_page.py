"""The service's page in a real browser: a picture in, verdict and heat map out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import DESKTOP, PHONE, console, show
from PIL import Image
from small_models import pictures, save_detector

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import torch
import uvicorn
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from studies.serving.app import create_app
from studies.serving.models import FolderSource, Keeper
from studies.serving.settings import Settings

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SECONDS = 30


@pytest.fixture(scope="module", params=[None, "s3cret"], ids=["open", "with a token"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save_detector(tmp_path_factory.mktemp("page") / "detector")
    keeper = Keeper(FolderSource(folder, "widgets"), device=torch.device("cpu"))
    keeper.start()
    config = uvicorn.Config(create_app(keeper, Settings(token=request.param)), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/{'?token' if request.param else ''}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_person_drops_a_picture_and_sees_what_is_wrong(
    chromium: Chrome, address: str, size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "a part & <more>.png"
    Image.fromarray(pictures(1, 3)[0].permute(1, 2, 0).numpy()).resize((640, 480)).save(path)
    locked = address.endswith("?token")
    show(chromium, address, size=size)
    wait = WebDriverWait(chromium, SECONDS)
    if locked:
        wait.until(lambda browser: browser.find_element(By.ID, "secret").is_displayed())
        assert "token" in chromium.find_element(By.ID, "said").text
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


def test_a_file_that_is_no_picture_is_told_on_the_page(chromium: Chrome, address: str, tmp_path: Path) -> None:
    if address.endswith("?token"):
        pytest.skip("the same with and without a token")
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    show(chromium, address)
    chromium.find_element(By.ID, "files").send_keys(str(path))
    WebDriverWait(chromium, SECONDS).until(
        lambda browser: "not a readable image" in browser.find_element(By.ID, "said").text
    )
    assert not chromium.find_elements(By.TAG_NAME, "article")
