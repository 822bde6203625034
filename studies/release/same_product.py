"""Whether a model's images are of the product that a registered model is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectors.runtime.artifact import read_description
from studies.search.view import StudyView
from tracking.registered_models import Version
from tracking.registry import CHAMPION, Registry

PRODUCT, EXPERIMENT = "product", "study.data"
"""Tags of a version: the product within a study over several, and ``<dataset>/<category>`` of its study."""


@dataclass(frozen=True)
class ProductImages:
    """The images that a model was fitted to and tested on."""

    name: str
    """``<dataset>/<category>``; a plain folder's category is the folder's name. Empty where it is not known."""
    digests: frozenset[str] = frozenset()
    """sha256 (hex) of their image sets; empty where they are not known."""

    @classmethod
    def of(cls, experiment: str, product: str, digests: Mapping[str, Any]) -> ProductImages:
        """Those of a study's experiment, or of one product of it.

        Args:
            digests: {image set: sha256 (hex)}; what is no text is left out.
        """
        name = f"{experiment.partition('/')[0]}/{product}" if product else experiment
        return cls(name, frozenset(digest for digest in digests.values() if isinstance(digest, str) and digest))

    @classmethod
    def of_study(cls, view: StudyView, product: str) -> ProductImages:
        """Those of a study, or of one of its products."""
        digests: dict[str, str] = view.header.identity["data"]
        own = {name: digest for name, digest in digests.items() if not product or name.startswith(f"{product}/")}
        return cls.of(view.header.experiment, product, own)

    @classmethod
    def of_version(cls, version: Version, provenance: Mapping[str, Any]) -> ProductImages:
        """Those of a registered version, with the provenance of its detector."""
        digests = provenance.get("digests")
        tags = version.tags
        return cls.of(tags.get(EXPERIMENT, ""), tags.get(PRODUCT, ""), digests if isinstance(digests, dict) else {})

    def is_same(self, other: ProductImages) -> bool:
        """Whether both have the same name or share an image set. Where a name is not known there is nothing to object to."""
        return not self.name or not other.name or self.name == other.name or bool(self.digests & other.digests)


def other_product(
    registry: Registry, label: str, images: ProductImages, target: str, version: Version | None = None
) -> str:
    """That a model's images are of another product than those of a registered model, in words; empty where they are not.

    The registered model's product is that of its champion; without one, that of its first version.

    Args:
        label: what is to be promoted, for the words.
        images: its own.
        target: name of the registered model.
        version: what is to be promoted, if it is a version already: it is not compared with itself.

    Raises:
        InputError: the files of a version cannot be fetched.
    """
    others = [other for other in registry.versions(target) if str(other) != str(version)]
    known = registry.find(target, CHAMPION) or (others[-1] if others else None)
    if known is None or str(known) == str(version) or images.is_same(ProductImages.of_version(known, {})):
        return ""
    theirs = ProductImages.of_version(known, read_description(registry.fetch(known)).provenance)
    if images.is_same(theirs):
        return ""
    return f"{label} is of {images.name}, but model {target!r} is of {theirs.name} (version {known.version})"
