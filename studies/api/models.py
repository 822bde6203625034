"""Registered models: their versions, and who did what with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from studies.home import home_at
from studies.release.locate import open_home
from studies.release.promotion import open_registry
from tracking.audit import AuditLine
from tracking.patience import Patience
from tracking.registry import Version


@dataclass(frozen=True)
class ModelVersions:
    """A registered model: its versions, and who did what with it."""

    name: str
    versions: list[Version]
    """The newest first."""
    record: list[AuditLine]
    """Who did what and when, the oldest first."""
    faults: list[str]
    """What is wrong with its record; empty where all is well."""


def list_models(
    name: str | None = None, *, home: str | Path | None = None, remark: Callable[[str], None] = lambda text: None
) -> list[ModelVersions]:
    """Registered models with their versions, aliases, metrics and gate results.

    A model that the record names and MLflow does not have comes last, without versions and with what is wrong.

    Args:
        name: of one of them; default all.
        remark: called with a line when the registry is away for a while.

    Raises:
        InputError: no such model, or a registry that cannot be reached.

    >>> import studies
    >>> studies.list_models()
    []
    """
    place, _ = open_home(home_at(home))
    registry = open_registry(place, patience=Patience(tell=remark))
    missing = [
        ModelVersions(model, [], registry.audit.lines(model), faults)
        for model, faults in registry.faults_of_missing().items()
        if name in (None, model)
    ]
    if name and missing:
        return missing
    if name:
        # A model without versions is none: the lookup names those there are.
        registry.version(name, registry.versions(name)[0].version if registry.versions(name) else "1")
    names = [name] if name else registry.names()
    return [
        ModelVersions(model, registry.versions(model), registry.audit.lines(model), registry.faults(model))
        for model in names
    ] + missing
