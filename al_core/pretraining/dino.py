"""DINO: what the encoder makes of small crops is to tell what a slowly following teacher makes of large ones.

Caron et al. 2021, https://arxiv.org/abs/2104.14294, with lightly's loss and head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from al_core.encoders import Encoder
from al_core.pretraining.augment import Augment, Views
from al_core.pretraining.objective import Method, Objective, at_once, full_precision, local_views, require, require_above_0, require_share, two_kinds
from al_core.seeds import seeded


@dataclass(frozen=True)
class DINO(Method):
    """Self-distillation: a centred and sharpened teacher against collapse."""

    prototypes: int = field(default=65_536, metadata={"meaning": "length of what is compared"})
    hidden: int = field(default=2048, metadata={"meaning": "width of the head's layers"})
    student_temperature: float = field(default=0.1, metadata={"meaning": "divides the student's outputs"})
    teacher_temperature: float = field(default=0.04, metadata={"meaning": "divides the teacher's outputs; lower = sharper. The paper's ViTs end at 0.07"})
    teacher_temperature_start: float = field(default=0.04, metadata={"meaning": "what it begins at"})
    teacher_warmup_epochs: int = field(default=30, metadata={"meaning": "epochs over which it rises"})
    momentum: float = field(default=0.996, metadata={"meaning": "share of its weights that the teacher keeps at a step; goes to 1 along a cosine"})
    center_momentum: float = field(default=0.9, metadata={"meaning": "share of the centre that is kept at a step"})
    frozen_epochs: int = field(default=1, metadata={"meaning": "first epochs in which the last layer stays as it is"})
    local_views: int = field(default=8, metadata={"meaning": "small crops of each image, beside the two large ones"})
    local_size: int | None = field(default=None, metadata={"meaning": "pixels of a small crop's side; null: 3/7 of a large one's"})

    def __post_init__(self) -> None:
        require(2, prototypes=self.prototypes, hidden=self.hidden)
        require(0, teacher_warmup_epochs=self.teacher_warmup_epochs, frozen_epochs=self.frozen_epochs, local_views=self.local_views)
        require_above_0(student_temperature=self.student_temperature, teacher_temperature=self.teacher_temperature)
        require_above_0(teacher_temperature_start=self.teacher_temperature_start, local_size=self.local_size or 1)
        require_share(momentum=self.momentum, center_momentum=self.center_momentum)

    def views(self, size: int, min_crop: float, augment: Augment) -> list[Views]:
        """Two large ones, of which the second alone is solarised, and small ones."""
        return two_kinds(size, (min_crop, 1.0), augment) + local_views(self.local_views, self.local_size, size, min_crop, augment)

    def over(self, encoder: Encoder, *, epochs: int, seed: int) -> Objective:
        """See `Method`."""
        return Distilled(self, encoder, epochs, seed)


class Distilled(Objective):
    """DINO over an encoder, with the teacher beside it."""

    def __init__(self, method: DINO, encoder: Encoder, epochs: int, seed: int) -> None:
        super().__init__()
        from lightly.loss import DINOLoss
        from lightly.models.modules.heads import DINOProjectionHead

        self.method, self.epochs = method, epochs
        self.encoder = encoder
        batch_norm = any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())  # the paper's heads go with the encoder
        heads = []
        for _ in range(2):  # the weights of its last layer cannot be copied by Python's copy
            with seeded(seed, "dino", "head"):
                heads.append(DINOProjectionHead(encoder.dim, method.hidden, min(256, method.hidden), method.prototypes, batch_norm, method.frozen_epochs))
        self.head: DINOProjectionHead = heads[0]
        self.teacher_head: DINOProjectionHead = heads[1].requires_grad_(False)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.criterion = DINOLoss(method.prototypes, student_temp=method.student_temperature, center_momentum=method.center_momentum)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Cross-entropy between what the teacher makes of each large view and the student of every other view."""
        with torch.no_grad():
            wanted = at_once(lambda x: self.teacher_head(self.teacher(x)), views[:2])
        made = at_once(lambda x: self.head(self.encoder(x)), views)
        with full_precision(made[0].device):
            loss: Tensor = self.criterion(wanted, made, teacher_temp=self.teacher_temperature)
        return loss

    @property
    def teacher_temperature(self) -> float:
        """At this point of the training."""
        start, end, warm = self.method.teacher_temperature_start, self.method.teacher_temperature, self.method.teacher_warmup_epochs
        return start + (end - start) * min(1.0, self.share * self.epochs / warm) if warm else end

    @property
    def momentum(self) -> float:
        """At this point of the training."""
        return 1 - (1 - self.method.momentum) * 0.5 * (1 + math.cos(math.pi * self.share))

    def before_step(self) -> None:
        """Hold the last layer for the first epochs."""
        self.head.cancel_last_layer_gradients(self.epochs_done(self.epochs))

    def after_step(self) -> None:
        """Have the teacher follow."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder, self.teacher, self.momentum)
        update_momentum(self.head, self.teacher_head, self.momentum)
