"""What heads with one normalizing flow per stride share: CFlow-AD and FastFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, cast

from torch import Tensor, nn

from detectors.base import Head, ParameterValue, with_prefix
from detectors.errors import InputError

FlowT = TypeVar("FlowT", bound=nn.Module)


class FlowHead(Head, Generic[FlowT]):
    """After `fit`: `flows`, {stride: flow}, and the same as one module, `flow_modules`, which training goes through."""

    def __init__(self, **settings: ParameterValue) -> None:
        super().__init__(**settings)
        self.flow_modules = nn.ModuleDict()

    @property
    def flows(self) -> dict[int, FlowT]:
        """By stride, ascending; empty before `fit`."""
        return {int(stride): cast("FlowT", flow) for stride, flow in self.flow_modules.items()}

    def check_fitted(self) -> None:
        """Raise `RuntimeError` before `fit`."""
        if not self.flow_modules:
            raise RuntimeError(f"{self.title} is not fitted yet")

    def make_flows(self, channels: Mapping[int, int], make: Callable[[int, int], FlowT]) -> None:
        """Fresh flows, the finest stride's first, by ``make(stride, C)``.

        Raises:
            InputError: a stride has one channel only, of which no coupling can be made.
        """
        self.flow_modules = nn.ModuleDict()
        for stride in sorted(channels):
            if channels[stride] < 2:
                raise InputError(
                    f"{self.name}: layer {stride} has a single channel, and a coupling needs two; leave it out"
                )
            self.flow_modules[str(stride)] = make(stride, channels[stride])

    def flow_tensors(self) -> dict[str, Tensor]:
        """The flows' state, each under ``<stride>.``."""
        self.check_fitted()
        return {
            f"{stride}.{name}": value
            for stride, flow in self.flows.items()
            for name, value in flow.state_dict().items()
        }

    def load_flows(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such tensors in place. Raises `ValueError` where they do not fit the flows."""
        for stride, flow in self.flows.items():
            try:
                flow.load_state_dict(with_prefix(tensors, f"{stride}."))
            except RuntimeError as error:
                raise ValueError(f"{self.title} tensors of stride {stride} do not fit the settings: {error}") from error
