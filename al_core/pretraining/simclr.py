"""SimCLR: two views of one image lie close together, and views of different images apart.

Chen et al. 2020, https://arxiv.org/abs/2002.05709, with lightly's loss and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views
from al_core.pretraining.objective import Method, Objective, at_once, full_precision, of_all_processes, require, require_above_0
from al_core.seeds import seeded


@dataclass(frozen=True)
class SimCLR(Method):
    """Contrasts two views of an image with those of all other images of the batch."""

    temperature: float = field(default=0.5, metadata={"meaning": "divides the cosines; lower = harder negatives"})
    projection: int = field(default=128, metadata={"meaning": "length of what is compared"})

    def __post_init__(self) -> None:
        require_above_0(temperature=self.temperature)
        require(1, projection=self.projection)

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """Two of one kind."""
        return [Views(size, (min_crop, 1.0), augment, 2)]

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """See `Method`."""
        return Contrast(self, encoder, seed)


class Contrast(Objective):
    """SimCLR over an encoder."""

    def __init__(self, method: SimCLR, encoder: Encoder, seed: int) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        self.encoder = encoder
        with seeded(seed, "simclr", "head"):
            self.head = SimCLRProjectionHead(encoder.dim, encoder.dim, method.projection)
        self.criterion = NTXentLoss(method.temperature)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of finding the other view of an image among all views."""
        first, second = at_once(lambda x: self.head(self.encoder(x)), views)
        with full_precision(first.device):
            loss: Tensor = self.criterion(of_all_processes(first), of_all_processes(second))
        return loss
