"""Where a backbone's weights come from: a folder, a bundled package, timm's hub cache, the hub, or a seed."""

from __future__ import annotations

import difflib
import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detectors.backbones.bundled import BUNDLED
from detectors.data.samples import file_sha256
from detectors.errors import InputError

PIXELS = "pixels"
"""The backbone that passes the image on as it is, for detectors that learn from images. It has no weights."""

MOST_MEMBERS = 8
"""Backbones that one detector looks with."""

Origin = Literal["folder", "bundled", "cache", "hub", "random", "none"]


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone as the study file names it: ``resnet18``, ``resnet18.a1_in1k``, ``resnet18@random`` or ``resnet18@random:7``;
    or ``pixels``."""

    name: str
    """timm model name, with or without its weights tag."""
    random_seed: int | None = None
    """Seed of random weights; None asks for pretrained ones."""
    members: tuple[BackboneSpec, ...] = ()
    """Of several backbones that one detector looks with, written ``resnet18+resnet34``."""

    @classmethod
    def parse(cls, text: str) -> BackboneSpec:
        """Read a backbone's name, or several with ``+`` between them.

        Raises:
            InputError: a name that timm does not know, the same name twice, or more than `MOST_MEMBERS`.
        """
        if text == PIXELS or text in BUNDLED:
            return cls(text)
        if "+" in text:
            names = text.split("+")
            if len(set(names)) < len(names) or len(names) > MOST_MEMBERS or PIXELS in names:
                raise InputError(
                    f"backbone {text[:80]!r}: several at once are different networks of timm, at most {MOST_MEMBERS}"
                )
            return cls(text, members=tuple(cls.parse(name) for name in names))
        import timm  # takes two seconds, with torchvision

        name, marker, option = text.partition("@")
        seed = None
        if marker:
            kind, _, number = option.partition(":")
            if kind != "random" or (number and not (number.isascii() and number.isdigit() and len(number) <= 18)):
                raise InputError(f"backbone {text!r}: after @ only 'random' or 'random:SEED' is known")
            seed = int(number or 0)
        architecture = name.partition(".")[0]
        if not timm.is_model(architecture) or name not in known_names(architecture):
            near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else "; `study weights list` shows names"
            raise InputError(f"unknown backbone {text!r}{hint}")
        return cls(name=name, random_seed=seed)

    @property
    def architecture(self) -> str:
        """The name without its weights tag."""
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        if self.random_seed is None:  # as well as of several, whose name is that of all
            return self.name
        return f"{self.name}@random" + (f":{self.random_seed}" if self.random_seed else "")


def known_names(architecture: str) -> list[str]:
    """The names under which timm offers one architecture: bare, and with each pretrained tag."""
    import timm  # takes seconds

    return [architecture, *timm.list_pretrained(f"{architecture}.*")]


@dataclass(frozen=True)
class WeightsSource:
    """Where one backbone's weights lie, before they are read."""

    spec: BackboneSpec
    origin: Origin
    path: Path | None = None
    """The file, for the origins ``folder``, ``bundled`` and ``cache``."""

    def __str__(self) -> str:
        return f"{self.origin} ({self.path})" if self.path else self.origin


def find_weights(
    spec: BackboneSpec, *, weights_dir: Path | None = None, allow_network: bool = False
) -> WeightsSource | None:
    """Look for weights: weights folder, bundled packages, hub cache, then (if allowed) the hub; None where there are none.

    Args:
        weights_dir: folder with ``<timm name>.safetensors`` or ``.pth``; default ``STUDY_WEIGHTS``.
        allow_network: whether the hub counts as a place. Nothing is downloaded here.
    """
    if spec.members:
        found = [find_weights(one, weights_dir=weights_dir, allow_network=allow_network) for one in spec.members]
        there = [source for source in found if source is not None]
        # The farthest one tells where to go.
        farthest = max(there, key=lambda source: source.origin == "hub", default=None)
        return WeightsSource(spec, farthest.origin) if farthest and len(there) == len(found) else None
    if spec.name == PIXELS:
        return WeightsSource(spec, "none")
    if spec.random_seed is not None:
        return WeightsSource(spec, "random")
    if folder := weights_folder(weights_dir):
        for suffix in (".safetensors", ".pth"):
            if (path := folder / f"{spec.name}{suffix}").is_file():
                return WeightsSource(spec, "folder", path)
    if spec.name in BUNDLED and (bundled := BUNDLED[spec.name].file()):
        return WeightsSource(spec, "bundled", bundled)
    if cached := cached_file(spec):
        return WeightsSource(spec, "cache", cached)
    return WeightsSource(spec, "hub") if allow_network else None


def require_weights(
    spec: BackboneSpec, *, weights_dir: Path | None = None, allow_network: bool = False
) -> WeightsSource:
    """`find_weights`, or an `InputError` that names the backbone, the places looked at and what is available."""
    source = find_weights(spec, weights_dir=weights_dir, allow_network=allow_network)
    if source is not None:
        return source
    if spec.members:
        # The one that lacks them says how to get them.
        for one in spec.members:
            require_weights(one, weights_dir=weights_dir, allow_network=allow_network)
    folder = weights_folder(weights_dir)
    places = [
        str(folder) if folder else "no weights folder (--weights-dir or STUDY_WEIGHTS)",
        "bundled packages",
        "hub cache",
    ]
    raise InputError(
        f"no weights for backbone {spec} on this machine (looked at: {', '.join(places)}); "
        f"available: {', '.join(available_backbones(weights_dir=weights_dir)) or 'none'}; "
        f"fetch them with `study weights fetch {spec}` or use {spec.name}@random"
    )


def weights_folder(weights_dir: Path | None) -> Path | None:
    """The given folder, else ``STUDY_WEIGHTS``, else None. Raises `InputError` where it is not a folder."""
    chosen = weights_dir or (Path(os.environ["STUDY_WEIGHTS"]) if os.environ.get("STUDY_WEIGHTS") else None)
    if chosen is not None and not chosen.is_dir():
        raise InputError(f"{chosen}: no such weights folder (--weights-dir or STUDY_WEIGHTS)")
    return chosen


def cached_file(spec: BackboneSpec) -> Path | None:
    """The weights in the hub caches that timm itself uses (Hugging Face hub, torch hub), else None."""
    cfg = pretrained_cfg(spec)
    if hub_id := cfg.get("hf_hub_id"):
        from huggingface_hub import try_to_load_from_cache  # reads the environment when it is imported

        for file_name in ("model.safetensors", "pytorch_model.bin"):
            cached = try_to_load_from_cache(hub_id, file_name)
            if isinstance(cached, str):
                return Path(cached)
    if url := cfg.get("url"):
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if path.is_file():
            return path
    return None


def weights_tag(spec: BackboneSpec) -> str:
    """timm's tag of a backbone's weights; empty where it has none."""
    if spec.members:
        return "+".join(map(weights_tag, spec.members))
    return BUNDLED[spec.name].tag if spec.name in BUNDLED else str(pretrained_cfg(spec).get("tag") or "")


def licence(spec: BackboneSpec) -> str:
    """Under which a backbone's weights are given, in timm's words; ``not known to timm`` where it does not say."""
    if spec.members:
        return ", ".join(dict.fromkeys(map(licence, spec.members)))
    if spec.name in BUNDLED:
        return "apache-2.0"
    return str(pretrained_cfg(spec).get("license") or "not known to timm")


def pretrained_cfg(spec: BackboneSpec) -> dict[str, Any]:
    """timm's description of a backbone's weights: tag, hub id, mean, std, input size."""
    if spec.name == PIXELS:
        return {"tag": "none", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    import timm  # takes seconds

    cfg = timm.get_pretrained_cfg(spec.name)
    return cfg.to_dict() if cfg is not None else {}


def available_backbones(*, weights_dir: Path | None = None) -> list[str]:
    """Names of the backbones whose weights lie on this machine, sorted."""
    import timm  # takes seconds

    names: set[str] = set()
    if folder := weights_folder(weights_dir):
        names.update(path.stem for suffix in ("safetensors", "pth") for path in folder.glob(f"*.{suffix}"))
    names.update(name for name, bundled in BUNDLED.items() if bundled.file())
    from huggingface_hub.constants import HF_HUB_CACHE  # reads the environment when it is imported

    for repository in Path(HF_HUB_CACHE).glob("models--timm--*"):
        name = repository.name.removeprefix("models--timm--")
        if timm.is_model(name.partition(".")[0]) and cached_file(BackboneSpec(name)):
            names.add(name)
    return sorted(name for name in names if timm.is_model(name.partition(".")[0]))


def download(spec: BackboneSpec) -> Path:
    """Fetch a backbone's weights from the hub into its cache and return the file.

    Raises:
        InputError: the hub cannot be reached or has no weights under this name.
    """
    cfg = pretrained_cfg(spec)
    hub_id = cfg.get("hf_hub_id")
    if not hub_id and not cfg.get("url"):
        raise InputError(f"timm has no pretrained weights for {spec}; use {spec.name}@random or a --weights-dir")
    try:
        if hub_id:
            from huggingface_hub import constants, hf_hub_download  # reads the environment when it is imported

            if not constants.HF_HUB_OFFLINE:
                _require_connection(constants.ENDPOINT)
            return Path(hf_hub_download(hub_id, "model.safetensors"))
        path = Path(torch.hub.get_dir()) / "checkpoints" / cfg["url"].rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(cfg["url"], str(path), progress=False)
        return path
    except Exception as error:
        # The hub's client raises its own, requests' and httpx's errors: none of them means anything else here.
        raise InputError(
            f"weights of backbone {spec} could not be fetched ({type(error).__name__}); "
            f"available without network: {', '.join(available_backbones()) or 'none'}; "
            f"`--offline` goes on with those, or put {spec.name}.safetensors into a --weights-dir"
        ) from error


def _require_connection(address: str) -> None:
    """Knock once: the hub's client would try for half a minute before it reported anything. Raises `OSError`."""
    parts = urlsplit(address)
    if not requests.utils.get_environ_proxies(address):  # a proxy has connections that we have not
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=10).close()


def weights_file(source: WeightsSource) -> Path:
    """The file of a source that has one; a hub source is downloaded first. Raises `InputError` as `download` does."""
    path = download(source.spec) if source.origin == "hub" else source.path
    if path is None:
        raise ValueError(f"{source.spec}: {source.origin} weights have no file")
    return path


def read_weights(source: WeightsSource) -> tuple[dict[str, Tensor], str]:
    """Read a weights file: state dict and the file's sha256.

    Raises:
        InputError: the file is not a readable checkpoint (pickled objects are refused: ``weights_only=True``).
    """
    path = weights_file(source)
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a readable weights file ({type(error).__name__})") from error
    except Exception as error:
        # torch re-raises pickle's own error class for a file that holds more than tensors.
        raise InputError(f"{path}: holds more than tensors; save the state dict alone, best as safetensors") from error
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict of tensors")
    return dict(state), file_sha256(path)


def digits(sha256: str, count: int = 12) -> str:
    """The first digits of a digest, or of each one's of several backbones."""
    return "+".join(one[:count] for one in sha256.split("+"))


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over names, shapes, types and bytes of a state dict, in name order."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()
