"""Device slots: GPUs are names here, nothing is computed on them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.errors import InputError
from studies.executors.slots import Slot, available_cores, plan_slots, visible_gpus


def gpus_of(slots: list[Slot]) -> list[str | None]:
    return [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in slots]


@pytest.mark.parametrize(
    ("jobs", "gpus_per_trial", "wanted"),
    [
        ("auto", 1.0, ["0", "1", "2"]),
        (2, 1.0, ["0", "1"]),
        ("auto", 0.5, ["0", "1", "2", "0", "1", "2"]),
        (4, 0.5, ["0", "1", "2", "0"]),  # every GPU has one before any has two
        ("auto", 0.3, ["0", "1", "2"] * 3),
        ("auto", 0.1, ["0", "1", "2"] * 10),
        ("auto", 2.0, ["0,1"]),
        ("auto", 3.0, ["0,1,2"]),
    ],
)
def test_gpus_are_divided(jobs, gpus_per_trial, wanted):
    slots = plan_slots(jobs, gpus_per_trial=gpus_per_trial, cores=16, gpu_ids=["0", "1", "2"])
    assert gpus_of(slots) == wanted
    # CUDA counts from 0 among those that a process sees.
    assert {slot.device for slot in slots} == {"cuda:0"}
    assert {slot.threads for slot in slots} == {max(1, 16 // len(slots))}


def test_one_gpu_is_chosen_by_its_number():
    ids = ["GPU-a", "GPU-b"]
    assert gpus_of(plan_slots("auto", device="cuda:1", cores=4, gpu_ids=ids)) == ["GPU-b"]
    assert gpus_of(plan_slots("auto", device="cuda", cores=4, gpu_ids=ids)) == ids


@pytest.mark.parametrize(
    ("jobs", "cores", "count", "threads"),
    [
        ("auto", 1, 1, 1),
        ("auto", 2, 1, 2),
        ("auto", 4, 1, 4),
        ("auto", 5, 2, 2),
        ("auto", 8, 2, 4),
        ("auto", 64, 16, 4),
        (1, 8, 1, 8),
        (3, 8, 3, 2),
        (4, 2, 4, 1),
    ],
)
def test_cores_are_divided(jobs, cores, count, threads):
    slots = plan_slots(jobs, device="cpu", cores=cores, gpu_ids=["0"])
    assert slots == [Slot({"OMP_NUM_THREADS": str(threads)}, "cpu", threads)] * count
    assert slots == plan_slots(jobs, device="auto", cores=cores)


@given(
    jobs=st.one_of(st.just("auto"), st.integers(1, 40)),
    gpus_per_trial=st.one_of(st.floats(0.05, 1.0), st.integers(1, 8).map(float)),
    cores=st.integers(1, 128),
    gpus=st.integers(1, 9),
)
def test_no_gpu_is_given_away_twice(jobs, gpus_per_trial, cores, gpus):
    try:
        slots = plan_slots(
            jobs, gpus_per_trial=gpus_per_trial, cores=cores, gpu_ids=[str(index) for index in range(gpus)]
        )
    except InputError:
        return
    given_away = [name for gpus in gpus_of(slots) for name in (gpus or "").split(",")]
    share = min(1.0, gpus_per_trial)
    assert all(given_away.count(name) * share <= 1 + 1e-5 for name in given_away)
    assert sum(slot.threads or 0 for slot in slots) <= max(cores, len(slots))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jobs": 0}, "jobs: 0 is too few"),
        ({"jobs": 3}, "jobs: 3 trials at the same time do not fit: with 1 GPUs for each there is room for 2"),
        ({"jobs": 5, "gpus_per_trial": 0.5}, "with 0.5 GPUs for each there is room for 4"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial: 1.5 is neither a whole number nor a part of 1"),
        ({"gpus_per_trial": 0.0}, "gpus_per_trial: 0 is neither"),
        ({"gpus_per_trial": float("nan")}, "gpus_per_trial: nan is neither"),
        ({"gpus_per_trial": 4.0}, "there are only 2 GPUs"),
        ({"device": "cuda:2"}, "'cuda:2': this machine has 2 CUDA devices"),
        ({"device": "cuda:x"}, "give auto, cpu, cuda or cuda:N"),
        ({"device": "tpu"}, "give auto, cpu, cuda or cuda:N"),
        ({"device": "cuda", "gpu_ids": []}, "'cuda': this machine has 0 CUDA devices"),
    ],
)
def test_what_does_not_fit_is_told(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        plan_slots(**{"jobs": "auto", "cores": 4, "gpu_ids": ["0", "1"]} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "count", "wanted"),
    [
        (None, 2, ["0", "1"]),
        ("3,5", 2, ["3", "5"]),
        (" 3 , 5 ,", 2, ["3", "5"]),
        ("3,99", 1, ["3"]),  # CUDA sees those before the first that is not there
        ("MIG-1,GPU-2", 2, ["MIG-1", "GPU-2"]),
        ("", 0, []),
    ],
)
def test_gpus_keep_their_names(named, count, wanted):
    assert visible_gpus(count, {} if named is None else {"CUDA_VISIBLE_DEVICES": named}) == wanted


def test_a_containers_share_of_the_cores_counts(tmp_path: Path):
    cores = available_cores(tmp_path / "absent")
    assert cores >= 1
    for text, wanted in (("50000 100000\n", 1), ("max 100000\n", cores), ("100000000 100000\n", cores), ("", cores)):
        (tmp_path / "cpu.max").write_text(text)
        assert available_cores(tmp_path / "cpu.max") == wanted
