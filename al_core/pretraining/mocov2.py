"""MoCo v2: a view is to be found again among many of earlier batches, as a slowly following copy of the encoder sees them.

He et al. 2020, https://arxiv.org/abs/1911.05722, and Chen et al. 2020, https://arxiv.org/abs/2003.04297, with lightly's head. The authors shuffle images
between GPUs, each of which has batch statistics of its own, so that a pair does not share them and batch norm cannot tell it from the queue. Here the whole
batch has one set of statistics, on one GPU or many, and nothing is shuffled; small batches, whose statistics differ most, leave batch norm something to tell.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views
from al_core.pretraining.objective import Method, Objective, enter, full_precision, of_all_processes, require, require_above_0, require_share
from al_core.seeds import seeded


@dataclass(frozen=True)
class MoCoV2(Method):
    """Contrasts a view with the other view of its image and a queue of views of earlier batches."""

    temperature: float = field(default=0.2, metadata={"meaning": "divides the cosines; lower = harder negatives"})
    projection: int = field(default=128, metadata={"meaning": "length of what is compared"})
    queue: int = field(default=65_536, metadata={"meaning": "views of earlier batches to contrast with"})
    momentum: float = field(default=0.999, metadata={"meaning": "share of its weights that the following copy keeps at a step"})

    def __post_init__(self) -> None:
        require_above_0(temperature=self.temperature)
        require(1, projection=self.projection, queue=self.queue)
        require_share(momentum=self.momentum)

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """Two of one kind."""
        return [Views(size, (min_crop, 1.0), augment, 2)]

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """See `Method`."""
        return Queued(self, encoder, seed)


class Queued(Objective):
    """MoCo v2 over an encoder.

    Attributes:
        queue: (queue, projection) directions of keys.
        entered: how many came into it.
    """

    queue: Tensor
    entered: Tensor

    def __init__(self, method: MoCoV2, encoder: Encoder, seed: int) -> None:
        super().__init__()
        from lightly.models.modules.heads import MoCoProjectionHead

        self.temperature, self.momentum = method.temperature, method.momentum
        self.encoder = encoder
        with seeded(seed, "mocov2", "head"):
            self.head = MoCoProjectionHead(encoder.dim, encoder.dim, method.projection)
            queue = normalize(torch.randn(method.queue, method.projection))
        self.key_encoder, self.key_head = (copy.deepcopy(each).requires_grad_(False) for each in (self.encoder, self.head))
        self.register_buffer("queue", queue)
        self.register_buffer("entered", torch.zeros((), dtype=torch.long))

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of finding the key of the image's other view beside those of the queue, which the keys then enter."""
        first, second = views
        query = self.head(self.encoder(first)).float()
        with torch.no_grad():
            key = normalize(self.key_head(self.key_encoder(second)).float())
        with full_precision(query.device):
            query = normalize(query)
            cosines = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ self.queue.clone().T], dim=1)  # a clone, as the queue changes before backward
            loss = cross_entropy(cosines / self.temperature, torch.zeros(len(query), dtype=torch.long, device=query.device))
        enter(self.queue, self.entered, of_all_processes(key))
        return loss

    def after_step(self) -> None:
        """Have the copy follow."""
        follow(self.encoder, self.key_encoder, self.momentum)
        follow(self.head, self.key_head, self.momentum)


def follow(leader: nn.Module, copy: nn.Module, momentum: float) -> None:
    """Move the copy's weights towards the leader's; it keeps a share `momentum` of its own."""
    from lightly.models.utils import update_momentum

    update_momentum(leader, copy, momentum)
