"""Barlow Twins: over a batch, each dimension of one view correlates with the same dimension of the other view, and with no other.

Zbontar et al. 2021, https://arxiv.org/abs/2103.03230, with lightly's loss and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views
from al_core.pretraining.objective import Method, Objective, at_once, full_precision, of_all_processes, require, require_above_0, two_kinds
from al_core.seeds import seeded


@dataclass(frozen=True)
class BarlowTwins(Method):
    """Redundancy reduction between the dimensions of two views."""

    redundancy: float = field(default=0.005, metadata={"meaning": "weight of correlations between different dimensions"})
    scale: float = field(
        default=1.0,
        metadata={"meaning": "multiplies the loss. lars moves biases and batch norm as far as their gradients are long, and the authors take 0.024 with it"},
    )
    projection: int = field(default=8192, metadata={"meaning": "length of what is correlated, and of the layers before it"})

    def __post_init__(self) -> None:
        require(0, redundancy=self.redundancy)
        require_above_0(scale=self.scale)
        require(2, projection=self.projection)

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """Two, of which the second alone is solarised."""
        return two_kinds(size, (min_crop, 1.0), augment)

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """See `Method`."""
        return Decorrelated(self, encoder, seed)


class Decorrelated(Objective):
    """Barlow Twins over an encoder."""

    def __init__(self, method: BarlowTwins, encoder: Encoder, seed: int) -> None:
        super().__init__()
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules.heads import BarlowTwinsProjectionHead

        self.encoder, self.scale = encoder, method.scale
        with seeded(seed, "barlow-twins", "head"):
            self.head = BarlowTwinsProjectionHead(encoder.dim, method.projection, method.projection)
        self.criterion = BarlowTwinsLoss(method.redundancy)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """How far the correlation matrix is from the identity."""
        first, second = at_once(lambda x: self.head(self.encoder(x)), views)
        with full_precision(first.device):
            loss: Tensor = self.criterion(of_all_processes(first), of_all_processes(second))
        return self.scale * loss
