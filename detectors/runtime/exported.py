"""A detector in a file of another runtime: ``model.onnx`` for ONNX Runtime, ``model.xml`` + ``model.bin`` for OpenVINO.

One input, ``images``: uint8 [B, 3, h, w], RGB, resized by `detectors.data.images.resize_image`. Two outputs, float32: ``score``
[B] and ``map`` [B, h, w]. Of a detector that cuts images into tiles, the graph takes tiles: `Exported` cuts and joins. The
detector's description lies in the file under `METADATA_KEY`, as JSON. Both runtimes work on the CPU, in full float32.

A file may come from anywhere: what makes a runtime open other files or run code of its own, or does not come out of
`detectors.runtime.export`, is refused before the runtime sees it.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.backbones.pyramid import EXTRACTION_BATCH
from detectors.base import Prediction
from detectors.data.images import Size
from detectors.data.samples import file_sha256
from detectors.detector import check_images, check_scores
from detectors.errors import InputError
from detectors.runtime.artifact import resized
from detectors.runtime.description import Description, parse_description
from detectors.scoring.operating_point import Threshold
from detectors.tiles import TileGrid

Format = Literal["onnx", "openvino"]
METADATA_KEY = "anomaly_studies"
INPUT, OUTPUTS = "images", ("score", "map")
ONNX_SUFFIX, XML = ".onnx", "model.xml"
MAX_ONNX_BYTES = 2**31 - 1
"""No protobuf message, and so no ONNX file by itself, can be larger."""
MAX_XML_BYTES = 64 * 2**20
ENDLESS = frozenset(
    {"If", "Loop", "Scan", "SequenceMap", "TensorIterator", "ConstantOfShape", "Range", "Tile", "EyeLike"}
)
"""Operations that an export never holds, and that let a few bytes take any time or memory."""


class ExportDescription(Description):
    """What an exported file says of the detector in it."""

    optional: ClassVar[tuple[str, ...]] = (*Description.optional, "tiles_together")
    version: str
    """Of this package."""
    tiles_together: bool = False
    """Whether the runtime takes all tiles of an image at once, for each has a model of its own."""


Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


class Exported:
    """A detector that another runtime runs; judges images as an `Artifact` does."""

    def __init__(self, path: Path, description: ExportDescription, run: Run) -> None:
        """Args: `run` takes uint8 [B, 3, h, w] and returns float32 [B] and [B, h, w]; several threads may call it."""
        self.path, self.description, self._run = path, description, run
        self.threshold = Threshold.from_json(description.threshold) if description.threshold else None
        self.normal_scores: NDArray[np.float64] = np.asarray(description.normal_scores, dtype=np.float64)
        cut = description.cut
        grid = TileGrid(description.image_size, cut) if cut is not None else None
        self._grid = grid if grid is not None and len(grid) > 1 else None

    @property
    def image_size(self) -> Size:
        """Height and width, in pixels, of the input."""
        return self.description.image_size

    def resize(self, rgb: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] of any size -> uint8 [1, 3, h, w]."""
        return resized(rgb, self.image_size)

    def predict(self, images: Tensor) -> Prediction:
        """uint8 [B, 3, h, w] -> Prediction. Raises `InputError` for other images, `NumericalError`."""
        check_images(images, self.image_size)
        if not len(images):
            return Prediction(scores=torch.empty(0), maps=torch.empty(0, *self.image_size))
        if self._grid is not None:
            found = [self._look_at_tiles(image, self._grid) for image in images.cpu()]
            scores, maps = torch.stack([score for score, _ in found]), torch.stack([one for _, one in found])
        else:
            scores, maps = (torch.from_numpy(values) for values in self._run(images.cpu().numpy()))
        check_scores(scores)
        return Prediction(scores=scores, maps=maps)

    def _look_at_tiles(self, image: Tensor, grid: TileGrid) -> tuple[Tensor, Tensor]:
        """Score and map [H, W] of one image, uint8 [3, H, W]; the tiling is no part of the graph."""
        at_once = len(grid) if self.description.tiles_together else EXTRACTION_BATCH
        found = [self._run(tiles.numpy()) for tiles in grid.cut(image[None]).split(at_once)]
        scores, maps = (torch.from_numpy(np.concatenate(values)) for values in zip(*found, strict=True))
        return scores.amax(), grid.join(maps)


def is_exported(path: Path) -> bool:
    """Whether a path is that of an exported file, or of OpenVINO's folder, by its name."""
    return path.suffix in (ONNX_SUFFIX, Path(XML).suffix) or (path / XML).is_file()


def load_exported(path: Path, *, threads: int | None = None, format: Format | None = None) -> Exported:
    """Open an exported detector in its runtime, on the CPU.

    Args:
        path: ``*.onnx``, ``*.xml`` with its ``.bin`` beside it, or the folder of ``model.xml``.
        threads: that the runtime may use; default as many as torch has.
        format: where the name does not say it.

    Raises:
        InputError: no such file, one that is damaged or not made by `export_detector`, or the runtime is not installed.
    """
    path = path / XML if path.is_dir() else path
    format = format or ("onnx" if path.suffix == ONNX_SUFFIX else "openvino")
    open_one = _open_onnx if format == "onnx" else _open_openvino
    exported = open_one(path, threads or torch.get_num_threads())
    try:
        # One black image: parts that contradict each other show here, not at the first image that matters.
        exported.predict(torch.zeros(1, 3, *exported.image_size, dtype=torch.uint8))
    except MemoryError:
        raise
    except Exception as error:  # each runtime has its own
        raise InputError(f"{path}: does not run ({_first_line(error)})") from error
    return exported


def require(*packages: str) -> tuple[Any, ...]:
    """Import what the extra brings. Raises `InputError` that says how to install it."""
    try:
        return tuple(importlib.import_module(package) for package in packages)
    except ImportError as error:
        raise InputError(
            f"{', '.join(packages)}: not installed ({_first_line(error)}); pip install 'anomaly-studies[export]'"
        ) from error


def initializers_sha256(model: Any) -> str:
    """Of all weights in an `onnx.ModelProto`, hex."""
    total = hashlib.sha256()
    for tensor in model.graph.initializer:
        total.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}\n".encode())
        total.update(tensor.raw_data)
    return total.hexdigest()


def _open_onnx(path: Path, threads: int) -> Exported:
    onnx, runtime = require("onnx", "onnxruntime")
    data = _read(path, MAX_ONNX_BYTES)
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own, of one of several implementations
        raise InputError(f"{path}: not an ONNX file, or cut short; export the detector again") from error
    text = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)
    description = _described(text, path)
    _check_operations(path, _onnx_operations(model, path))
    if initializers_sha256(model) != description.tensors_sha256:
        raise _changed(path)
    del model
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what goes wrong is reported once, by us
    try:
        # From the bytes that were looked at, and with no folder that anything could be read from.
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"{path}: ONNX Runtime cannot load it ({_first_line(error)})") from error
    inputs, outputs = (
        [(port.name, port.type.removeprefix("tensor(").removesuffix(")"), list(port.shape)) for port in ports]
        for ports in (session.get_inputs(), session.get_outputs())
    )
    _check_ports(path, description, inputs, outputs)

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores, maps = session.run(list(OUTPUTS), {INPUT: images})
        return scores, maps

    return Exported(path, description, run)


def _open_openvino(path: Path, threads: int) -> Exported:
    (openvino,) = require("openvino")
    weights = path.with_suffix(".bin")
    data = _read(path, MAX_XML_BYTES)
    # The runtime guesses a format by the content, and some formats name other files.
    if b"<net" not in data[:512]:
        raise InputError(f"{path}: not an OpenVINO model; export the detector again")
    if not weights.is_file():
        raise InputError(f"{path}: {weights.name} is missing beside it; keep both files together")
    core = openvino.Core()
    try:
        model = core.read_model(model=str(path), weights=str(weights))
        text = str(model.get_rt_info([METADATA_KEY]).value) if model.has_rt_info([METADATA_KEY]) else None
    except Exception as error:
        raise InputError(
            f"{path}: OpenVINO cannot read it ({_first_line(error)}); export the detector again"
        ) from error
    description = _described(text, path)
    _check_operations(path, (operation.get_type_name() for operation in model.get_ops()))
    if file_sha256(weights) != description.tensors_sha256:
        raise _changed(weights)
    _check_ports(path, description, _ports(model.inputs), _ports(model.outputs))
    try:
        # Left to itself, the CPU plugin computes in bfloat16 where the processor can.
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        request = core.compile_model(model, "CPU", hints).create_infer_request()
    except Exception as error:
        raise InputError(f"{path}: OpenVINO cannot load it ({_first_line(error)})") from error
    one_at_a_time = threading.Lock()

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with one_at_a_time:
            request.infer({INPUT: images})
            scores, maps = (request.get_tensor(name).data.copy() for name in OUTPUTS)
        return scores, maps

    return Exported(path, description, run)


Port = tuple[str, str, list[Any]]
"""Name, type, shape; what may vary is no number, or -1."""


def _ports(ports: Iterable[Any]) -> list[Port]:
    """OpenVINO's inputs or outputs, in ONNX's words."""
    kinds = {"uint8_t": "uint8", "float32": "float", "f32": "float", "u8": "uint8"}
    return [
        (
            port.get_any_name() if port.get_names() else "",
            kinds.get(port.get_element_type().get_type_name(), port.get_element_type().get_type_name()),
            [dimension.get_length() if dimension.is_static else -1 for dimension in port.get_partial_shape()],
        )
        for port in ports
    ]


def _check_ports(path: Path, description: ExportDescription, inputs: list[Port], outputs: list[Port]) -> None:
    """Raise `InputError` unless the model takes and gives what the module's docstring says."""
    cut = description.cut
    height, width = description.image_size if cut is None else TileGrid(description.image_size, cut).size
    wanted = {INPUT: ("uint8", [3, height, width]), OUTPUTS[0]: ("float", []), OUTPUTS[1]: ("float", [height, width])}
    actual = {
        name: (kind, shape[1:] if shape and (not isinstance(shape[0], int) or shape[0] < 0) else shape)
        for name, kind, shape in (*inputs, *outputs)
    }
    if actual != wanted or len(inputs) != 1 or len(outputs) != len(OUTPUTS):
        listed = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in (*inputs, *outputs))
        raise InputError(f"{path}: its inputs and outputs are not those of a detector ({listed[:300]})")


def _onnx_operations(model: Any, path: Path) -> list[str]:
    """Names of all operations. Raises `InputError` for what is not in the file itself or not of ONNX's own set."""
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise InputError(f"{path}: holds functions or sparse tensors, which no export does")
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise InputError(f"{path}: operation {node.op_type[:60]!r} is not one of ONNX's own")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise InputError(f"{path}: operation {node.op_type[:60]!r} holds a graph, which no export does")
            tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
    for tensor in tensors:
        if tensor.data_location or tensor.external_data:
            raise InputError(f"{path}: tensor {tensor.name[:60]!r} lies in another file; an export is one file")
    return [node.op_type for node in model.graph.node]


def _check_operations(path: Path, operations: Iterable[str]) -> None:
    if refused := sorted(ENDLESS & set(operations)):
        raise InputError(f"{path}: operation {refused[0]!r} is not one of an exported detector")


def _described(text: str | None, path: Path) -> ExportDescription:
    if text is None:
        raise InputError(f"{path}: no detector's description in it; only files of `study export` can be taken")
    return parse_description(text, place=path, kind=ExportDescription)


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path}: changed since it was exported (sha256 of the weights differs); export the detector again"
    )


def _read(path: Path, limit: int) -> bytes:
    """A file's content. Raises `InputError` where it is not there, or larger than `limit`."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size > limit:
            raise InputError(f"{path}: {path.stat().st_size / 1e6:.0f} MB is more than such a file can have")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _first_line(error: BaseException) -> str:
    """What a runtime reports, without the places in its own source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    message = next((line for line in lines if line and not line.startswith("Exception from")), type(error).__name__)
    return message[:200]
