"""The destination: whether the data set is in it, what is in its way, and its folders put there."""

from __future__ import annotations

from pathlib import Path

from detectors.data.fetch.files import read_json, remove_folder
from detectors.data.fetch.job import Job
from detectors.errors import InputError

RECEIPT = ".fetched.json"
"""File in the destination that says which archive it came from; it arrives last."""


def is_complete(job: Job) -> bool:
    """Whether the destination holds this archive's folders or, put there by hand, every category."""
    receipt = read_json(job.target / RECEIPT)
    if receipt is None:
        return _all_filled(job.target, list(job.source.categories))
    folders = receipt.get("folders")
    return receipt.get("sha256") == job.sha256 and isinstance(folders, list) and _all_filled(job.target, folders)


def _all_filled(target: Path, folders: list[str]) -> bool:
    return bool(folders) and all((target / name).is_dir() and any((target / name).iterdir()) for name in folders)


def refuse_conflicts(target: Path, names: list[str]) -> None:
    """Raise `InputError` where one of the names is taken."""
    present = [name for name in names if (target / name).exists()]
    if present:
        shown = ", ".join(present[:4]) + (", ..." if len(present) > 4 else "")
        raise InputError(
            f"{target}: already holds {shown}, which would be overwritten; move it away or choose another folder"
        )


def publish(extracted: Path, target: Path) -> None:
    """Move the extracted folders into the destination, the receipt last; files that are there already stay."""
    if not target.exists():
        extracted.rename(target)
        return
    entries = sorted(extracted.iterdir(), key=lambda entry: (entry.name == RECEIPT, entry.name))
    refuse_conflicts(target, [entry.name for entry in entries if entry.is_dir()])
    for entry in entries:
        if entry.name == RECEIPT:
            entry.replace(target / entry.name)
        elif not (target / entry.name).exists():
            entry.rename(target / entry.name)
    remove_folder(extracted)
