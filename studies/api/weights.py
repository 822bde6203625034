"""Backbone weights: which are on this machine, and getting those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectors.backbones.architecture import channels_by_layer
from detectors.backbones.pyramid import weights_identity
from detectors.backbones.weights import (
    PIXELS,
    BackboneSpec,
    available_backbones,
    download,
    find_weights,
    licence,
    weights_tag,
)
from detectors.errors import InputError
from studies.file import library


def list_weights(weights_dir: Path | None = None) -> list[dict[str, Any]]:
    """Backbones with weights on this machine, then those that study files name and that are not here.

    Returns:
        A row each: ``backbone``, ``origin`` (None where there are no weights), ``path``, ``tag``, ``license``, ``sha256``,
        ``channels`` by stride, or by block of a vision transformer, ``problem``.
    """
    here = available_backbones(weights_dir=weights_dir)
    rows = [_row(name, weights_dir) for name in here]
    return rows + [_row(name, weights_dir) for name in _named_in_configs() if name not in here]


def parse_names(names: Sequence[str]) -> list[BackboneSpec]:
    """Backbones whose weights can be fetched. Raises `InputError` for one that is unknown or needs none."""
    specs = [one for name in names for one in _each(BackboneSpec.parse(name))]
    for spec in specs:
        if spec.random_seed is not None:
            raise InputError(f"{spec}: random weights are drawn from a seed; there is nothing to fetch")
        if spec.name == PIXELS:
            raise InputError(f"{spec}: passes images on as they are; there is nothing to fetch")
    return specs


def _each(spec: BackboneSpec) -> list[BackboneSpec]:
    """The backbone, or of several those that have weights to fetch."""
    return [one for one in spec.members if one.random_seed is None] if spec.members else [spec]


def fetch_weights(spec: BackboneSpec) -> dict[str, Any]:
    """Download a backbone's weights from the hub into its cache, unless they are here already.

    Returns:
        The row of `list_weights`, and ``fetched``.

    Raises:
        InputError: the hub cannot be reached or does not have them.
    """
    present = find_weights(spec)
    if present is None:
        download(spec)
    return _row(str(spec), None) | {"fetched": present is None}


def weights_licence(spec: BackboneSpec) -> str:
    """The licence of a backbone's weights, as timm knows it."""
    return licence(spec)


def _row(name: str, weights_dir: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {"backbone": name, "origin": None, "path": None, "tag": None, "license": None, "sha256": None}
    row |= {"channels": {}, "problem": None}
    try:
        spec = BackboneSpec.parse(name)
        row["tag"], row["license"] = weights_tag(spec) or None, licence(spec)
        source = find_weights(spec, weights_dir=weights_dir)
        if source is not None:
            row |= {"origin": source.origin, "path": str(source.path)}
            row["sha256"] = weights_identity(name, weights_dir=weights_dir).sha256
        row["channels"] = channels_by_layer(name)
    except InputError as error:
        # A file of somebody's own name, or a backbone that is no pyramid: its row says so, the others are shown.
        row["problem"] = str(error)
    return row


def _named_in_configs() -> list[str]:
    """Pretrained backbones that the study files name, in alphabetical order."""
    files = sorted(library.packaged_configs().glob("*.yaml"))
    named = {name for file in files for name in library.load(str(file)).backbones}
    return sorted(name for name in named - {PIXELS} if BackboneSpec.parse(name).random_seed is None)
