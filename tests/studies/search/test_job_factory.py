"""Jobs are complete and can be computed, whatever version drew their settings."""

from __future__ import annotations

from typing import Any

import pytest

from studies.search.job_factory import _strides_of
from studies.search.view import TrialView
from tests.helpers.bench import Bench, ScriptedExecutor


@pytest.mark.parametrize(
    ("layers", "searched", "strides"),
    [
        ([8], [8, 16, 32], (8, 16, 32)),
        ([4], [8, 16], (4, 8, 16)),
        ([-1], [-4, -1, 16], (-4, -1)),
        ([16], [-4, -1, 16], (16,)),
        ([-2, -1], [], (-2, -1)),
    ],
)
def test_strides_and_blocks_are_never_computed_together(layers, searched, strides):
    assert _strides_of(layers, searched) == strides


def test_a_setting_of_an_earlier_version_is_completed_with_defaults(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a detector could not be told when a trial was drawn has no place in its stored setting."""
    outcome = bench.run(budget={"trials": 2})
    assert outcome.selected is not None
    drawn, new = TrialView.params.fget, {"normalize", "top_share"}  # type: ignore[attr-defined]
    assert new <= bench.view().trials()[0].params.keys()

    def of_then(view: TrialView) -> dict[str, Any]:
        return {name: value for name, value in drawn(view).items() if name not in new}

    monkeypatch.setattr(TrialView, "params", property(of_then))
    executor = ScriptedExecutor()
    bench.driver(executor, budget={"trials": 2}).refit(1 - outcome.selected.number)
    (job,) = executor.finals
    assert (job.params["normalize"], job.params["top_share"]) == ("none", 0.0)
