"""Jobs for workers, from a trial's setting and the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.executors.base import Executor
from studies.executors.slots import available_cores
from studies.file.encoding import Setting
from studies.file.keys import DETECTOR_KEY
from studies.search.opened import OpenStudy
from studies.search.samplers import derive_seed
from studies.worker.jobs import Job, Probe, Task


class JobFactory:
    """Makes the jobs of one study for one executor, among whose slots this machine's cores are divided."""

    def __init__(self, opened: OpenStudy, executor: Executor) -> None:
        self._opened, self._executor = opened, executor

    def make(
        self,
        task: Task,
        number: int,
        params: Mapping[str, Any],
        *,
        attempt: int,
        memory_halvings: int = 0,
        replicate: int = 0,
        probe: Probe | None = None,
        keep_above: float | None = None,
    ) -> Job:
        """A job.

        Args:
            params: the full setting.
            keep_above: see `Job.keep_above`.
            replicate: 0 for the study's own seeds; every other number draws others for all that is random.
            probe: of task ``probe``, whose seeds follow from its resample.
        """
        plan, view, space = self._opened.plan, self._opened.view, self._opened.space
        seed, weights_dir = self._opened.config.sampler.seed, plan.options.weights_dir
        folders = {
            "trial": view.trial_folder(number),
            "final": view.final_folder(number),
            "replicate": view.replicate_folder(number, replicate),
            "speed": view.speed_folder(number),
        }
        purpose, structural_seed = "trial", seed
        if replicate:
            purpose, structural_seed = f"replicate {replicate}", derive_seed(seed, "structure", replicate)
        if probe is not None:
            purpose = f"probe {probe.resample}"
            structural_seed = derive_seed(seed, "structure of probe", probe.resample)
            folders["probe"] = (
                view.advice_folder(probe.name) if probe.name else view.probe_folder(number, probe.resample)
            )
        config = self._opened.config
        if task not in ("trial", "probe"):
            config = config.model_copy(update={"threshold": view.threshold_section(number)})
        return Job(
            task=task,
            study_uid=view.header.uid,
            number=number,
            attempt=attempt,
            config=config.to_json(),
            params=self._complete(params),
            # A setting of advice or of a person may have layers beside those of the search.
            strides=_strides_of(params["layers"], space.strides(params["backbone"])),
            weights_sha256=plan.backbones[params["backbone"]].sha256,
            splits_digest=plan.images.digest,
            seed=derive_seed(seed, purpose, number),
            structural_seed=structural_seed,
            home=str(plan.home.root),
            folder=str(folders[task]),
            device=str(plan.device),
            threads=max(1, available_cores() // max(1, self._executor.slots)),
            weights_dir=str(weights_dir) if weights_dir else None,
            networks=plan.networks_of(params),
            memory_halvings=memory_halvings,
            probe=probe,
            keep_above=keep_above,
        )

    def _complete(self, params: Mapping[str, Any]) -> Setting:
        """A setting with the defaults of what its detector could not be told when an earlier version drew it."""
        config = self._opened.config
        head = config.head_class(str(params.get(DETECTOR_KEY) or config.detectors[0]))
        return {parameter.name: parameter.default for parameter in head.searchable} | dict(params)


def _strides_of(layers: Sequence[int], searched: Sequence[int]) -> tuple[int, ...]:
    """A trial's layers and those of the search that can be computed with them: strides or blocks, never both."""
    alike = [layer for layer in searched if (layer < 0) == (layers[0] < 0)]
    return tuple(sorted({*alike, *layers}))
