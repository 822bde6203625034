"""What the search brought: the first setting beside the selected one."""

from __future__ import annotations

from studies.search.gain import gain
from studies.search.operating_point import points_on_test
from studies.show import study_json, study_tables, tables
from studies.worker.jobs import Job
from tests.helpers.bench import Bench, ScriptedExecutor

RECALLS = (0.5, 1.0, 0.0)


def by_number(job: Job) -> dict[str, float]:
    """The second trial is the best of three."""
    value = (0.8, 0.95, 0.7)[job.number]
    return {
        "val/image_auroc": value,
        "val/image_recall": RECALLS[job.number],
        "val/false_alarm_rate": 0.0,
        "fps": 50.0,
    }


def test_the_first_setting_is_put_beside_the_searchs(bench: Bench) -> None:
    outcome = bench.run(ScriptedExecutor(by_number), budget={"trials": 3})
    found = gain(outcome.view)
    assert found is not None
    assert (found.first.trial, found.selected.trial, found.tried, found.painted) == (0, 1, 3, False)
    assert found.line == (
        "on validation, the first setting (trial 0) finds 3 of 6 defects at 0 false alarms in 6 good images, image AUROC 0.800; "
        "the search's (trial 1) finds 6 of 6 defects at 0 false alarms in 6 good images, image AUROC 0.950"
    )
    console = tables.console()
    with console.capture() as printed:
        for part in study_tables.selected_parts(outcome.view):
            console.print(part, soft_wrap=True)
    assert found.line in printed.get()
    assert study_json.study_json(outcome.view)["gain"]["text"] == found.line
    assert found.line[2:] in bench.parent().data.tags["mlflow.note.content"]
    # Test was scored for the selected trial alone.
    assert outcome.selected is not None
    assert [bool(points_on_test(outcome.view, trial)) for trial in outcome.view.trials()] == [False, True, False]


def test_a_first_setting_that_was_not_beaten_is_said_to_be_the_best(bench: Bench) -> None:
    outcome = bench.run(
        ScriptedExecutor(lambda job: by_number(job) | {"val/image_auroc": 0.9 - job.number / 10}), budget={"trials": 3}
    )
    found = gain(outcome.view)
    assert found is not None
    assert found.line.startswith(
        "on validation, the first setting (trial 0) stayed the best of 3: it finds 3 of 6 defects"
    )


def test_figures_that_are_not_there_are_left_out(bench: Bench) -> None:
    outcome = bench.run(budget={"trials": 2})
    found = gain(outcome.view)
    assert found is not None
    assert "finds" not in found.line
    assert "image AUROC" in found.line
    assert gain(bench.run(budget={"trials": 1}, fresh=True).view) is None
