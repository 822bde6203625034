"""The model that MLflow serves: what a program may hand to it, and what a request may not."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import requests
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image

from detectors.errors import InputError
from tests.helpers.small_models import save_detector
from tracking import model as models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pyfunc")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[mlflow.pyfunc.PyFuncModel]:
    with models.packed(save_detector(folder / "detector"), metadata={}) as packed:
        yield mlflow.pyfunc.load_model(str(packed))


@pytest.fixture(scope="module")
def rgb(folder: Path) -> np.ndarray:
    """An image, which lies in the folder as ``part.png`` too."""
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "part.png")
    return pixels


def encoded(rgb: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_program_gives_paths_arrays_and_images(model: Any, rgb: np.ndarray, folder: Path) -> None:
    images = [encoded(rgb), folder / "part.png", rgb, Image.fromarray(rgb)]
    answers = model.predict([{"image": image} for image in images])
    assert len({answer.score for answer in answers}) == 1
    assert len({answer.verdict for answer in answers}) == 1
    (drawn,) = model.predict([{"image": rgb, "return_heatmap": True}])
    assert Image.open(io.BytesIO(base64.b64decode(drawn.heatmap))).size == (90, 70)


def test_gray_arrays_are_taken(model: Any) -> None:
    gray = np.full((40, 50), 90, np.uint8)
    one, other = model.predict([{"image": gray}, {"image": np.repeat(gray[:, :, None], 3, axis=2)}])
    assert one.score == other.score


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((32, 32, 3)), "image 0: an array of float64"),
        (np.zeros((32, 32, 4), np.uint8), "image 0: an array of 32 x 32 x 4"),
        (np.zeros((2, 32, 32, 3), np.uint8), "image 0: an array of 2 x 32 x 32 x 3"),
        (np.zeros((4, 32, 3), np.uint8), "too small"),
        (Path("nowhere.png"), "nowhere.png: no such file"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(model: Any, image: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model.predict([{"image": image}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image", [3, None, b"bytes", ["part.png"], {"path": "part.png"}])
def test_everything_else_is_refused_by_type(model: Any, image: Any) -> None:
    with pytest.raises(MlflowException, match="image"):
        model.predict([{"image": image}])


def test_a_text_is_never_a_path(model: Any, rgb: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    # Letters of base64 all of them, and a file of that name.
    Path("part").write_bytes((folder / "part.png").read_bytes())
    for text in (str(folder / "part.png"), "part"):
        with pytest.raises(InputError, match=r"image 0: (not base64|not a readable image)"):
            model.predict([{"image": text}])


@pytest.fixture(scope="module")
def address(model: Any) -> Iterator[str]:
    """MLflow's own server of the model, on a real port."""
    server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/invocations"
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, body: bytes | str, kind: str = "application/json") -> requests.Response:
    return requests.post(address, data=body, headers={"Content-Type": kind}, timeout=60)


def test_over_http_base64_is_answered(address: str, rgb: np.ndarray) -> None:
    answer = ask(address, json.dumps({"inputs": [{"image": encoded(rgb)}]}))
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["verdict"] in ("good", "defective")


def test_over_http_no_path_and_no_array_is_read(address: str, rgb: np.ndarray, folder: Path) -> None:
    """A path that is there and one that is not are refused alike: an answer says nothing of the server's files."""
    told = set()
    for place in (folder / "part.png", folder / "other.png", Path("/etc/passwd")):
        for image in (str(place), place.as_uri(), {"path": str(place)}, {"__type__": "Path", "value": str(place)}):
            answer = ask(address, json.dumps({"inputs": [{"image": image}]}))
            assert answer.status_code >= 400, answer.text
            if image == str(place):
                told.add(answer.text.replace(image, "PATH"))
                assert "not base64" in answer.text
    assert len(told) == 1
    for image in (rgb[:16, :16].tolist(), [1, 2, 3], 7, None):
        assert ask(address, json.dumps({"inputs": [{"image": image}]})).status_code >= 400


def test_over_http_tables_carry_no_paths_either(address: str, rgb: np.ndarray, folder: Path) -> None:
    place = str(folder / "part.png")
    csv = ask(address, f"image,return_heatmap\n{place},False\n", "text/csv")
    assert csv.status_code >= 400
    split = {"dataframe_split": {"columns": ["image", "return_heatmap"], "data": [[place, False]]}}
    assert ask(address, json.dumps(split)).status_code >= 400
    file = io.BytesIO()
    pd.DataFrame({"image": [rgb[0, :9, 0].tolist()], "return_heatmap": [False]}).to_parquet(file)
    assert ask(address, file.getvalue(), "application/x-parquet").status_code >= 400
