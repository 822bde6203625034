"""A fitted detector in Python: load it from wherever it is kept, and have it judge images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectors.data.images import is_image
from detectors.errors import InputError
from detectors.runtime.artifact import Artifact, is_artifact, load_artifact
from detectors.runtime.devices import choose_device
from detectors.runtime.exported import is_exported, load_exported
from detectors.runtime.inputs import Source, as_rgb
from detectors.runtime.overlays import side_by_side
from detectors.runtime.verdicts import AtThreshold, Model, Verdict, given_threshold, heat_map, judge
from detectors.scoring.operating_point import Threshold
from studies.api import html
from studies.home import home_at
from studies.release.locate import detector_folder
from studies.search import threshold_words
from studies.search.usable_words import provisional_remark

if TYPE_CHECKING:
    import pandas as pd

BATCH = 8
"""Images that are scored together."""
SHOWN = 24
"""Images of a list that a notebook shows."""


class Result:
    """What a detector says of one image; a notebook shows it as the image beside its heat map.

    >>> import studies
    >>> result = studies.load_detector("tiny").predict("part.png")
    >>> result.verdict in ("good", "defective"), result.heat_map.shape == result.image.shape[:2]
    (True, True)
    """

    def __init__(
        self, model: Model, verdict: Verdict, source: Source, name: str, *, rgb: NDArray[np.uint8] | None = None
    ) -> None:
        """Made by a `Predictor`.

        Args:
            rgb: the image as it was judged, which is kept; None reads `source` again when somebody looks.
        """
        self._model, self._verdict, self._source, self.name = model, verdict, source, name
        self._rgb = rgb

    @property
    def score(self) -> float:
        """Image anomaly score, without unit; larger is worse."""
        return self._verdict.score

    @property
    def threshold(self) -> float | None:
        """Score from which on an image is defective; None where the detector was saved without one."""
        return self._verdict.threshold

    @property
    def verdict(self) -> Literal["good", "defective"] | None:
        """None without a threshold."""
        return self._verdict.verdict

    @property
    def normals_below(self) -> float | None:
        """Share of the held-out good images that score less, 0 to 1; None where none are known."""
        return self._verdict.normals_below

    @property
    def image(self) -> NDArray[np.uint8]:
        """The image, uint8 [H, W, 3], RGB. One of a list of paths is read again at each look, for a list may be long."""
        return as_rgb(self._source, name=self.name) if self._rgb is None else self._rgb

    @cached_property
    def heat_map(self) -> NDArray[np.float32]:
        """Anomaly value of each pixel, float32 [H, W] at the image's size; larger is worse."""
        height, width = self.image.shape[:2]
        values = self._verdict.anomaly_map
        if values.shape == (height, width):
            return values
        return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))

    @property
    def overlay(self) -> NDArray[np.uint8]:
        """The image with its heat map over it, uint8 [H, W, 3], and a line around what makes it defective."""
        return heat_map(self._model, self.image, self._verdict)

    @property
    def image_and_overlay(self) -> NDArray[np.uint8]:
        """Both beside each other, uint8 [H, W', 3]."""
        image = self.image
        return side_by_side(image, heat_map(self._model, image, self._verdict))

    def to_dict(self) -> dict[str, Any]:
        """``image``, ``score``, ``verdict``, ``normals_below`` and ``threshold``, JSON-able."""
        return {
            "image": self.name,
            "score": self.score,
            "verdict": self.verdict,
            "normals_below": self.normals_below,
            "threshold": self.threshold,
        }

    def __repr__(self) -> str:
        return f"<Result {self.name}: score {self.score:.4g}, {self.verdict or 'no threshold'}>"

    def _repr_png_(self) -> bytes:
        return html.png(self.image_and_overlay)

    def _repr_html_(self) -> str:
        return html.facts([*self.to_dict().items()]) + html.image(self.image_and_overlay, width=720)


class Results(Sequence[Result]):
    """What a detector says of several images, in their order."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = list(results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Result | Results:
        return Results(self._results[index]) if isinstance(index, slice) else self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    @property
    def table(self) -> pd.DataFrame:
        """A row each: ``image``, ``score``, ``verdict``, ``normals_below`` (0 to 1), ``threshold``."""
        # A quarter of a second that `study predict` need not wait for.
        import pandas as pd

        columns = ["image", "score", "verdict", "normals_below", "threshold"]
        return pd.DataFrame([result.to_dict() for result in self._results], columns=columns)

    def __repr__(self) -> str:
        defective = sum(result.verdict == "defective" for result in self._results)
        return f"<Results of {len(self._results)} images, {defective} defective>"

    def _repr_html_(self) -> str:
        """The images with the highest scores first."""
        ordered = sorted(self._results, key=lambda result: -result.score)
        parts = [f"<p>{html.text(repr(self)[1:-1])}; the highest scores first</p>"]
        for result in ordered[:SHOWN]:
            line = f"{html.shown(result.score)} {result.verdict or ''}"
            parts.append(
                f'<div style="display:inline-block;margin:4px">{html.image(result.image_and_overlay, width=320)}'
                f"<br>{html.text(result.name)}<br>{html.text(line)}</div>"
            )
        return "".join(parts)


class Predictor:
    """A fitted detector. Made by `load_detector` and `Study.detector`.

    >>> import numpy as np, studies
    >>> predictor = studies.load_detector("tiny")
    >>> results = predictor.predict(["part.png", np.full((64, 64, 3), 128, np.uint8)])
    >>> len(results), list(results.table.columns[:3])
    (2, ['image', 'score', 'verdict'])
    """

    def __init__(self, model: Model, name: str) -> None:
        self._model, self.name = model, name

    @property
    def model(self) -> Model:
        """The detector itself, an `Artifact` or an `Exported`; in an `AtThreshold` where another threshold was given."""
        return self._model

    @property
    def threshold(self) -> Threshold | None:
        """Value, rule and expected false alarms; None where the detector was saved without one."""
        return self._model.threshold

    @property
    def provisional(self) -> str:
        """What to know of a detector that a search left on its way, in a line; empty for one of a refit."""
        model = self._model.model if isinstance(self._model, AtThreshold) else self._model
        return provisional_remark(model.provenance) if isinstance(model, Artifact) else ""

    @property
    def normal_scores(self) -> NDArray[np.float64]:
        """Ascending scores of held-out good images, [N]."""
        return self._model.normal_scores

    @overload
    def predict(self, images: Image.Image | NDArray[np.uint8]) -> Result: ...
    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> Results: ...
    @overload
    def predict(self, images: str | Path) -> Any: ...
    def predict(self, images: Source | Sequence[Source]) -> Result | Results:
        """Judge images.

        Args:
            images: a path, a PIL image, a numpy array (uint8 [H, W, 3] in RGB order, or [H, W] in gray; any size), a list of
                these, or a folder, of which every image is taken.

        Returns:
            A `Result` for one image, `Results` for a list or folder.

        Raises:
            InputError: no such file, no image, an array of another dtype or shape; the message names the image.
            NumericalError: a score is not finite.
        """
        if isinstance(images, str | Path) and Path(images).is_dir():
            return Results(list(self._judge_all(list(image_files([Path(images)])))))
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            return self.judge(images)
        if not isinstance(images, Sequence):
            raise InputError(
                f"{type(images).__name__} is no image; give a path, a PIL image, uint8 [H, W, 3] or [H, W], or a list of these"
            )
        return Results(list(self._judge_all(list(images))))

    def judge(self, image: Source) -> Result:
        """Judge one image; arguments and errors are those of `predict`."""
        name = _name(image, None)
        rgb = _own_pixels(image, as_rgb(image, name=name))
        (verdict,) = judge(self._model, [rgb])
        return Result(self._model, verdict, image, name, rgb=rgb)

    def _judge_all(self, sources: Sequence[Source]) -> Iterator[Result]:
        names = [_name(source, number) for number, source in enumerate(sources)]
        for first in range(0, len(sources), BATCH):
            batch, called = sources[first : first + BATCH], names[first : first + BATCH]
            images = [
                _own_pixels(source, as_rgb(source, name=name)) for source, name in zip(batch, called, strict=True)
            ]
            verdicts = judge(self._model, images)
            for source, name, rgb, verdict in zip(batch, called, images, verdicts, strict=True):
                kept = None if isinstance(source, str | Path) else rgb
                yield Result(self._model, verdict, source, name, rgb=kept)

    def __repr__(self) -> str:
        limit = f"threshold {self.threshold.value:.4g}" if self.threshold else "no threshold"
        mark = ", provisional" if self.provisional else ""
        return f"<Predictor {self.name}: {limit}{mark}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, Any]] = [("detector", self.name)]
        if self.provisional:
            rows += [("beware", self.provisional)]
        if (limit := self.threshold) is not None:
            rows += [("threshold", limit.value), ("which", threshold_words.basis(limit)), ("on", limit.source)]
            rows += [("beware", remark) for remark in threshold_words.remarks(limit)]
        return html.facts(rows)


def load_detector(
    model: str | Path, *, threshold: float | None = None, device: str = "auto", home: str | Path | None = None
) -> Predictor:
    """Load a fitted detector.

    Args:
        model: a study or ``STUDY/product`` (its selected detector; while it is searched, that of the best trial so far),
            ``models:/NAME@champion`` or ``models:/NAME/3``, the folder of a saved detector, an ``.onnx`` file, or the folder of
            an OpenVINO model.
        threshold: score from which on an image is defective, in the place of the detector's own.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:N"``; an exported file runs on the CPU.
        home: where studies and models are kept; default ``STUDY_HOME`` or ``./outputs``.

    Raises:
        InputError: there is no such detector, it is damaged, or the device is not there.

    >>> import studies
    >>> predictor = studies.load_detector("tiny", device="cpu")
    >>> predictor.predict("part.png")  # doctest: +ELLIPSIS
    <Result part.png: score ..., ...>
    """
    path = Path(model)
    if not is_exported(path) or is_artifact(path):
        folder = detector_folder(str(model), home_at(home))
        return Predictor(_at(load_artifact(folder, device=choose_device(device)), threshold), str(model))
    if device not in ("auto", "cpu"):
        raise InputError(f"device {device}: an exported file runs on the CPU; leave the device out")
    return Predictor(_at(load_exported(path), threshold), str(model))


def _at(model: Model, threshold: float | None) -> Model:
    return model if threshold is None else AtThreshold(model, given_threshold(model, threshold))


def image_files(places: Sequence[Path]) -> list[Path]:
    """Images, and those of folders, each once. Raises `InputError` where there are none."""
    files: list[Path] = []
    for path in places:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and is_image(file))
            if not inside:
                raise InputError(f"{path}: no images in this folder")
            files += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file")
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _own_pixels(source: Source, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels for us alone: a camera's buffer, say, is written to again while its result is looked at."""
    return rgb if isinstance(source, str | Path) else rgb.copy()


def _name(source: object, number: int | None) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return "the image" if number is None else f"image {number}"
