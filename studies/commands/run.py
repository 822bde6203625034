"""``study run``: plan, search, refit, score on test, save."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from studies.executors.base import Executor
    from studies.file.config import StudyConfig
    from studies.home import Home
    from studies.search.outcome import Outcome
    from studies.search.plan import Options, Plan
    from studies.show.event_lines import EventLines
    from studies.show.live import Live


def run(
    name: Annotated[
        str, typer.Argument(help="A study (padim_screw), a .yaml file, or with --images a detector (padim).")
    ],
    trials: Annotated[int | None, typer.Option(help="Finished trials in all, over every resumption.", min=1)] = None,
    timeout: Annotated[str | None, typer.Option(help="Time limit of this run, e.g. 90s, 30m, 2h.")] = None,
    jobs: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Trials at the same time; auto: one for each GPU or four cores."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study file.")
    ] = None,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="Try this setting first, e.g. n_features=100,layers=8+16."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Your own images: a folder with good/, optional defects and masks.")
    ] = None,
    study_name: Annotated[str | None, typer.Option("--name", help="Name of the study, with --images.")] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="On rendered screws with the bundled backbone; needs nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new study beside the one of this name.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no connection; leave out backbones without weights here.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and end.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (every GPU) or cuda:N.")] = "auto",
    executor: Annotated[
        str,
        typer.Option(
            metavar="local|ray|NAME", help="Processes of this machine, the nodes of a Ray cluster, or a plug-in."
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="auto, HOST:PORT or ray://HOST:PORT; without it Ray is started here."),
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Run trials in this process, for debuggers and profilers.")
    ] = False,
    weights_dir: Annotated[Path | None, typer.Option(help="Folder with <timm name>.safetensors or .pth.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing until the outcome.")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Print what happens as lines of JSON, for programs that watch.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Search for the best configuration; the same command goes on where it was stopped."""
    settings = list(overrides or [])
    if trials is not None:
        settings.append(f"budget.trials={trials}")
    if timeout is not None:
        settings.append(f"budget.timeout={timeout}")
    if offline or demo:
        # Read by the hub's client when it is imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
    from detectors.errors import InputError
    from studies.executors.catalog import executor_plugin
    from studies.home import Home
    from studies.search.plan import Options
    from studies.show import study_json, tables
    from studies.show.event_lines import EventLines
    from studies.show.live import Live

    if json_lines and (json_output or quiet or dry_run):
        raise InputError(
            "--json-lines goes with neither --json, --quiet nor --dry-run: it prints what happens, line by line"
        )
    if inline and (executor != "local" or jobs not in (None, "1", "auto")):
        raise InputError("--inline runs one trial at a time in this process; leave out --jobs and --executor")
    executor = "inline" if inline else executor
    plugin = executor_plugin(executor)
    if ray_address is not None and not plugin.takes_address:
        raise InputError(f"--ray-address goes with --executor ray, not with {executor}")
    remote = plugin.remote
    console = tables.console(stderr=json_output)
    config = _load_config(name, settings, images=images, study_name=study_name, demo=demo)
    home = Home.from_environment().prepare()
    options = Options(
        device=device,
        jobs=_jobs(jobs, remote=remote),
        offline=offline or demo,
        weights_dir=weights_dir,
        remote=remote,
        ideas=_ideas(enqueue, config),
    )
    with EventLines(typer.echo) if json_lines else Live(console, quiet=quiet) as live:
        plan = _plan(config, home, options, live)
        if dry_run:
            live.close()
            _print_plan(plan, console)
            return
        for line in _remarks(plan):
            live.say(line)
        make_executor = partial(_executor, name=executor, address=ray_address, say=live.say)
        outcome = _drive(plan, live, fresh=fresh, make_executor=make_executor)
    if json_lines:
        typer.echo(json.dumps({"event": "outcome", **json.loads(study_json.outcome_json(outcome))}))
    elif json_output:
        typer.echo(study_json.outcome_json(outcome))
    else:
        _print_outcome(outcome, console)


def _load_config(
    name: str, settings: list[str], *, images: Path | None, study_name: str | None, demo: bool
) -> StudyConfig:
    from detectors.errors import InputError
    from studies.file import library

    if images is None and study_name is not None:
        raise InputError("--name goes with --images; a study file has its own name")
    if images is not None:
        if demo:
            raise InputError("--demo renders its own images; leave out --demo or --images")
        folder = images.expanduser().absolute()
        own = study_name or re.sub(r"[^A-Za-z0-9.-]+", "_", f"{Path(name).stem}_{folder.name}")[:64]
        given = [f"data.root={_quoted(str(folder))}", "data.dataset=folder", f"name={_quoted(own)}"]
        return library.load(name, [*given, *settings])
    if demo:
        # The file's own search, cut to the bundled backbone and to minutes.
        from studies.file.demo import load_demo

        return load_demo(name, settings)
    return library.load(name, settings)


def _ideas(texts: list[str] | None, config: StudyConfig) -> tuple[dict[str, Any], ...]:
    from studies.file.overrides import parse_idea

    return tuple(parse_idea(text, config) for text in texts or [])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _plan(config: StudyConfig, home: Home, options: Options, live: Live | EventLines) -> Plan:
    from studies.search.plan import make_plan

    return make_plan(config, home, options, progress=live.preparing)


def _drive(plan: Plan, live: Live | EventLines, *, fresh: bool, make_executor: Callable[[Plan], Executor]) -> Outcome:
    from studies.search.run import run_study
    from studies.search.stores import Stores

    live.preparing("opening the stores", 0, 0)
    stores = Stores.open(plan.home, live)
    return run_study(plan, make_executor(plan), stores, fresh=fresh, listener=live)


def _jobs(text: str | None, *, remote: bool) -> int | Literal["auto"]:
    from detectors.errors import InputError

    if text is None:
        return "auto" if remote else 1
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--jobs {text}: give a number from 1 on, or auto")
    return int(text)


def _executor(plan: Plan, *, name: str, address: str | None, say: Callable[[str], None]) -> Executor:
    from studies.executors.base import ExecutorOptions
    from studies.executors.catalog import make_executor

    execution, options = plan.config.execution, plan.options
    return make_executor(
        name,
        ExecutorOptions(
            jobs=options.jobs,
            device=options.device,
            gpus_per_trial=execution.gpus_per_trial,
            trial_timeout=execution.trial_timeout,
            address=address,
            say=say,
        ),
    )


def _remarks(plan: Plan) -> list[str]:
    lines = [f"warning: {warning}" for warning in plan.warnings]
    if plan.dropped:
        lines.append(f"left out, no weights on this machine: {', '.join(plan.dropped)}")
    return lines


def _print_plan(plan: Plan, console: Console) -> None:
    from studies.show import study_tables

    for line in _remarks(plan):
        console.print(line, style="yellow", markup=False)
    for table in study_tables.plan_tables(plan):
        console.print(table)


def _print_outcome(outcome: Outcome, console: Console) -> None:
    from studies.show import study_tables

    for part in study_tables.outcome_parts(outcome):
        console.print(part)
