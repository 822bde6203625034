"""``study run``: plan, search, refit, score on test, save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from detectors.errors import InputError
from studies import api
from studies.commands.run_words import missing_folder, understood
from studies.show import tables
from studies.show.event_lines import EventLines
from studies.show.live import Live


class Command(TyperCommand):
    """``study run``, which says what to do about ``--images`` without a folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[-1] == "--images":
            raise InputError(missing_folder([word for word in args if not word.startswith("-")]))
        return super().parse_args(ctx, args)


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|DIR",
            help="A folder of your own images; a study file by name or path; a study of `study list`; a detector and a folder.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Finished trials in all, over every resumption; later runs keep to it.", min=1),
    ] = None,
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
    warm_from: Annotated[
        list[str] | None,
        typer.Option(metavar="STUDY[,STUDY]", help="Try the best settings of these studies of `study list` first."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Your own images: a folder with good/, optional defects and masks."),
    ] = None,
    study_name: Annotated[
        str | None, typer.Option("--name", help="Name of the study, with a folder of images.")
    ] = None,
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
    if json_lines and (json_output or quiet or dry_run):
        raise InputError(
            "--json-lines goes with neither --json, --quiet nor --dry-run: it prints what happens, line by line"
        )
    if inline and (executor != "local" or jobs not in (None, "1", "auto")):
        raise InputError("--inline runs one trial at a time in this process; leave out --jobs and --executor")
    executor = "inline" if inline else executor
    name, folder = understood(words or (), images, demo=demo)
    console = tables.console(stderr=json_output)
    with EventLines(typer.echo) if json_lines else Live(console, quiet=quiet) as watcher:
        plan = api.plan_study(
            name,
            settings=overrides or [],
            trials=trials,
            timeout=timeout,
            images=folder,
            name=study_name,
            demo=demo,
            fresh=fresh,
            offline=offline,
            enqueue=enqueue or [],
            warm_from=warm_from or [],
            jobs=_jobs(jobs),
            device=device,
            executor=executor,
            ray_address=ray_address,
            weights_dir=weights_dir,
            preparing=watcher.preparing,
        )
        if dry_run:
            watcher.close()
            for line in api.remarks(plan):
                console.print(line, style="yellow", markup=False)
            for table in api.plan_tables(plan):
                console.print(table)
            return
        outcome = api.run_plan(plan, watcher, fresh=fresh, executor=executor, ray_address=ray_address).outcome
    assert outcome is not None
    if json_lines:
        typer.echo(json.dumps({"event": "outcome", **json.loads(api.outcome_json(outcome))}))
    elif json_output:
        typer.echo(api.outcome_json(outcome))
    else:
        for part in api.outcome_parts(outcome):
            console.print(part)


def _jobs(text: str | None) -> int | Literal["auto"] | None:
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--jobs {text}: give a number from 1 on, or auto")
    return int(text)
