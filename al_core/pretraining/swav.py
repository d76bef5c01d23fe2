"""SwAV: the prototypes that one view is assigned to, all prototypes alike in use, are to be told from the other views.

Caron et al. 2020, https://arxiv.org/abs/2006.09882, with lightly's loss and head. Without the paper's queue of earlier batches, which it adds for
batches of a few hundred images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views
from al_core.pretraining.objective import Objective, at_once, full_precision, local_views, require, require_above_0
from al_core.seeds import seeded


@dataclass(frozen=True)
class SwAV:
    """Swapped assignments of views to prototypes."""

    prototypes: int = field(default=3000, metadata={"meaning": "how many there are; some three to ten times the classes that are expected"})
    temperature: float = field(default=0.1, metadata={"meaning": "divides the cosines with prototypes"})
    epsilon: float = field(default=0.05, metadata={"meaning": "softness of the assignments; lower = harder"})
    iterations: int = field(default=3, metadata={"meaning": "of Sinkhorn's algorithm, which evens out the use of prototypes"})
    projection: int = field(default=128, metadata={"meaning": "length of what is compared with prototypes"})
    frozen_epochs: int = field(default=1, metadata={"meaning": "first epochs in which prototypes stay as they are"})
    local_views: int = field(default=6, metadata={"meaning": "small crops of each image, beside the two large ones"})
    local_size: int | None = field(default=None, metadata={"meaning": "pixels of a small crop's side; null: 3/7 of a large one's"})

    def __post_init__(self) -> None:
        require(2, prototypes=self.prototypes)
        require(1, iterations=self.iterations, projection=self.projection)
        require(0, frozen_epochs=self.frozen_epochs, local_views=self.local_views)
        require_above_0(temperature=self.temperature, epsilon=self.epsilon, local_size=self.local_size or 1)

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """Two large ones and small ones."""
        return [Views(size, (min_crop, 1.0), augment, 2), *local_views(self.local_views, self.local_size, size, min_crop, augment)]

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """See `Method`."""
        return Swapped(self, encoder, epochs, seed)


class Swapped(Objective):
    """SwAV over an encoder."""

    def __init__(self, method: SwAV, encoder: Encoder, epochs: int, seed: int) -> None:
        super().__init__()
        from lightly.loss import SwaVLoss
        from lightly.models.modules.heads import SwaVProjectionHead

        self.epochs, self.frozen_epochs = epochs, method.frozen_epochs
        self.encoder = encoder
        with seeded(seed, "swav", "head"):
            self.head = SwaVProjectionHead(encoder.dim, encoder.dim, method.projection)
            self.prototypes = nn.Linear(method.projection, method.prototypes, bias=False)
        self.after_step()
        self.criterion = SwaVLoss(method.temperature, method.iterations, method.epsilon, sinkhorn_gather_distributed=True)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Cross-entropy between the assignments of each large view and what every other view says of them."""
        made = at_once(lambda x: self.head(self.encoder(x)), views)
        with full_precision(made[0].device):
            cosines = [self.prototypes(normalize(each)) for each in made]
            loss: Tensor = self.criterion(cosines[:2], cosines[2:])
        return loss.squeeze()

    def before_step(self) -> None:
        """Hold the prototypes for the first epochs."""
        if self.epochs_done(self.epochs) < self.frozen_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the prototypes at length 1."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight))
