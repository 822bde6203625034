"""The executor of a Ray cluster, as its entry point offers it."""

from __future__ import annotations

from studies.executors.base import Executor, ExecutorOptions, ExecutorPlugin
from studies.executors.ray.executor import RayExecutor


def make_ray(options: ExecutorOptions) -> Executor:
    """Jobs on the nodes of a cluster. Raises `InputError` as `RayExecutor` does."""
    return RayExecutor(
        address=options.address,
        jobs=options.jobs,
        device=options.device,
        gpus_per_trial=options.gpus_per_trial,
        trial_timeout=options.trial_timeout,
        say=options.say,
    )


RAY = ExecutorPlugin(make_ray, remote=True, takes_address=True)
