"""The loop that trains an encoder without labels, whatever the method: one process or several, whole or resumed, with the same result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from al_core.devices import short_of_memory
from al_core.encoders import Encoder, check_size, deterministic
from al_core.loading import Images, Pick, Square, load, resized, unit
from al_core.pool import Rows
from al_core.pretraining.augment import Views, shrunk, views_of
from al_core.pretraining.batch_norm import synchronised
from al_core.pretraining.monitor import Health, health
from al_core.pretraining.objective import Objective
from al_core.processes import ALONE, Processes
from al_core.seeds import derive, drawing, generator, seeded

WATCHED = 512  # images whose embeddings are looked at after each epoch
LAYOUT = torch.channels_last  # that convolutions are fastest in, on CPUs too
SETTLED = 100  # steps that batch norm's running statistics take to become those of the images; before, a collapse cannot be told


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    epochs: int
    batch_size: int  # images a step, of all processes together; cut to the pool
    learning_rate: float  # at its peak
    learning_rate_end: float = 0.0  # that the cosine falls to
    warmup_epochs: float = 1.0  # over which it rises linearly
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    momentum: float = 0.9  # of sgd and lars
    weight_decay: float = 1e-4  # of matrices and convolutions; biases and batch norm are left free
    weight_decay_end: float | None = None  # that it goes to along a cosine; None: stays
    clip: float | None = None  # largest norm of the gradient
    accumulate: int = 1  # parts that a step is done in, one after another; methods that contrast images do so within a part
    precision: Literal["float32", "bfloat16"] = "float32"  # of the encoder's products; weights and losses are float32
    compile: bool = False  # by torch.compile
    threads: int = 1  # of the CPU: gradients are summed in as many parts, so that another number gives other last bits

    def check(self, processes: int) -> None:
        """Raise ValueError where so many processes cannot share a batch."""
        if self.batch_size % (self.accumulate * processes):
            raise ValueError(
                f"pretrain.batch_size is {self.batch_size}, which {self.accumulate} parts (pretrain.accumulate) of {processes} processes "
                f"(pretrain.launch) cannot share evenly; make it a multiple of {self.accumulate * processes}"
            )


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of one."""

    number: int  # from 1
    loss: float  # mean over its steps
    learning_rate: float  # of its last step
    health: Health
    resumed: bool = False  # done by an earlier run


class CollapseError(ValueError):
    """The encoder gives all images the same embedding."""


class Store(Protocol):
    """Where a run's state is kept, so that it can be cut off at any moment and go on."""

    def load(self) -> dict[str, Any] | None:
        """What was saved last, tensors on the CPU; None: nothing."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Keep nested dicts and lists of tensors and plain values in place of what was saved before, wholly or not at all."""
        ...

    def due(self) -> bool:
        """Whether it is time to save within an epoch."""
        ...


def train(
    images: Images,
    objective: Objective,
    recipe: Recipe,
    *,
    views: Sequence[Views],
    source_size: int,
    seed: int,
    workers: int,
    device: torch.device,
    labels: Rows | None = None,
    processes: Processes = ALONE,
    store: Store | None = None,
    on_epoch: Callable[[Epoch], None],
) -> None:
    """Train the objective, and in it the encoder, in place and on the device.

    All randomness comes from (seed, epoch, number of the batch), so a run that is cut off and goes on from its store ends with the weights of one that was
    not, and several processes see the views that one would see. On a CPU the weights are the same bit for bit, given the number of processes and threads.

    Args:
        images: the pool. The rest of an epoch that does not fill a batch waits for the next epoch's order.
        objective: with the encoder in it.
        recipe: how long and how fast.
        views: what the objective is shown of each image.
        source_size: pixels of a side to which images are resized before views are cut out of them.
        seed: of order and views.
        workers: loader processes; do not change the result.
        device: where to train.
        labels: (n,) class numbers, -1 where unknown, for the probe of each epoch's health; never trained on.
        processes: of a torch.distributed group, each of which calls this alike with a device of its own; they share every batch.
        store: where to keep the state; the first process's counts.
        on_epoch: called after each epoch, also those that an earlier run has done.

    Raises:
        CollapseError: the encoder gives all images the same embedding.
        MemoryError: a batch takes more than there is; says what takes less.
        ValueError: fewer images than a batch takes, a batch that cannot be shared, views of a size that the encoder does not take, or a loss that is not
            finite.
    """
    plan = Plan.of(len(images), recipe, processes)
    check_views(objective.encoder, views)
    run = Training(objective, recipe, plan, device, processes)
    held = resized(images, source_size, workers=workers)
    watched = np.linspace(0, len(images) - 1, min(WATCHED, len(images))).round().astype(np.int64)
    run.resume(processes.first(store.load()) if store else None)
    for each in run.done:
        on_epoch(each)
    parts = load(held, plan.picks(run.part, seed), Square(source_size), seed=seed, workers=workers)
    with deterministic(recipe.threads):
        while run.part < plan.parts:
            shown = views_of(next(parts), views, generator(seed, "views", run.part), device, part=plan.share, whole=plan.part_size)
            with short_of_memory(f"lower pretrain.batch_size (now {recipe.batch_size}), or raise pretrain.accumulate (now {recipe.accumulate})"):
                run.learn(shown, seed)
            if run.part % plan.parts_an_epoch == 0:
                run.end_epoch(lambda: health(*watch(held, watched, source_size, views, objective, device), None if labels is None else labels[watched]))
                on_epoch(run.done[-1])
            if store and processes.rank == 0 and (run.part % plan.parts_an_epoch == 0 or store.due()) and run.can_be_kept:
                store.save(run.state())
    objective.eval()


def check_views(encoder: Encoder, views: Sequence[Views]) -> None:
    """Raise ValueError, with what to do, where the encoder does not take all the views of an objective."""
    for each in views:
        try:
            check_size(encoder, each.size)
        except ValueError as error:
            advice = "set local_size in pretrain.objective to what it takes (a ViT of timm's: a multiple of its patch), or local_views to 0"
            raise ValueError(f"{str(error).rstrip('.')}; {advice}") from error


@dataclass(frozen=True)
class Plan:
    """How a run is cut: epochs into steps, steps into parts that are done one after another, parts into the shares of the processes."""

    images: int
    epochs: int
    part_size: int  # images of all processes
    parts_a_step: int
    parts_an_epoch: int
    share: slice  # of a part's images, that this process works on

    @classmethod
    def of(cls, images: int, recipe: Recipe, processes: Processes) -> Plan:
        """For so many images.

        Raises:
            ValueError: there are too few images, or the batch cannot be divided.
        """
        least = 2 * recipe.accumulate * processes.count  # batch norm takes two
        if images < least:
            raise ValueError(f"pretraining got {images} images and takes at least {least}; give more, or set pretrain.method to none")
        recipe.check(processes.count)
        size = min(recipe.batch_size, images)
        part = size // (recipe.accumulate * processes.count) * processes.count
        steps = images // (part * recipe.accumulate)
        mine = part // processes.count
        share = slice(processes.rank * mine, (processes.rank + 1) * mine)
        return cls(images, recipe.epochs, part, recipe.accumulate, steps * recipe.accumulate, share)

    @property
    def parts(self) -> int:
        """Of the whole run."""
        return self.epochs * self.parts_an_epoch

    def picks(self, start: int, seed: int) -> Iterator[list[Pick]]:
        """What this process works on, part by part from a certain one on."""
        for part in range(start, self.parts):
            epoch, place = divmod(part, self.parts_an_epoch)
            if place == 0 or part == start:
                order = generator(seed, "order", epoch + 1).permutation(self.images)
            rows = order[place * self.part_size : (place + 1) * self.part_size]
            yield [(epoch + 1, row) for row in rows[self.share].tolist()]


def watch(held: Images, rows: Rows, size: int, views: Sequence[Views], objective: Objective, device: torch.device) -> tuple[Tensor, Tensor]:
    """What encoder and head make of some images as they are, on the CPU."""
    picks = [[(0, row) for row in rows[start : start + 64].tolist()] for start in range(0, len(rows), 64)]
    largest = max(each.size for each in views)
    made = []
    with torch.inference_mode():
        for batch in load(held, picks, Square(size), seed=0, workers=0):
            embeddings = objective.encoder(shrunk(unit(batch, device), largest))
            made.append((embeddings.float().cpu(), objective.head(embeddings).float().cpu()))
    embeddings, compared = zip(*made, strict=True)
    return torch.cat(embeddings), torch.cat(compared)


class Training:
    """A run under way.

    Attributes:
        part: how many parts are done.
        total: sum of the losses of this epoch's parts.
        done: epochs that are over.
    """

    def __init__(self, objective: Objective, recipe: Recipe, plan: Plan, device: torch.device, processes: Processes) -> None:
        self.recipe, self.plan, self.device, self.processes = recipe, plan, device, processes
        self.objective = synchronised(objective, processes.group, device).to(device).to(memory_format=LAYOUT).train()
        self.optimizer = optimizer_of(objective, recipe)
        self.part, self.total, self.done = 0, torch.zeros((), dtype=torch.float64, device=device), list[Epoch]()
        self.forward: nn.Module = self.objective
        if recipe.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        if processes.group is not None:
            self.forward = nn.parallel.DistributedDataParallel(self.forward, process_group=processes.group, broadcast_buffers=False)

    def learn(self, views: list[Tensor], seed: int) -> None:
        """Take a part's views into account, and at the last part of a step move the weights."""
        last = (self.part + 1) % self.plan.parts_a_step == 0
        self.objective.share = self.share
        waits = nullcontext() if last or self.processes.group is None else self.forward.no_sync()  # type: ignore[operator]
        purpose = ("forward", self.part, self.processes.rank)  # of layers that draw, such as dropout
        with waits, seeded(seed, *purpose), drawing(derive(seed, *purpose), self.device):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
                loss = self.forward([view.contiguous(memory_format=LAYOUT) for view in views])
            (loss / self.plan.parts_a_step).backward()
        self.total += self.mean(loss.detach())
        self.part += 1
        if last:
            self.step()

    def mean(self, loss: Tensor) -> Tensor:
        """Of all processes."""
        if self.processes.group is None:
            return loss
        total = loss.clone()
        torch.distributed.all_reduce(total, group=self.processes.group)
        return total / self.processes.count

    def step(self) -> None:
        """Move the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.objective.share)
            if group["decays"]:
                group["weight_decay"] = self.decay(self.objective.share)
        self.objective.before_step()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.after_step()

    @property
    def share(self) -> float:
        """Of the steps, that are done."""
        return self.part // self.plan.parts_a_step / (self.plan.parts // self.plan.parts_a_step)

    def rate(self, share: float) -> float:
        """The learning rate after a share of the run: rises linearly, then falls along a cosine."""
        warm = self.recipe.warmup_epochs / self.recipe.epochs
        if share < warm:
            steps = self.plan.parts / self.plan.parts_a_step
            return self.recipe.learning_rate * min(1.0, (share * steps + 1) / (warm * steps))
        return along_cosine(self.recipe.learning_rate, self.recipe.learning_rate_end, (share - warm) / (1 - warm) if warm < 1 else 1.0)

    def decay(self, share: float) -> float:
        """The weight decay after a share of the run."""
        end = self.recipe.weight_decay_end
        return self.recipe.weight_decay if end is None else along_cosine(self.recipe.weight_decay, end, share)

    def end_epoch(self, health_of: Callable[[], Health]) -> None:
        """Look at what the epoch has made.

        Raises:
            CollapseError, ValueError: it is not worth going on.
        """
        number = self.part // self.plan.parts_an_epoch
        loss = self.total.item() / self.plan.parts_an_epoch
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {number} is {loss}; lower pretrain.learning_rate (now {self.recipe.learning_rate:g})")
        self.objective.eval()
        seen = health_of()
        self.objective.train()
        if seen.collapsed and self.part >= SETTLED * self.plan.parts_a_step:
            raise CollapseError(
                f"the training has collapsed in epoch {number}: embeddings of different images have a spread of {seen.spread:.2g} (1: as different as can "
                f"be) and an effective rank of {seen.rank:.1f}, what the head makes of them a spread of {seen.head_spread:.2g}, at a loss of {loss:.4g}; "
                f"lower pretrain.learning_rate (now {self.recipe.learning_rate:g}), take a larger pretrain.batch_size (now {self.recipe.batch_size}), "
                "stronger crops (pretrain.min_crop) or another pretrain.method: simclr and mocov2 hardly ever collapse"
            )
        self.done.append(Epoch(number, loss, self.optimizer.param_groups[0]["lr"], seen))
        self.total.zero_()

    @property
    def can_be_kept(self) -> bool:
        """Whether no step is half done and the weights are numbers."""
        return self.part % self.plan.parts_a_step == 0 and all(bool(p.isfinite().all()) for p in self.objective.parameters())

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, between two steps."""
        done = [[each.number, each.loss, each.learning_rate, *vars(each.health).values()] for each in self.done]
        return {
            "part": self.part,
            "total": self.total,
            "done": done,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self, state: dict[str, Any] | None) -> None:
        """Go on from a state; None: from the start."""
        if state is None:
            return
        self.part = state["part"]
        self.total.copy_(state["total"])
        self.done = [Epoch(number, loss, rate, Health(*seen), resumed=True) for number, loss, rate, *seen in state["done"]]
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])


def optimizer_of(objective: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over what is trained; biases and batch norm do not decay."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay, "decays": True}, {"params": vectors, "weight_decay": 0.0, "decays": False}]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    from lightly.utils.lars import LARS

    lars: torch.optim.Optimizer = LARS(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return lars


def along_cosine(start: float, end: float, share: float) -> float:
    """From `start` at 0 to `end` at 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
