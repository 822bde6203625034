"""A fitted detector as one file for ONNX Runtime or OpenVINO: from resized uint8 RGB to score and map.

The graph is recorded once by `torch.export`, with the number of images left open; ``graph.py`` beside each head holds its part,
and `detectors.runtime.exported` says what goes in and comes out. A file counts only when its own runtime has reopened it and its
scores and maps are those of the detector; nothing is left at the target before.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectors.backbones.pyramid import EXTRACTION_BATCH
from detectors.committee import Committee
from detectors.data.images import Size
from detectors.data.samples import file_sha256
from detectors.detector import Detector, check_images
from detectors.errors import InputError, NumericalError
from detectors.files import new_file, new_folder
from detectors.graphs import Scores
from detectors.own_version import own_version
from detectors.process_state import warning_filters_restored
from detectors.runtime.artifact import Artifact, describe
from detectors.runtime.exported import (
    INPUT,
    MAX_ONNX_BYTES,
    METADATA_KEY,
    ONNX_SUFFIX,
    OUTPUTS,
    XML,
    ExportDescription,
    Exported,
    Format,
    initializers_sha256,
    load_exported,
    require,
)
from detectors.runtime.latency import all_cores, single_image_ms
from detectors.scoring.anomaly_map import image_scores
from detectors.while_inside import WhileInside

TOLERANCE = 1e-3
"""Largest difference that is accepted, as a share of the largest score or map value."""
OPSET = 20
"""Of ONNX; not the newest, so that runtimes of some years know it."""
PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
BESIDE_WEIGHTS = 32 * 2**20
"""Room for the graph and the description in an ONNX file."""
BIN = Path(XML).with_suffix(".bin").name


@dataclass(frozen=True)
class Comparison:
    """How far an exported detector is from the one it was made of."""

    images: int
    score_difference: float
    """Largest difference of a score."""
    map_difference: float
    """Largest difference of a map's value."""
    relative: float
    """The larger of both, as a share of the largest score or map value."""


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of a single image, from tensor to score and map, on the CPU."""

    torch_ms: float
    exported_ms: float
    threads: int
    """That both had."""


def export_detector(
    artifact: Artifact,
    target: Path,
    format: Format,
    *,
    images: Tensor,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> Comparison:
    """Write a detector for another runtime, once it is shown to score as the detector does.

    Args:
        artifact: its detector lies on the CPU.
        target: ``*.onnx``, or for OpenVINO a folder, which gets ``model.xml`` and ``model.bin``.
        images: uint8 [N, 3, h, w], N >= 1, to compare on.
        tolerance: as `TOLERANCE`.
        force: replace a former export at the same place, in one step.

    Raises:
        InputError: the detector has no such form, the place is taken or cannot be written, a difference is above the
            tolerance, or a package is not installed.
    """
    check_images(images, artifact.detector.image_size)
    if not len(images):
        raise InputError("no images to check the export on; give at least one")
    check_target(target, format, force=force)
    require(*PACKAGES[format])
    detector = artifact.detector
    graph = graph_of(detector)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*graph.parameters(), *graph.buffers()))
    if format == "onnx" and size > MAX_ONNX_BYTES - BESIDE_WEIGHTS:
        raise InputError(
            f"{target}: {size / 1e9:.1f} GB of weights do not fit into an ONNX file (2 GB); take --format openvino, or a "
            "detector with fewer features"
        )
    program = _recorded(graph, detector.input_size)
    together = graph.together
    del graph
    if format == "onnx":
        with new_file(target) as temporary:
            _write_onnx(program, artifact, temporary, together)
            return _checked(temporary, format, artifact, images, tolerance)
    with new_folder(target) as folder:
        _write_openvino(program, artifact, folder, together)
        return _checked(folder, format, artifact, images, tolerance)


def check_target(target: Path, format: Format, *, force: bool = False) -> None:
    """Raise `InputError` where an export cannot or must not go: a wrong name, a place that is taken, other people's files."""
    if format == "onnx" and target.suffix != ONNX_SUFFIX:
        raise InputError(f"{target}: an ONNX file's name ends in {ONNX_SUFFIX}")
    if format == "openvino" and target.is_dir():
        if any(file.name not in (XML, BIN) for file in target.iterdir()):
            raise InputError(f"{target}: holds other files, which an export would replace; choose another folder")
        if not any(target.iterdir()):
            return
    if target.exists() and not force:
        raise InputError(f"{target}: is there already; --force replaces it, --out takes another place")
    if target.exists() and target.is_dir() != (format == "openvino"):
        raise InputError(f"{target}: is a {'folder' if target.is_dir() else 'file'}; choose another place with --out")


def measure_speed(artifact: Artifact, path: Path, image: Tensor) -> Speed:
    """Time both on one image, uint8 [1, 3, h, w], one after the other; the caller holds the CPU's exclusive lock."""
    with all_cores() as threads:
        torch_ms = single_image_ms(lambda: artifact.predict(image))
        exported = load_exported(path, threads=threads)
        return Speed(torch_ms, single_image_ms(lambda: exported.predict(image)), threads)


def stand_ins(count: int, size: Size) -> Tensor:
    """Drawn images to compare on where there are no real ones: smooth shapes with a little noise, uint8 [count, 3, h, w]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    noise = 0.03 * torch.randn(count, 3, *size, generator=generator)
    return (255 * (smooth + noise)).clamp(0, 255).to(torch.uint8)


class DetectorGraph(nn.Module):
    """The whole way from uint8 [B, 3, H, W] to scores [B] and maps [B, H, W], as plain tensor operations.

    Of a detector that cuts images into tiles: from tiles to their scores and maps. `Exported` cuts and joins.
    """

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, detector: Detector) -> None:
        """Raises `InputError` for a detector whose head has no such form."""
        super().__init__()
        anomaly_map = detector.anomaly_map
        if anomaly_map is None:
            raise RuntimeError("the detector is not fitted yet")
        black = torch.zeros(1, 3, *detector.image_size, dtype=torch.uint8)
        grids = dict(detector.extract(black).grids)
        parts = [head.export_module(grids) for head in detector.twins]
        self.head = parts[0] if len(parts) == 1 else HeadOfEachTile(parts)
        self.together = len(parts)
        """Tiles that have to be given together: all of an image's, where each has a head of its own."""
        self.backbone = detector.backbone.model
        self.register_buffer("mean", detector.backbone.mean.clone())
        self.register_buffer("std", detector.backbone.std.clone())
        self.register_buffer("rows", anomaly_map.rows.clone())
        self.register_buffer("columns", anomaly_map.columns.T.contiguous())
        self.top_share = detector.head.top_share
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> [B], [B, H, W]."""
        patch_scores, scores = self.head(*self.backbone((images.float() - self.mean) / self.std))
        maps = self.rows @ patch_scores @ self.columns
        return (image_scores(maps, top_share=self.top_share) if scores is None else scores), maps


class CommitteeGraph(nn.Module):
    """The mean of several members on one scale."""

    def __init__(self, committee: Committee) -> None:
        super().__init__()
        parts = [DetectorGraph(member) for member in committee.each]
        self.parts, self.scales = nn.ModuleList(parts), committee.scales.tolist()
        self.together = parts[0].together

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `DetectorGraph`."""
        found = [part(images) for part in self.parts]
        count = len(found)
        scores = [
            (one - mean) / (deviation * count) for (one, _), (mean, deviation) in zip(found, self.scales, strict=True)
        ]
        maps = [
            (one - mean) / (deviation * count) for (_, one), (mean, deviation) in zip(found, self.scales, strict=True)
        ]
        return torch.stack(scores).sum(dim=0), torch.stack(maps).sum(dim=0)


def graph_of(detector: Detector) -> DetectorGraph | CommitteeGraph:
    """A detector as plain tensor operations. Raises `InputError` for one whose head has no such form."""
    return CommitteeGraph(detector) if isinstance(detector, Committee) else DetectorGraph(detector)


class HeadOfEachTile(nn.Module):
    """The heads of the tiles of an image, each of which sees its own tile."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *maps: Tensor) -> Scores:
        """Maps [B * T, C, a, b] by ascending stride -> patch scores [B * T, h, w] and scores [B * T] or None."""
        apart = [values.unflatten(0, (-1, len(self.parts))) for values in maps]
        found = [part(*(values[:, place] for values in apart)) for place, part in enumerate(self.parts)]
        patches = torch.stack([one for one, _ in found], dim=1).flatten(0, 1)
        scores = [one for _, one in found if one is not None]
        return patches, torch.stack(scores, dim=1).flatten() if scores else None


def compare(exported: Exported, detector: Detector, images: Tensor) -> Comparison:
    """Both on the same images, uint8 [N, 3, h, w], N >= 1, in small batches. Raises `NumericalError`."""
    pairs = [(detector(batch), exported.predict(batch)) for batch in images.split(EXTRACTION_BATCH)]
    gaps, sizes = [], []
    for name in ("scores", "maps"):
        expected, actual = (torch.cat([getattr(pair[side], name) for pair in pairs]) for side in (0, 1))
        gaps.append(float((actual - expected).abs().max()))
        sizes.append(max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny))
    # Of a tensor, for there NaN is the largest.
    relative = float((torch.tensor(gaps) / torch.tensor(sizes)).max())
    return Comparison(len(images), score_difference=gaps[0], map_difference=gaps[1], relative=relative)


def _checked(
    path: Path,
    format: Format,
    artifact: Artifact,
    images: Tensor,
    tolerance: float,
) -> Comparison:
    """Reopen what was written. Raises `InputError` where it differs by more than the tolerance."""
    try:
        comparison = compare(load_exported(path, format=format), artifact.detector, images)
    except NumericalError as error:
        raise InputError(f"the export is of no use, and was removed: {error}") from error
    if not comparison.relative <= tolerance:
        note = artifact.detector.head.export_note
        raise InputError(
            f"the export differs from the detector by {comparison.relative:.1e} of the largest value, more than the tolerance "
            f"{tolerance:g}, and was removed (scores by up to {comparison.score_difference:.2e}, "
            f"maps by {comparison.map_difference:.2e}){f'; {note}' if note else ''}; --tolerance sets the limit"
        )
    return comparison


def _recorded(graph: DetectorGraph | CommitteeGraph, input_size: Size) -> Any:
    """The graph as a `torch.onnx.ONNXProgram`, without notes on where it was made."""
    # Two images: a batch of one would be taken for fixed.
    example = torch.zeros(2 * graph.together, 3, *input_size, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: graph.together * batch if graph.together > 1 else batch}},
            external_data=False,
            verbose=False,
        )
    recorded = program.model.graph
    for node in recorded.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*recorded.inputs, *recorded.initializers.values()):
        value.metadata_props.clear()
    recorded.metadata_props.clear()
    return program


def _write_onnx(program: Any, artifact: Artifact, path: Path, together: int) -> None:
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, _description(artifact, initializers_sha256(model), together)
    path.write_bytes(model.SerializeToString())


def _write_openvino(program: Any, artifact: Artifact, folder: Path, together: int) -> None:
    (openvino,) = require("openvino")
    # By a file, with the weights beside it: some detectors are larger than a single ONNX file may be.
    between = folder / "onnx"
    between.mkdir()
    program.save(between / "model.onnx", external_data=True)
    # Not `convert_model`, which reports its use over the network.
    model = openvino.Core().read_model(between / "model.onnx")
    openvino.save_model(model, folder / XML, compress_to_fp16=False)
    model.set_rt_info(_description(artifact, file_sha256(folder / BIN), together), [METADATA_KEY])
    openvino.save_model(model, folder / XML, compress_to_fp16=False)
    del model
    shutil.rmtree(between)


def _description(artifact: Artifact, tensors_sha256: str, together: int) -> str:
    described = describe(artifact, tensors_sha256=tensors_sha256).model_dump()
    return ExportDescription(**described, version=own_version(), tiles_together=together > 1).to_json()


@contextmanager
def _output_swallowed() -> Iterator[None]:
    """Nothing that the exporter prints or logs below an error is seen."""
    disabled = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()):
        logging.disable(max(disabled, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(disabled)


_exporter_silent = WhileInside(_output_swallowed)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its steps; what goes wrong, it raises."""
    with _exporter_silent(), warning_filters_restored():
        warnings.simplefilter("ignore")
        yield
