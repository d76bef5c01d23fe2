"""VICReg: two views of an image agree, every dimension varies over the batch, and no two dimensions vary together.

Bardes et al. 2022, https://arxiv.org/abs/2105.04906, with lightly's loss and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views
from al_core.pretraining.objective import Method, Objective, at_once, full_precision, of_all_processes, require, two_kinds
from al_core.seeds import seeded


@dataclass(frozen=True)
class VICReg(Method):
    """Variance, invariance and covariance of an expanded embedding."""

    invariance: float = field(default=25.0, metadata={"meaning": "weight of the distance between two views of an image"})
    variance: float = field(default=25.0, metadata={"meaning": "weight of dimensions whose standard deviation is below 1"})
    covariance: float = field(default=1.0, metadata={"meaning": "weight of covariances between dimensions"})
    projection: int = field(default=8192, metadata={"meaning": "length of the expanded embedding, and of the layers before it"})

    def __post_init__(self) -> None:
        require(0, invariance=self.invariance, variance=self.variance, covariance=self.covariance)
        require(2, projection=self.projection)

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """Two, of which the second alone is solarised."""
        return two_kinds(size, (min_crop, 1.0), augment)

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """See `Method`."""
        return Regularised(self, encoder, seed)


class Regularised(Objective):
    """VICReg over an encoder."""

    def __init__(self, method: VICReg, encoder: Encoder, seed: int) -> None:
        super().__init__()
        from lightly.loss import VICRegLoss
        from lightly.models.modules.heads import VICRegProjectionHead

        self.encoder = encoder
        with seeded(seed, "vicreg", "head"):
            self.head = VICRegProjectionHead(encoder.dim, method.projection, method.projection)
        self.criterion = VICRegLoss(method.invariance, method.variance, method.covariance)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The three terms, weighted."""
        first, second = at_once(lambda x: self.head(self.encoder(x)), views)
        with full_precision(first.device):
            loss: Tensor = self.criterion(of_all_processes(first), of_all_processes(second))
        return loss
