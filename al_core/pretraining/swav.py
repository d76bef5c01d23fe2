"""SwAV: the prototypes that one view is assigned to, all prototypes alike in use, are to be told from the other views.

Caron et al. 2020, https://arxiv.org/abs/2006.09882, with lightly's loss and head. A few hundred images are too few to be spread over thousands of
prototypes: for such batches the paper has a queue of earlier ones, which are assigned with them and not learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views
from al_core.pretraining.objective import Method, Objective, at_once, enter, full_precision, local_views, of_all_processes, require, require_above_0
from al_core.seeds import seeded


@dataclass(frozen=True)
class SwAV(Method):
    """Swapped assignments of views to prototypes."""

    prototypes: int = field(default=3000, metadata={"meaning": "how many there are; some three to ten times the classes that are expected"})
    temperature: float = field(default=0.1, metadata={"meaning": "divides the cosines with prototypes"})
    epsilon: float = field(default=0.05, metadata={"meaning": "softness of the assignments; lower = harder"})
    iterations: int = field(default=3, metadata={"meaning": "of Sinkhorn's algorithm, which evens out the use of prototypes"})
    projection: int = field(default=128, metadata={"meaning": "length of what is compared with prototypes"})
    queue: int = field(default=0, metadata={"meaning": "earlier images assigned with a batch; the paper has 3840 for batches of 256, and 0 for large ones"})
    queue_from: int = field(default=15, metadata={"meaning": "first epochs without the queue; fewer than there are"})
    frozen_epochs: int = field(default=1, metadata={"meaning": "first epochs in which prototypes stay as they are"})
    local_views: int = field(default=6, metadata={"meaning": "small crops of each image, beside the two large ones"})
    local_size: int | None = field(default=None, metadata={"meaning": "pixels of a small crop's side; null: 3/7 of a large one's"})

    def __post_init__(self) -> None:
        require(2, prototypes=self.prototypes)
        require(1, iterations=self.iterations, projection=self.projection)
        require(0, queue=self.queue, queue_from=self.queue_from, frozen_epochs=self.frozen_epochs, local_views=self.local_views)
        require_above_0(temperature=self.temperature, epsilon=self.epsilon, local_size=self.local_size or 1)

    def check(self, *, epochs: int, processes: int) -> None:
        """See `Method`: a queue that would never count, or that processes cannot share."""
        if self.queue and self.queue_from >= epochs:
            raise ValueError(f"queue_from is {self.queue_from} and there are {epochs} epochs, so that the queue would never count; lower it, or set queue to 0")
        if self.queue % processes:
            raise ValueError(f"queue is {self.queue}, which {processes} processes cannot share evenly; make it a multiple of {processes}")

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """Two large ones and small ones."""
        return [Views(size, (min_crop, 1.0), augment, 2), *local_views(self.local_views, self.local_size, size, min_crop, augment)]

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """See `Method`."""
        from lightly.utils import dist

        self.check(epochs=epochs, processes=dist.world_size())
        return Swapped(self, encoder, epochs, seed)


class Swapped(Objective):
    """SwAV over an encoder.

    Attributes:
        queue: (queue, 2, projection) directions of the large views of earlier images.
        entered: how many came into it.
    """

    queue: Tensor
    entered: Tensor

    def __init__(self, method: SwAV, encoder: Encoder, epochs: int, seed: int) -> None:
        super().__init__()
        from lightly.loss import SwaVLoss
        from lightly.models.modules.heads import SwaVProjectionHead

        self.epochs, self.frozen_epochs, self.queue_from = epochs, method.frozen_epochs, method.queue_from
        self.encoder = encoder
        with seeded(seed, "swav", "head"):
            self.head = SwaVProjectionHead(encoder.dim, encoder.dim, method.projection)
            self.prototypes = nn.Linear(method.projection, method.prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(method.queue, 2, method.projection))
        self.register_buffer("entered", torch.zeros((), dtype=torch.long))
        self.after_step()
        self.criterion = SwaVLoss(method.temperature, method.iterations, method.epsilon, sinkhorn_gather_distributed=True)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Cross-entropy between the assignments of each large view and what every other view says of them."""
        made = at_once(lambda x: self.head(self.encoder(x)), views)
        with full_precision(made[0].device):
            directions = [normalize(each) for each in made]
            cosines = [self.prototypes(each) for each in directions]
            loss: Tensor = self.criterion(cosines[:2], cosines[2:], self.earlier())
        if len(self.queue):
            enter(self.queue, self.entered, of_all_processes(torch.stack(directions[:2], dim=1).detach()))
        return loss.squeeze()

    @torch.no_grad()
    def earlier(self) -> list[Tensor] | None:
        """This process's share of the queue as (share, prototypes) cosines of either large view; None before it counts or is full."""
        if not len(self.queue) or self.epochs_done(self.epochs) < self.queue_from or self.entered < len(self.queue):
            return None
        from lightly.utils import dist

        share = len(self.queue) // dist.world_size()
        return [self.prototypes(each) for each in self.queue[dist.rank() * share :][:share].unbind(dim=1)]

    def before_step(self) -> None:
        """Hold the prototypes for the first epochs."""
        if self.epochs_done(self.epochs) < self.frozen_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the prototypes at length 1."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight))
