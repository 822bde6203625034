"""A reconstruction detector from elsewhere: its own network, and the default loss or one of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from detectors.base import FitContext, Parameter
from detectors.features import Features
from detectors.heads.reconstruction.convolutional import Plan
from detectors.heads.reconstruction.head import Reconstruction, common
from detectors.heads.reconstruction.network import Network
from detectors.heads.reconstruction.training import NetworkTraining, ResidualTraining
from detectors.training import Training
from tests.helpers.trained_heads import same, weights_of

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 4}


class ScalingNetwork(Network):
    """Gives every channel back, multiplied by a factor that is learned; 0 at the start."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, residual="l2")
        self.factor = nn.Parameter(torch.zeros(plan.channels, 1, 1))

    def reconstruct(self, values: Tensor) -> Tensor:
        return self.factor * values


class Scaling(Reconstruction):
    """A third-party head that says nothing about its training."""

    name: ClassVar[str] = "scaling"
    searchable: ClassVar[tuple[Parameter, ...]] = common()

    def make_network(self, plan: Plan, generator: torch.Generator) -> ScalingNetwork:
        return ScalingNetwork(plan)


class WeightedTraining(NetworkTraining):
    """The sum of absolute differences, times a weight."""

    def __init__(self, *args: Any, weight: float, **schedule: Any) -> None:
        super().__init__(*args, **schedule)
        self.weight = weight

    def loss_of(self, images: Tensor, first: int) -> Tensor:
        values = self.values_of(images)
        return self.weight * (values - self.model.reconstruct(values)).abs().mean()


class Weighted(Scaling):
    """A third-party head with a loss of its own."""

    name: ClassVar[str] = "weighted"
    searchable: ClassVar[tuple[Parameter, ...]] = (*common(), Parameter("weight", "float", 1.0, "of the loss", 0.0))

    def make_training(self, network: Network, features: Features, context: FitContext) -> Training:
        weight = float(self.settings["weight"])
        return WeightedTraining(self, network, features, context, weight=weight, **self.schedule)


def make_features(images: int = 8, *, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(maps={4: torch.randn(30, 3, images, generator=generator)}, grids={4: (5, 6)}, image_size=(20, 24))


@pytest.mark.parametrize(
    ("head_type", "training"), [(Scaling, ResidualTraining), (Weighted, WeightedTraining)], ids=["default", "own"]
)
def test_the_head_says_how_it_is_trained(monkeypatch, head_type, training):
    used: list[type] = []
    train_head = Training.train_head

    def watched(self: Training) -> dict[str, float]:
        used.append(type(self))
        return train_head(self)

    monkeypatch.setattr(Training, "train_head", watched)
    head_type(**SMALL).fit(make_features(), FitContext())
    assert used == [training]


def test_the_loss_that_is_minimised_is_the_heads_own():
    squares = Scaling(**SMALL, learning_rate=1e-6).fit(make_features(), FitContext())
    absolute = Weighted(**SMALL, learning_rate=1e-6, weight=3.0).fit(make_features(), FitContext())
    # The factor hardly moves from 0, so that the losses are the mean square and the mean absolute value of the input.
    standardised = make_features().joined()
    standardised = absolute.network.scale(standardised)
    assert squares.diagnostics["train_loss"] == pytest.approx(float(standardised.square().mean()), rel=1e-3)
    assert absolute.diagnostics["train_loss"] == pytest.approx(3 * float(standardised.abs().mean()), rel=1e-3)


def test_it_scores_and_is_restored_as_any_other_head():
    head = Weighted(**SMALL, weight=2.0).fit(make_features(), FitContext(seed=3))
    maps, scores = head.score(make_features(3, seed=1))
    assert maps.shape == (3, 5, 6)
    assert scores is None
    again = Weighted(**head.settings)
    again.import_tensors(weights_of(head))
    assert same(weights_of(again), weights_of(head))
    assert torch.equal(again.score(make_features(3, seed=1))[0], maps)
