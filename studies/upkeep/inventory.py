"""What may be deleted in a home because it can be made again, and deleting it."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.errors import InputError
from detectors.files import file_lock, os_errors_as_input_errors
from studies.file.known_pixels import PIXELS_FILE
from studies.home import Home, sqlite_file
from studies.search import storage as studies_storage
from studies.search.holding import driver_lock
from studies.search.selection import best_by_value
from studies.search.view import StudyView
from studies.worker.feature_store import FeatureStore
from studies.worker.jobs import CHECKPOINTS, DETECTOR

KINDS = {
    "leftovers": ("half-written files of processes that were killed", "always"),
    "features": ("stored features; computed again when a study needs them", "--features"),
    "checkpoints": ("checkpoints of finished trials", "--trials"),
    "detectors": ("detectors of refits that are not the selected trial's any more", "--trials"),
    "rendered": ("rendered images; drawn again when a study needs them", "--all"),
    "checked": ("notes on images that were checked", "--all"),
}
"""What may go, with the option that asks for it."""
ABANDONED_SECONDS = 3600.0
"""A half-written file that no lock speaks for is left over when nothing in it has changed for so long."""
HALF_WRITTEN = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old|trash)|\.write-test-[0-9a-f]{8}")
HALF_RENDERED = re.compile(r"\.[a-z]+-[0-9a-f]{32}\.partial")


@dataclass(frozen=True)
class Item:
    """One file or folder that may go."""

    kind: str
    path: Path
    size_bytes: int
    lock: Path | None = None
    """Held while it is deleted, so that no driver starts on it meanwhile."""


@dataclass
class Inventory:
    """What there is under a home, and what is left alone because somebody works with it."""

    items: list[Item] = field(default_factory=list)
    busy: list[Item] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    """Studies that are being run right now."""
    remarks: list[str] = field(default_factory=list)

    def add(self, item: Item, *, busy: bool) -> None:
        """Note one item."""
        (self.busy if busy else self.items).append(item)

    @property
    def totals(self) -> dict[str, dict[str, int]]:
        """{kind: ``items``, ``bytes`` and ``in_use``}."""
        totals = {kind: {"items": 0, "bytes": 0, "in_use": 0} for kind in KINDS}
        for item in self.items:
            totals[item.kind]["items"] += 1
            totals[item.kind]["bytes"] += item.size_bytes
        for item in self.busy:
            totals[item.kind]["in_use"] += 1
        return totals

    def to_json(self, chosen: set[str], home: Home) -> dict[str, Any]:
        """For scripts. Args: `chosen`: kinds that are to go."""
        kinds = [{"kind": kind, "chosen": kind in chosen} | total for kind, total in self.totals.items()]
        paths = [str(item.path) for item in self.items if item.kind in chosen]
        return {
            "home": str(home.root),
            "kinds": kinds,
            "paths": paths,
            "running": self.running,
            "remarks": self.remarks,
        }


def take_inventory(home: Home, *, keep: int) -> Inventory:
    """Everything that may go. Looks only: creates and deletes nothing.

    Args:
        keep: number of each study's best trials whose checkpoints are not listed.
    """
    inventory = Inventory()
    if not home.root.is_dir():
        return inventory
    studies, strangers = _studies(home, inventory)
    running = [view for view, busy in studies if busy]
    inventory.running = [view.study.study_name for view in running]
    if strangers:
        inventory.running.append("a study that is not in the storage yet, or belongs to another one")
    _add_features(inventory, home, running, strangers=strangers)
    for view, busy in studies:
        _add_trials(inventory, view, keep=keep, busy=busy)
    _add_rendered(inventory, home, running, strangers=strangers)
    _add_checked(inventory, home, running)
    for path in _half_written(home.root, recursive=False):
        inventory.add(_item("leftovers", path), busy=_is_fresh(path))
    return inventory


# --- what there is ----------------------------------------------------------------------------------------------------


def _studies(home: Home, inventory: Inventory) -> tuple[list[tuple[StudyView, bool]], bool]:
    """Every known study and whether it is being run, and whether some other study is."""
    views: list[StudyView] = []
    path = sqlite_file(home.storage_url)
    if path is None or path.is_file():
        try:
            storage = studies_storage.open_storage(home)
        except InputError as error:
            # A full disk is when people clean, and when a database may not open.
            inventory.remarks.append(f"trials are left alone: {error}")
        else:
            for name in studies_storage.study_names(storage):
                # One that was stopped while it was created has no trials yet.
                with suppress(InputError):
                    views.append(StudyView(*studies_storage.load_study(storage, name), home))
    held = {lock for lock in home.locks.glob("driver-*.lock") if _is_held(lock)}
    locks = [driver_lock(home, view.header.name) for view in views]
    return [(view, lock in held) for view, lock in zip(views, locks, strict=True)], bool(held - set(locks))


def _is_held(lock: Path) -> bool:
    try:
        with file_lock(lock, shared=True, wait=False):
            return False
    except BlockingIOError:
        return True


def _add_features(inventory: Inventory, home: Home, running: Sequence[StudyView], *, strangers: bool) -> None:
    store = FeatureStore(home.features)
    digests = {digest for view in running for digest in view.header.identity["data"].values()}
    for entry in store.entries():
        identity = store.identity(entry.folder) or {}
        busy = strangers or identity.get("data") in digests or store.is_computing(entry.folder)
        inventory.add(Item("features", entry.folder, entry.size_bytes), busy=busy)
    for folder in store.leftovers():
        inventory.add(_item("leftovers", folder), busy=store.is_computing(folder))


def _add_trials(inventory: Inventory, view: StudyView, *, keep: int, busy: bool) -> None:
    """Checkpoints, detectors and leftovers of one study."""
    lock = driver_lock(view.home, view.header.name)
    trials = view.trials()
    selected = next((trial for trial in trials if trial.selected), None)
    best = _best(view, keep)
    for trial in trials:
        # A trial that a dead driver left running is taken up again where its checkpoint ends.
        unfinished = trial.state == "RUNNING" or (trial.selected and trial.final is None)
        if trial.number not in best and not unfinished:
            for folder in (trial.folder / CHECKPOINTS, trial.final_folder / CHECKPOINTS):
                _add_folder(inventory, "checkpoints", folder, lock, busy=busy)
        if selected is not None and not trial.selected:
            _add_folder(inventory, "detectors", trial.final_folder / DETECTOR, lock, busy=busy)
    # Until a trial is chosen, another fit of a setting that was cut off is taken up again, too.
    for folder in sorted(view.probes.rglob(CHECKPOINTS)) if view.stored_choice() is not None else ():
        _add_folder(inventory, "checkpoints", folder, lock, busy=busy)
    listed = [item.path for item in (*inventory.items, *inventory.busy)]
    for path in _half_written(view.folder, recursive=True):
        if not any(path.is_relative_to(folder) for folder in listed):
            inventory.add(_item("leftovers", path, lock), busy=busy)


def _best(view: StudyView, count: int) -> set[int]:
    """Numbers of the selected trial and of the best others by value."""
    trials = view.trials()
    rest = [trial.frozen for trial in trials if not trial.selected]
    chosen = {trial.number for trial in trials if trial.selected and count}
    while len(chosen) < count and (best := best_by_value(view.config, rest, view.remeasured)) is not None:
        chosen.add(best.number)
        rest.remove(best)
    return chosen


def _add_rendered(inventory: Inventory, home: Home, running: Sequence[StudyView], *, strangers: bool) -> None:
    used = [Path(view.header.dataset) for view in running]
    for folder in _folders(home.rendered):
        partial = [_item("leftovers", path) for path in folder.iterdir() if HALF_RENDERED.fullmatch(path.name)]
        fresh = [_is_fresh(item.path) for item in partial]
        for item, is_fresh in zip(partial, fresh, strict=True):
            inventory.add(item, busy=is_fresh)
        whole = _item("rendered", folder).size_bytes - sum(item.size_bytes for item in partial)
        busy = strangers or any(fresh) or any(path.is_relative_to(folder) for path in used)
        inventory.add(Item("rendered", folder, whole), busy=busy)


def _add_checked(inventory: Inventory, home: Home, running: Sequence[StudyView]) -> None:
    used = {f"{view.header.splits_digest}.json" for view in running}
    for path in sorted((home.root / "checked").glob("*.json")):
        # The pixels of files are of use to every study.
        inventory.add(_item("checked", path), busy=path.name in used or bool(running and path.name == PIXELS_FILE))
    for path in _half_written(home.root / "checked", recursive=False):
        inventory.add(_item("leftovers", path), busy=_is_fresh(path))


def _half_written(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """What `detectors.files` and `delete` leave behind when they are killed, outermost first."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        match = HALF_WRITTEN.fullmatch(path.name)
        if match is None:
            if recursive and path.is_dir():
                yield from _half_written(path, recursive=True)
        elif match["kind"] != "old" or (folder / match["target"]).exists():
            # Killed between two renames, the old folder is the only one there is.
            yield path


def _add_folder(inventory: Inventory, kind: str, folder: Path, lock: Path, *, busy: bool) -> None:
    if folder.is_dir() and not folder.is_symlink():
        inventory.add(_item(kind, folder, lock), busy=busy)


def _item(kind: str, path: Path, lock: Path | None = None) -> Item:
    return Item(kind, path, sum(size for _, size in _statuses(path)), lock)


def _is_fresh(path: Path) -> bool:
    """Whether somebody may still be writing it."""
    newest = max((changed for changed, _ in _statuses(path)), default=0.0)
    return time.time() - newest < ABANDONED_SECONDS


def _statuses(path: Path) -> Iterator[tuple[float, int]]:
    """Time of the last change and size of a file, or of everything in a folder; links are not followed."""
    for inner in [path, *(path.rglob("*") if path.is_dir() else ())]:
        try:
            status = inner.lstat()
        except FileNotFoundError:  # its writer finished meanwhile
            continue
        yield status.st_mtime, 0 if inner.is_dir() else status.st_size


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


# --- deleting ---------------------------------------------------------------------------------------------------------


def chosen_kinds(*, features: bool, trials: bool, everything: bool) -> set[str]:
    """Kinds that may be deleted with these options; leftovers always may."""
    options = {"always": True, "--features": features, "--trials": trials, "--all": everything}
    return {kind for kind, (_, option) in KINDS.items() if everything or options[option]}


def delete(items: Sequence[Item], home: Home) -> list[Item]:
    """Delete what is still free to go; returns what is gone."""
    store = FeatureStore(home.features)
    gone = []
    for item in items:
        with ExitStack() as held:
            if item.lock is not None and item.lock.exists():
                try:
                    held.enter_context(file_lock(item.lock, wait=False))
                except BlockingIOError:
                    continue
            of_store = item.path.parent == home.features
            if store.discard(item.path) if of_store else _remove(item.path):
                gone.append(item)
    return gone


def _remove(path: Path) -> bool:
    """Take a file or folder out of sight in one step, then free its space."""
    trash = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.trash")
    with os_errors_as_input_errors(path):
        try:
            path.rename(trash)
        except FileNotFoundError:
            return False
        if trash.is_dir():
            shutil.rmtree(trash)
        else:
            trash.unlink()
    return True
