"""The executors of this machine, as their entry points offer them."""

from __future__ import annotations

import torch

from detectors.errors import InputError
from studies.executors.base import Executor, ExecutorOptions, ExecutorPlugin
from studies.executors.inline import InlineExecutor
from studies.executors.local import LocalExecutor
from studies.executors.slots import available_cores, plan_slots, visible_gpus


def make_inline(options: ExecutorOptions) -> Executor:
    """Jobs in this process. Raises `InputError` where several are asked for at a time."""
    if options.jobs not in (1, "auto"):
        raise InputError("the inline executor runs one trial at a time in this process; leave out --jobs")
    return InlineExecutor()


def make_local(options: ExecutorOptions) -> Executor:
    """Jobs in processes of this machine. Raises `InputError` where it does not hold so many."""
    slots = plan_slots(
        options.jobs,
        device=options.device,
        gpus_per_trial=options.gpus_per_trial,
        cores=available_cores(),
        gpu_ids=visible_gpus(torch.cuda.device_count()),
    )
    # A fresh process gives all of a GPU's memory back; on a CPU there is nothing to give back.
    reuse = all(slot.device == "cpu" for slot in slots)
    return LocalExecutor(slots=slots, reuse=reuse, trial_timeout=options.trial_timeout, ready=True)


INLINE = ExecutorPlugin(make_inline)
LOCAL = ExecutorPlugin(make_local)
