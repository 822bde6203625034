"""Running a study: from a name and settings to a plan, from a plan to a study that was run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console

from detectors.errors import InputError
from studies.api.driving import make_executor
from studies.api.offline import offline_hub
from studies.api.settings import continued, run_settings
from studies.api.study import Study
from studies.executors.base import Executor
from studies.executors.catalog import check_address, executor_plugin
from studies.file.overrides import Overrides, parse_idea, parse_overrides
from studies.home import home_at
from studies.search.earlier import read_earlier
from studies.search.notices import Listener, Notice, Remark
from studies.search.plan import Options, Plan, make_plan
from studies.search.run import run_study
from studies.search.stores import Stores
from studies.show.live import Live

Jobs = int | Literal["auto"]


class Watcher(Protocol):
    """Whoever is shown how a study gets on: `studies.show.live.Live`, `studies.show.event_lines.EventLines`."""

    def preparing(self, name: str, done: int, total: int) -> None:
        """What is done before the first trial, and how far it is."""

    def __call__(self, notice: Notice) -> None:
        """One event of the search."""


def run(
    study: str | Path,
    *,
    settings: Overrides = (),
    trials: int | None = None,
    timeout: str | float | None = None,
    images: str | Path | None = None,
    name: str | None = None,
    demo: bool = False,
    fresh: bool = False,
    offline: bool = False,
    enqueue: Sequence[str | Mapping[str, Any]] = (),
    warm_from: str | Sequence[str] = (),
    jobs: Jobs | None = None,
    device: str = "auto",
    executor: str | Executor = "local",
    ray_address: str | None = None,
    weights_dir: str | Path | None = None,
    home: str | Path | None = None,
    progress: bool | Listener = True,
) -> Study:
    """Search for the best configuration, refit it and score it on test; the same call goes on where it was stopped.

    Args:
        study: name of a study file (``"padim_screw"``) or of a study that was run here (``"padim_parts"``, ``"padim_parts#2"``),
            path of a ``.yaml`` file, a folder of images (``"parts/"``), or with `images` a detector (``"padim"``).
        settings: overrides of the study file by dotted key, ``{"data.image_size": 320}`` or ``["data.image_size=320"]``.
        trials: finished trials in all, over every resumption; default what was given last, else what the file says.
        timeout: time limit of this run, ``"30m"`` or seconds.
        images: folder of one's own images with ``good/`` and optional folders of defects.
        name: of the study, with `images`.
        demo: on rendered screws, with the bundled backbone; needs neither data nor network.
        fresh: start a new study beside the one of this name.
        offline: open no connection; backbones without weights on this machine are left out, as they are where the hub does not
            answer.
        enqueue: settings to try first, ``{"n_features": 100}`` or ``"n_features=100,layers=8+16"``.
        warm_from: names of stored studies, also ``"padim_screw,padim_parts#2"``, whose three best settings each are tried next;
            what this study cannot take of them is told.
        jobs: trials at the same time; ``"auto"``: one for each GPU or four cores. Default 1, with Ray ``"auto"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` (every GPU) or ``"cuda:N"``.
        executor: ``"local"`` (processes of this machine), ``"inline"`` (this process), ``"ray"``, the name of another that
            is installed, or an executor, which is closed in any case. A script that uses processes needs
            ``if __name__ == "__main__":`` around what it does; a notebook does not.
        ray_address: ``"auto"``, ``"HOST:PORT"`` or ``"ray://HOST:PORT"``; default: Ray is started here.
        weights_dir: folder with ``<timm name>.safetensors`` or ``.pth``.
        home: where studies are kept; default ``STUDY_HOME`` or ``./outputs``.
        progress: True prints a line per trial, False nothing; a function is called with each `Notice`.

    Raises:
        InputError: an unknown study, a wrong setting, unreadable images, a study that was created differently.
        StudyFailedError: too many trials failed in a row, or none meets the constraints.
        KeyboardInterrupt: after the running trials were put back; the same call goes on from there.

    >>> import studies
    >>> study = studies.run("padim", images="parts", trials=2, settings={"data.image_size": 64},
    ...                     offline=True, executor="inline", progress=False)
    >>> study.name, len(study.trials)
    ('padim_parts', 2)
    """
    with ExitStack() as stack:
        if not isinstance(executor, str):
            stack.callback(executor.close)
        watcher = stack.enter_context(_watcher(progress))
        plan = plan_study(
            study, settings=settings, trials=trials, timeout=timeout, images=images, name=name, demo=demo, fresh=fresh,
            offline=offline, enqueue=enqueue, warm_from=warm_from, jobs=jobs, device=device, executor=executor,
            ray_address=ray_address, weights_dir=weights_dir, home=home, preparing=watcher.preparing,
        )  # fmt: skip
        return run_plan(plan, watcher, fresh=fresh, executor=executor, ray_address=ray_address)


def plan_study(
    study: str | Path,
    *,
    settings: Overrides = (),
    trials: int | None = None,
    timeout: str | float | None = None,
    images: str | Path | None = None,
    name: str | None = None,
    demo: bool = False,
    fresh: bool = False,
    offline: bool = False,
    enqueue: Sequence[str | Mapping[str, Any]] = (),
    warm_from: str | Sequence[str] = (),
    jobs: Jobs | None = None,
    device: str = "auto",
    executor: str | Executor = "local",
    ray_address: str | None = None,
    weights_dir: str | Path | None = None,
    home: str | Path | None = None,
    preparing: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Plan:
    """Everything that `run` does before the first trial: read the file, check the images, look for weights.

    Args:
        preparing: called with what is done, how much of it, and how much in all.

    Raises:
        InputError: as `run` does.
    """
    remote = False
    if isinstance(enqueue, str | Mapping):
        raise InputError(f"enqueue: a list of settings, not {enqueue!r} alone")
    sources = _names(warm_from)
    if jobs is not None and jobs != "auto" and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise InputError(f"jobs {jobs!r}: give a number from 1 on, or 'auto'")
    if isinstance(executor, str):
        remote = executor_plugin(executor).remote
        check_address(executor, ray_address)
    overrides = parse_overrides(settings)
    if trials is not None:
        overrides["budget.trials"] = trials
    if timeout is not None:
        overrides |= parse_overrides([f"budget.timeout={timeout}"])
    place = home_at(home)
    folder = Path(weights_dir) if weights_dir is not None else None
    chosen = run_settings(
        str(study), overrides, home=place, images=images, name=name, demo=demo, fresh=fresh, weights_dir=folder
    )
    origin = chosen.origin
    if folder is None and origin is not None and Path(origin.weights_dir).is_dir() and origin.weights_dir:
        folder = Path(origin.weights_dir)
    offline = offline or demo or (origin is not None and origin.kind == "demo")
    with offline_hub(offline):
        options = Options(
            device=device,
            jobs=jobs or ("auto" if remote else 1),
            offline=offline,
            weights_dir=folder,
            remote=remote,
            left_out=tuple(chosen.stored.header.dropped) if chosen.stored is not None else (),
            ideas=tuple(parse_idea(idea, chosen.config) for idea in enqueue),
            earlier=read_earlier(place, sources, now=chosen.config.name),
        )
        plan = make_plan(chosen.config, place.prepare(), options, progress=preparing)
        plan = replace(plan, origin=origin, remarks=chosen.remarks)
        return replace(plan, **continued(plan, chosen, more=bool(enqueue or sources)))


def _names(warm_from: str | Sequence[str]) -> list[str]:
    """The studies that are named, whether in one text or in several."""
    texts = [warm_from] if isinstance(warm_from, str) else list(warm_from)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"warm_from: names of studies, not {warm_from!r}")
    names = [name.strip() for text in texts for name in text.split(",")]
    if not all(names):
        raise InputError(f"--warm-from {','.join(texts)}: give STUDY or STUDY,STUDY, e.g. padim_screw,padim_parts#2")
    return names


def run_plan(
    plan: Plan,
    watcher: Watcher,
    *,
    fresh: bool = False,
    executor: str | Executor = "local",
    ray_address: str | None = None,
) -> Study:
    """Run what was planned to the end of its budget. Arguments and errors are those of `run`."""
    for line in remarks(plan):
        watcher(Remark(line))
    with offline_hub(plan.options.offline):
        if isinstance(executor, str):
            # Before the stores are open: a worker takes seconds to start, and does so meanwhile.
            executor = make_executor(executor, plan, address=ray_address, say=lambda text: watcher(Remark(text)))
        with closing(executor):
            watcher.preparing("opening the stores", 0, 0)
            stores = Stores.open(plan.home, watcher)
            outcome = run_study(plan, executor, stores, fresh=fresh, listener=watcher)
    return Study(outcome.view, outcome=outcome)


def remarks(plan: Plan) -> list[str]:
    """What a person should know before the run: where its settings came from, warnings, and backbones that are left out."""
    lines = [*plan.remarks, *plan.resolutions]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    if plan.out_of_reach:
        here = ", ".join(plan.backbones)
        lines.append(
            f"{plan.out_of_reach} cannot be reached: the search goes on with the weights that are here ({here}), "
            f"without {', '.join(plan.dropped)}"
        )
    elif plan.dropped:
        lines.append(f"left out, no weights on this machine: {', '.join(plan.dropped)}")
    return lines


class _Silent:
    """Shows nothing, or passes events to a function."""

    def __init__(self, listener: Listener = lambda notice: None) -> None:
        self._listener = listener

    def preparing(self, name: str, done: int, total: int) -> None:
        """Nothing to see."""

    def __call__(self, notice: Notice) -> None:
        self._listener(notice)


@contextmanager
def _watcher(progress: bool | Listener) -> Iterator[Watcher]:
    if progress is True:
        # A notebook would give each line a paragraph of its own.
        with Live(Console(file=sys.stdout, force_jupyter=False)) as live:
            yield live
    elif progress is False:
        yield _Silent()
    elif callable(progress):
        yield _Silent(progress)
    else:
        raise InputError(f"progress {progress!r}: give True, False or a function")
