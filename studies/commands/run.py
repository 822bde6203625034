"""``study run``: plan, search, refit, score on test, save."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from studies.config import StudyConfig
    from studies.driver import Outcome
    from studies.executors.base import Executor
    from studies.home import Home
    from studies.live import Live
    from studies.plan import Options, Plan


def run(
    name: Annotated[
        str, typer.Argument(help="A study (padim_screw), a .yaml file, or with --images a detector (padim).")
    ],
    trials: Annotated[int | None, typer.Option(help="Finished trials in all, over every resumption.", min=1)] = None,
    timeout: Annotated[str | None, typer.Option(help="Time limit of this run, e.g. 90s, 30m, 2h.")] = None,
    jobs: Annotated[int, typer.Option(help="Trials at the same time.", min=1)] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study file.")
    ] = None,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="Try this setting first, e.g. n_features=100,layers=8+16."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Your own pictures: a folder with good/, optional defects and masks.")
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
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    inline: Annotated[
        bool, typer.Option("--inline", help="Run trials in this process, for debuggers and profilers.")
    ] = False,
    weights_dir: Annotated[Path | None, typer.Option(help="Folder with <timm name>.safetensors or .pth.")] = None,
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
    from studies import tables
    from studies.home import Home
    from studies.live import Live
    from studies.plan import Options

    console = tables.console(stderr=json_output)
    config = _load_config(name, settings, images=images, study_name=study_name, demo=demo)
    home = Home.from_environment().prepare()
    options = Options(
        device=device, jobs=jobs, offline=offline or demo, weights_dir=weights_dir, ideas=_ideas(enqueue, config)
    )
    with Live(console) as live:
        plan = _plan(config, home, options, live)
        if dry_run:
            live.close()
            _print_plan(plan, console)
            return
        for line in _remarks(plan):
            live.say(line)
        outcome = _drive(plan, live, fresh=fresh, inline=inline)
    if json_output:
        typer.echo(tables.outcome_json(outcome))
    else:
        _print_outcome(outcome, console)


def _load_config(
    name: str, settings: list[str], *, images: Path | None, study_name: str | None, demo: bool
) -> StudyConfig:
    from detectors.errors import InputError
    from studies import config as study_config

    if images is None and study_name is not None:
        raise InputError("--name goes with --images; a study file has its own name")
    if images is not None:
        if demo:
            raise InputError("--demo renders its own pictures; leave out --demo or --images")
        folder = images.expanduser().absolute()
        own = study_name or re.sub(r"[^A-Za-z0-9.-]+", "_", f"{Path(name).stem}_{folder.name}")[:64]
        given = [f"data.root={_quoted(str(folder))}", "data.dataset=folder", f"name={_quoted(own)}"]
        return study_config.load(name, [*given, *settings])
    if demo:
        # The file's own search, cut to the bundled backbone and to minutes.
        return study_config.load_demo(name, settings)
    return study_config.load(name, settings)


def _ideas(texts: list[str] | None, config: StudyConfig) -> tuple[dict[str, Any], ...]:
    from studies.config import parse_idea

    return tuple(parse_idea(text, config) for text in texts or [])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _plan(config: StudyConfig, home: Home, options: Options, live: Live) -> Plan:
    from studies.plan import make_plan

    return make_plan(config, home, options, progress=live.preparing)


def _drive(plan: Plan, live: Live, *, fresh: bool, inline: bool) -> Outcome:
    from studies.driver import Driver
    from studies.storage import open_storage
    from tracking.projection import Projection

    live.preparing("opening the stores", 0, 0)
    home = plan.home
    storage = open_storage(home)
    projection = Projection(home.tracking_uri, artifact_root=home.mlflow_artifacts, lock_folder=home.locks)
    executor = _executor(plan, inline=inline)
    return Driver(plan, executor, storage=storage, projection=projection, listener=live).run(fresh=fresh)


def _executor(plan: Plan, *, inline: bool) -> Executor:
    from detectors.errors import InputError
    from studies.executors.inline import InlineExecutor
    from studies.executors.local import LocalExecutor

    if inline:
        if plan.options.jobs > 1:
            raise InputError("--inline runs one trial at a time; leave out --jobs")
        return InlineExecutor()
    # A fresh process gives all of a GPU's memory back; on a CPU there is nothing to give back.
    return LocalExecutor(
        slots=plan.options.jobs,
        reuse=plan.device.type == "cpu",
        trial_timeout=plan.config.execution.trial_timeout,
    )


def _remarks(plan: Plan) -> list[str]:
    lines = [f"warning: {warning}" for warning in plan.warnings]
    if plan.dropped:
        lines.append(f"left out, no weights on this machine: {', '.join(plan.dropped)}")
    return lines


def _print_plan(plan: Plan, console: Console) -> None:
    from studies import tables

    for line in _remarks(plan):
        console.print(line, style="yellow", markup=False)
    for table in tables.plan_tables(plan):
        console.print(table)


def _print_outcome(outcome: Outcome, console: Console) -> None:
    from studies import tables

    for part in tables.outcome_parts(outcome):
        console.print(part)
