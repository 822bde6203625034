"""From what a person gives for a run to a study's settings: a file, a folder of images, or a study that is stored."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.data.splits import RECIPES
from detectors.errors import InputError
from detectors.head_files import is_reference
from detectors.head_texts import look_in
from studies.file import datasets, library, own_images
from studies.file.config import StudyConfig, validate
from studies.file.demo import read_demo
from studies.file.messages import did_you_mean
from studies.file.narrowing import narrowed
from studies.file.overrides import override
from studies.home import Home
from studies.search.origin import (
    AUTO,
    OF_ONE_RUN,
    SAMPLER,
    SETTLED,
    TRIALS,
    Kind,
    Origin,
    differing_sections,
    is_same_study,
    lasting,
    merged,
    sections,
    shown,
    value_at,
    written,
)
from studies.search.plan import Plan
from studies.search.stopping import reached
from studies.search.storage import GENERATION, Stored, check_same_study, look_up, stored_names
from studies.search.view import StudyView


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run, and where they came from."""

    config: StudyConfig
    origin: Origin | None
    """None where a study of version 0.2 or before goes on as it was stored."""
    stored: Stored | None
    """The study that goes on; None where a new one begins."""
    given: frozenset[str]
    """Sections that this command line sets."""
    remarks: tuple[str, ...] = ()
    """Where the settings came from, as far as it is not plain."""
    hint: str = ""
    """What to do if the stored study of this name is another one; empty where the file is the one that it was made from."""


@dataclass(frozen=True)
class _Written:
    """A study as a file, or a file with a folder of images, gives it; command lines not counted."""

    kind: Kind
    source: str
    raw: dict[str, Any]

    def base(self) -> dict[str, Any]:
        """As `StudyConfig.to_json` writes it; a file that is sound only with what the command line sets, as it is."""
        try:
            return self.validated({})[0].to_json()
        except InputError:
            plain: dict[str, Any] = json.loads(json.dumps(self.raw, default=str))
            return plain

    def validated(self, settings: Mapping[str, Any]) -> tuple[StudyConfig, tuple[str, ...]]:
        """The study with settings by dotted key, and a line on each baseline that they leave no place for.

        Raises:
            InputError: something is wrong in it.
        """
        raw = override(copy.deepcopy(self.raw), copy.deepcopy(dict(settings)))
        # What the command line names is relative to where that was typed.
        raw = library.with_heads(raw, base=Path(), source=self.source)
        raw, lines = narrowed(raw, self.raw, settings, source=self.source)
        return validate(raw, source=f"{self.source} with --set" if settings else self.source), lines


def run_settings(
    study: str,
    given: Mapping[str, Any],
    *,
    home: Home,
    images: str | Path | None = None,
    name: str | None = None,
    demo: bool = False,
    fresh: bool = False,
    weights_dir: Path | None = None,
) -> RunSettings:
    """The settings of a run.

    A study that goes on keeps what earlier command lines set, unless the file says otherwise since: its trials in all, for
    instance. A name stands for the file of that name, if the stored study of that name was made from it, else for the stored
    study; ``NAME#N`` is always the stored one, a path always the file. A folder of images is searched by the study file
    `own_images.SEARCH_OF_A_FOLDER`.

    Args:
        study: name, path, ``NAME#N``, a folder of images, or with `images` a detector.
        given: what this command line sets, by dotted key.
        fresh: a new study begins: it keeps nothing of one from the same file.

    Raises:
        InputError: an unknown study, or something in it is wrong.
    """
    look_in(home.heads)
    of_folder = images is None and _is_folder_of_images(study, home)
    if of_folder:
        study, images = own_images.SEARCH_OF_A_FOLDER, study
    _check_combination(images, name, demo=demo)
    is_plain = images is None and not (library.is_path(study) or is_reference(study))
    named = look_up(home, study) if is_plain else None
    try:
        if named is None and is_plain and GENERATION in study:
            raise library.UnknownStudyError(f"no study {study!r}")
        file = _read(study, images=images, name=name, demo=demo, of_folder=of_folder, home=home)
    except library.UnknownStudyError as error:
        if named is not None and (not demo or _is_demo(named)):
            return _as_stored(named, given, home=home, fresh=fresh)
        raise _unknown(study, error, home, images=images is not None, demo=demo) from None
    base = file.base()
    label = str(given.get("name", file.raw.get("name")))
    stored = look_up(home, label)
    is_made_of_it = stored is not None and _is_made_of(stored, file.kind, base)
    if named is not None and not demo and not is_made_of_it and "name" not in given:
        # The path, because the name means the stored study.
        other = shlex.join(["study", "run", file.source, "--set", "name=NEW"])
        hint = f"; the file {file.source} is another study: `{other}` runs it"
        return _as_stored(named, given, home=home, fresh=fresh, hint=hint)
    kept: dict[str, Any] = {}
    remarks: tuple[str, ...] = ()
    if stored is not None and is_made_of_it and not fresh:
        kept, remarks = _kept(stored, file, base, given)
    settings = merged(kept, given)
    config, left_out = file.validated(settings)
    origin = Origin(
        file.kind,
        file.source,
        base,
        lasting(settings),
        _root(config),
        str(weights_dir.absolute()) if weights_dir else "",
    )
    return RunSettings(
        with_recipes(config, None if fresh else stored if is_made_of_it else None),
        origin,
        None if fresh else stored,
        sections(given),
        (*remarks, *left_out),
        _hint(stored, is_made_of_it, file, config) if stored is not None else "",
    )


def with_recipes(config: StudyConfig, stored: Stored | None) -> StudyConfig:
    """The study with the version of painted defects that a stored one was created with, or for a new one the last."""
    recipes = RECIPES if stored is None else stored.header.config.get("recipes")
    return config.model_copy(update={"recipes": recipes})


def continued(plan: Plan, settings: RunSettings, *, more: bool) -> dict[str, Any]:
    """What a plan has to know of the stored study that goes on, as its fields.

    Args:
        more: the person gave settings to try, so that the search goes on.

    Raises:
        InputError: the stored study was created with another identity.
    """
    stored = settings.stored
    if stored is None:
        return {}
    try:
        check_same_study(stored.name, stored.header, plan)
    except InputError as error:
        raise InputError(f"{error}{settings.hint}") from None
    config = plan.config
    changed = differing_sections(config.to_json(), stored.header.config) | settings.given
    settles = bool(stored.ended) and not more and bool(changed) and changed <= SETTLED
    reason = stored.ended if settles else ""
    if not more and not reason:
        if stored.finished >= config.budget.trials:
            reason = f"{stored.finished} of {config.budget.trials} trials are done"
        else:
            reason = reached(StudyView(stored.study, stored.header, plan.home, config=config)) or ""
    how = f"goes on after {stored.finished} trials, up to {config.budget.trials}"
    if reason:
        how = f"no trial is started, because the search has ended: {reason}"
    return {"generation": stored.name, "settles": settles, "standing": f"stored as {stored.name}; {how}"}


def _check_combination(images: str | Path | None, name: str | None, *, demo: bool) -> None:
    if images is None and name is not None:
        raise InputError("--name goes with a folder of images; a study file has its own name")
    if images is not None and demo:
        raise InputError("--demo renders its own images; leave out --demo or the folder")


def _is_folder_of_images(study: str, home: Home) -> bool:
    """Whether what is given in the place of a study is a folder: of a plain word, only where no other study has this name."""
    folder = Path(study)
    if library.is_path(study):
        own_images.require_folder_of_images(folder)
    if not own_images.names_a_folder(study):
        return False
    if library.is_path(study) or study in (".", ".."):
        return True
    stored = look_up(home, study)
    return stored is None or (stored.origin is not None and stored.origin.root == str(folder.expanduser().absolute()))


def _read(
    study: str, *, images: str | Path | None, name: str | None, demo: bool, of_folder: bool, home: Home
) -> _Written:
    if demo:
        # The file's own search, cut to the bundled backbone and to minutes.
        raw, source = read_demo(study)
        return _Written("demo", source, raw)
    raw, source = library.read(study)
    if not isinstance(raw, dict):
        validate(raw, source=source)
    if images is None:
        return _Written("file", source, raw)
    folder = Path(images).expanduser().absolute()
    own_images.require_folder_of_images(Path(images))
    own_images.require_one_product(
        Path(images), command=("study", "run") if of_folder else ("study", "run", study, "--images")
    )
    name = name or _name_of(folder, home, detector="" if of_folder else Path(study).stem)
    raw = override(raw, {"data.root": folder, "data.dataset": "folder", "name": name})
    return _Written("images", source, raw)


def _name_of(folder: Path, home: Home, *, detector: str) -> str:
    """The name of a study on a folder's images; one that an earlier version named otherwise keeps its name."""
    name = own_images.study_name(folder, detector=detector)
    former = own_images.former_study_name(folder, detector=detector) if detector else name
    if former != name:
        stored = look_up(home, former)
        if stored is not None and value_at(stored.header.config, "data.root") == str(folder):
            return former
    return name


def _as_stored(stored: Stored, given: Mapping[str, Any], *, home: Home, fresh: bool, hint: str = "") -> RunSettings:
    """A study whose settings are those of its last run, and what is given now."""
    last, origin = copy.deepcopy(stored.header.config), stored.origin
    if origin is not None:
        for key in OF_ONE_RUN:
            section, _, name = key.partition(".")
            last[section].pop(name, None)
            if (value := value_at(origin.base, key)) is not None:
                last[section][name] = value
        if _is_sampler_open(origin):
            last["sampler"]["name"] = AUTO
        if origin.root and not Path(str(last["data"].get("root", ""))).is_absolute():
            last["data"]["root"] = origin.root
    file = _Written("file", f"study {stored.name} as it was stored", last)
    config, left_out = file.validated(given)
    now: Origin | None = None
    if origin is not None:
        now = Origin(
            origin.kind,
            origin.source,
            origin.base,
            lasting(merged(origin.settings, given)),
            _root(config),
            origin.weights_dir,
        )
    again = stored if config.name == stored.header.name else look_up(home, config.name)
    came = f" from {origin.source}" if origin is not None else ""
    remark = f"the settings are those of study {stored.name} as it was stored{came}; its images: {_where(config, stored)}{hint}"
    config = with_recipes(config, None if fresh else again)
    return RunSettings(config, now, None if fresh else again, sections(given), (remark, *left_out))


def _is_sampler_open(origin: Origin) -> bool:
    """Whether the last run was to find the sampler itself; what it came to is stored in its place."""
    wished = {**origin.settings, **{f"sampler.{name}": one for name, one in origin.settings.get("sampler", {}).items()}}
    return bool(wished.get(SAMPLER, value_at(origin.base, SAMPLER)) == AUTO)


def _sampler_before_auto(stored: Stored, file: _Written, base: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler of a study that is older than ``auto``, and whose file names none: it keeps to it."""
    before = value_at(stored.header.config, SAMPLER)
    noted = value_at(stored.origin.base, SAMPLER) if stored.origin is not None else before
    is_older = noted not in (None, AUTO) and value_at(base, SAMPLER) == AUTO and value_at(file.raw, SAMPLER) is None
    return {SAMPLER: before} if is_older else {}


def _where(config: StudyConfig, stored: Stored) -> str:
    return str(config.data.root) if isinstance(config.data.root, Path) else stored.header.dataset


def _kept(
    stored: Stored, file: _Written, base: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What earlier command lines set and still holds, and a line on it."""
    sampler = {} if {"sampler", SAMPLER} & {*given} else _sampler_before_auto(stored, file, base)
    if (origin := stored.origin) is None:
        # Version 0.2 did not note what came from the command line.
        trials = value_at(stored.header.config, TRIALS)
        if trials == value_at(base, TRIALS) or TRIALS in given or "budget" in given:
            return sampler, ()
        line = (
            f"study {stored.name} was to have {trials} trials when version 0.2 or an older one ran it last, and keeps to that; "
            f"{file.source} says {value_at(base, TRIALS)}: `--trials {value_at(base, TRIALS)}` goes on to these"
        )
        return {TRIALS: trials} | sampler, (line,)
    kept = sampler | origin.kept(base)
    settings = merged(kept, given)
    lines = []
    for key, value in kept.items():
        usual = value_at(base, key)
        if key in settings and key not in given and value != usual:
            lines.append(written(key, value) + (f" ({file.source}: {shown(usual)})" if usual is not None else ""))
    return kept, (f"kept from earlier runs of study {stored.name}: {', '.join(lines)}",) if lines else ()


def _is_made_of(stored: Stored, kind: Kind, base: Mapping[str, Any]) -> bool:
    """Whether a stored study was made from what is given now, however that was edited since."""
    origin, last = stored.origin, stored.header.config
    if origin is None:
        # Not noted in version 0.2. A study of a data set did not become one of a folder by an edit.
        return bool(value_at(last, "data.dataset") == value_at(base, "data.dataset"))
    return origin.kind == kind or is_same_study(base, last)


def _is_demo(stored: Stored) -> bool:
    return bool(value_at(stored.header.config, "data.dataset") == "rendered")


def _hint(stored: Stored, is_made_of_it: bool, file: _Written, config: StudyConfig) -> str:
    """What to do if a stored study that bears the name turns out to be another one."""
    if not is_made_of_it:
        return _other_study(stored)
    if file.kind == "images" and stored.origin is not None and stored.origin.root != _root(config):
        return f", or under another name with --name NEW, because the stored study is of {stored.origin.root}"
    return ""


def _other_study(stored: Stored) -> str:
    """What to do where a stored study bears the name of another."""
    name = stored.name if GENERATION in stored.name else f"{stored.name}{GENERATION}1"
    came = f", of {stored.origin.source}" if stored.origin is not None else ""
    command = shlex.join(["study", "run", name])
    return f", or under another name with --set name=NEW. The stored study{came}, goes on with `{command}`"


def _unknown(study: str, error: InputError, home: Home, *, images: bool, demo: bool) -> InputError:
    """Why a name stands for no file and no stored study, with those there are."""
    stored = stored_names(home)
    if study in stored and (images or demo):
        option = "--images" if images else "--demo"
        return InputError(
            f"{study} is a stored study, with images of its own; leave out {option} to go on with it, or give a detector or a "
            "study file"
        )
    if not stored:
        return error
    known = [*stored, *library.config_names()]
    return InputError(
        f"no study {study!r}; {did_you_mean(study, known)}stored here: {', '.join(stored)}; "
        f"files: {', '.join(library.config_names()) or 'none'} ({library.OTHERWISE})"
    )


def _root(config: StudyConfig) -> str:
    """The absolute folder of a study's images; empty where each product has its own, or they are drawn."""
    data = config.data
    if isinstance(data.root, dict) or (data.root is None and data.dataset != "mvtec"):
        return ""
    return str(datasets.data_root(data))
