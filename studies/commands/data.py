"""``study data``: check a data set, render one, fetch one."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from detectors.errors import InputError
from studies import api
from studies.commands import questions
from studies.commands.progress import counting_on
from studies.show import tables

if TYPE_CHECKING:
    from detectors.data.check import CheckReport
    from detectors.data.fetch import Source
    from studies.api.outlook import Outlook

PLAIN_SECONDS = 10.0
"""At most one line of a step's progress in this time where the output is not a terminal."""
BAD_DATA = 2

app = typer.Typer(name="data", help="Data sets: check, render, fetch.", no_args_is_help=True, add_completion=False)


@app.command("check")
def check(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|NAME|FILE]", help="Your own images, or a study, whose data section says which images."
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a data set of MVTec AD's layout.")] = None,
    category: Annotated[str | None, typer.Option(help="One product of it; default all.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set: mvtec, rendered or your own.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Your own images: a folder with good/, optional defects and masks.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Read every image and mask and tell what is wrong; exit code 2 where a study would fail."""
    console = tables.console(stderr=json_output)
    with counting_on(console) as progress:
        found = api.foresee_images(images, study=name, root=root, category=category, dataset=dataset, progress=progress)
    ok = all(report.ok and outlook is not None and not outlook.problem for report, outlook in found)
    if json_output:
        reports = [
            report.to_json() | {"outlook": outlook.to_json() if outlook is not None else None}
            for report, outlook in found
        ]
        typer.echo(json.dumps({"ok": ok, "reports": reports}, indent=1))
    else:
        for report, outlook in found:
            for part in (*_report_parts(report), *_outlook_parts(outlook)):
                console.print(part)
    if not ok:
        raise typer.Exit(BAD_DATA)


@app.command("render")
def render(
    out: Annotated[Path | None, typer.Option(help="Where they go; default a folder in STUDY_HOME.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other screws.")] = 0,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 320,
    train: Annotated[int, typer.Option(help="Good images to train on.")] = 80,
    test_good: Annotated[int, typer.Option(help="Good images to test on.")] = 30,
    per_defect: Annotated[int, typer.Option(help="Images of each of the five types of defect.")] = 10,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Draw screws with and without defects: a data set for trying things out, with no download."""
    console = tables.console(stderr=json_output)
    with counting_on(console) as progress:
        drawn = api.render_images(
            out,
            seed=seed,
            size=size,
            train=train,
            test_good=test_good,
            per_defect=per_defect,
            progress=partial(progress, "rendering"),
        )
    command = api.run_command(drawn)
    if json_output:
        row = {"root": str(drawn.root), "category": drawn.folder.name, "pictures": drawn.images, "run": command}
        typer.echo(json.dumps(row, indent=1))
        return
    console.print(f"{drawn.images} images in [cyan]{drawn.folder}[/]", highlight=False)
    console.print("a study on them:", highlight=False)
    console.print(command, style="cyan", markup=False, highlight=False, soft_wrap=True)


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="mvtec|visa", help="Which data set.")],
    root: Annotated[Path | None, typer.Option(help="Where it goes; default where studies look for it.")] = None,
    archive: Annotated[
        Path | None, typer.Option(help="An archive that is here already, in place of a download.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(envvar="STUDY_DATA_URL", help="Another address of the same archive.")
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the data set's licence without being asked.")
    ] = False,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Keep the downloaded archive.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Bring a public data set here: its licence first, its hash verified, resumed where it was stopped."""
    source = api.data_source(name)
    default = api.default_root(source)
    destination = (root or default).expanduser().absolute()
    console = tables.console(stderr=json_output)
    was_asked = False

    def accept(offered: Source) -> bool:
        nonlocal was_asked
        was_asked = True
        _print_terms(offered, destination, console, archive=archive, url=url)
        return _accepted(offered, accept_license)

    with _Transfer(console) as transfer:
        api.fetch_images(
            source,
            destination,
            archive=archive.expanduser() if archive else None,
            url=url,
            accept_licence=accept,
            progress=transfer,
            keep_archive=keep_archive,
        )
    if json_output:
        typer.echo(json.dumps({"dataset": source.name, "root": str(destination), "fetched": was_asked}, indent=1))
        return
    there = "is in" if was_asked else "was already in"
    console.print(f"{source.title} {there} [cyan]{destination}[/]", highlight=False, soft_wrap=True)
    if source.name != "mvtec":
        return
    if destination != default.expanduser().absolute():
        hint = f"studies find it with: export MVTEC_AD_ROOT={shlex.quote(str(destination))}"
        console.print(hint, markup=False, highlight=False, soft_wrap=True)
    console.print("now: study run padim_screw", markup=False, highlight=False)


# --- check ------------------------------------------------------------------------------------------------------------


def _report_parts(report: CheckReport) -> Iterator[RenderableType]:
    yield Text.assemble((f"{report.dataset}/{report.category}", "bold"), f" in {report.root}")
    kinds = list(dict.fromkeys(kind for types in report.counts.values() for kind in types))
    rows = [
        (part, *(types.get(kind, 0) for kind in kinds), sum(types.values())) for part, types in report.counts.items()
    ]
    yield tables.table(("set", *kinds, "all"), rows)
    defective = sum(count for kind, count in report.counts.get("test", {}).items() if kind != "good")
    facts = [
        ("masks", f"{report.masks} of {defective} defective images"),
        ("width x height", ", ".join(f"{size} ({count})" for size, count in report.sizes.items()) or None),
        ("modes", ", ".join(f"{mode} ({count})" for mode, count in report.modes.items()) or None),
    ]
    yield tables.table(("images", ""), facts)
    if report.problems:
        problems = [(problem.severity, problem.subject, problem.message) for problem in report.problems]
        yield tables.table(("", "where", "what"), problems)
    errors, warnings = len(report.errors), len(report.warnings)
    if errors:
        yield Text(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}: mend the errors first", "bold red")
    elif warnings:
        yield Text(f"usable, with {_count(warnings, 'warning')}", "yellow")
    else:
        yield Text("no problems", "green")


def _outlook_parts(outlook: Outlook | None) -> Iterator[RenderableType]:
    """What a study would make of the images, and the next command."""
    if outlook is None:
        return
    for line in outlook.lines():
        yield Text(line, "bold red" if outlook.problem else "")
    if not outlook.problem:
        yield Text.assemble("next: ", (outlook.command, "cyan"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# --- fetch ------------------------------------------------------------------------------------------------------------


def _print_terms(source: Source, destination: Path, console: Console, *, archive: Path | None, url: str | None) -> None:
    origin = str(archive) if archive else _without_secrets(url or source.url or "")
    facts = [
        ("licence", source.licence),
        ("in short", source.licence_text),
        ("in full", source.licence_url),
        ("please cite", source.citation),
        ("from", origin),
        ("size", f"{_gb(source.size_bytes)} archive, {_gb(source.extracted_bytes)} of images"),
        ("goes to", str(destination)),
    ]
    console.print(tables.table((source.title, ""), facts))


def _accepted(source: Source, accepted: bool) -> bool:
    if accepted:
        return True
    if not questions.somebody_is_there():
        raise InputError(
            f"{source.title}: its licence {source.licence} has to be accepted and nobody is there to ask; "
            f"read it at {source.licence_url} and give --accept-license"
        )
    return questions.confirm(f"Do you accept the licence {source.licence}?")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def _without_secrets(url: str) -> str:
    """The address without user, password and query, which may hold a token."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


class _Transfer:
    """Progress of a fetch, a bar for each step; plain lines now and then where the output is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told = 0.0

    def __enter__(self) -> _Transfer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        first = step not in self._tasks
        if first:
            # Not before the question about the licence, which the display would draw over.
            self._progress.start()
            self._tasks[step] = self._progress.add_task(step, total=total or None)
        self._progress.update(self._tasks[step], completed=done, total=total or None)
        now = time.monotonic()
        if not self._console.is_terminal and (first or now - self._told > PLAIN_SECONDS):
            self._told = now
            of = f" of {_gb(total)}" if total else ""
            self._console.print(f"{step}: {_gb(done)}{of}", markup=False, highlight=False)
