"""GANomaly (Akcay, Atapour-Abarghouei & Breckon, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training",
arXiv 1805.06725).

Notation: B images, C channels, h x w positions, d dimensions of the code.

A generator encodes, decodes, and encodes again: z = E1(x), y = D1(z), u = E2(y). A discriminator tells x from y; f is what its
last convolution sees. The generator minimises (equations 1 to 4)

    w_adv mean (f(x) - f(y))^2 + w_con mean |x - y| + w_lat mean (z - u)^2,    w = 1, 50, 1,

the discriminator the binary cross-entropy of real x and made y. The map is (x - y)^2 averaged over the channels. The image score
is its highest value after smoothing or, with `score: latent`, the paper's mean |z - u| (equation 5). The former is the default:
on images of screws the latter takes the damaged ones for the better ones.

Departures from the paper: scores are not scaled by the smallest and largest score of the test images (equation 6), for a
product sees one image at a time; groups of channels are normalised in place of batches; weights are drawn as He et al. do;
gradients are clipped, and the learning rate rises and falls, as in all training here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch

from detectors.base import FitContext, Parameter
from detectors.features import Features
from detectors.heads.ganomaly.network import GanomalyNetwork
from detectors.heads.reconstruction.convolutional import Plan
from detectors.heads.reconstruction.head import Reconstruction, common
from detectors.heads.reconstruction.network import Network

if TYPE_CHECKING:
    from detectors.training import Training  # Lightning takes seconds to import


class Ganomaly(Reconstruction):
    """GANomaly head."""

    name: ClassVar[str] = "ganomaly"
    title: ClassVar[str] = "GANomaly"
    searchable: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "score",
            "choice",
            "residual",
            "what makes the image score: the distance of the codes before and after, or the map",
            choices=("latent", "residual"),
        ),
        *common(learning_rate=2e-4),
    )

    def __init__(
        self,
        *,
        score: str = "residual",
        latent: int = 100,
        bottleneck: str = "picture",
        width: int = 16,
        depth: int = 6,
        learning_rate: float = 2e-4,
        batch_size: int = 16,
        epochs: int = 30,
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.by_latent = score == "latent"

    def least_weights(self, plan: Plan) -> int:
        return plan.code_weights

    def make_network(self, plan: Plan, generator: torch.Generator) -> GanomalyNetwork:
        return GanomalyNetwork(plan, gives_scores=self.by_latent, generator=generator)

    def make_training(self, network: Network, features: Features, context: FitContext) -> Training:
        """Generator and discriminator are trained by turns."""
        from detectors.heads.ganomaly.training import AdversarialTraining  # Lightning takes seconds to import

        return AdversarialTraining(self, cast(GanomalyNetwork, network), features, context, **self.schedule)
