"""VAAL: a variational autoencoder and a discriminator that play over whether an image is labelled; what still looks unlabelled is asked about.

Sinha, Ebrahimi & Darrell 2019 (https://arxiv.org/abs/1904.00370). The autoencoder learns to rebuild labelled and unlabelled images and to give both
the same codes; the discriminator learns to tell them apart by their codes. No class is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from al_core.encoders import MEAN, STD, deterministic
from al_core.loading import Images, OnEpoch, Pick, Square, load, unit
from al_core.seeds import derive, generator, seeded

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """How the two are trained; the defaults are those of the authors' code for CIFAR."""

    image_size: int = field(default=32, metadata={"meaning": "pixels of a side; images are resized to it"})
    width: int = field(default=128, metadata={"meaning": "channels of the first convolution; each of three more doubles them"})
    latent: int = field(default=32, metadata={"meaning": "length of an image's code"})
    beta: float = field(default=1.0, metadata={"meaning": "weight of the codes' divergence from a standard normal distribution"})
    adversary: float = field(default=1.0, metadata={"meaning": "weight of what the autoencoder gains by fooling the discriminator"})
    vae_steps: int = field(default=2, metadata={"meaning": "steps of the autoencoder for each of the discriminator"})
    epochs: int = field(default=100, metadata={"meaning": "passes over the unlabelled images"})
    batch_size: int = field(default=128, metadata={"meaning": "labelled images a step, and as many unlabelled ones"})
    learning_rate: float = field(default=5e-4, metadata={"meaning": "of both (Adam)"})

    def __post_init__(self) -> None:
        for name in ("image_size", "width", "latent", "vae_steps", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected above 0")
        if self.image_size % 16:
            raise ValueError(f"image_size is {self.image_size}; expected a multiple of 16, as four convolutions halve the sides")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 2, as batch norm takes statistics over a batch")


class Autoencoder(nn.Module):
    """Images to codes and back: mean and log variance (B, latent) of the code, image (B, 3, S, S) from a code."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        widths = [recipe.width * 2**each for each in range(4)]
        side = recipe.image_size // 16
        down = [layer for pair in zip([3, *widths], widths, strict=False) for layer in halving(*pair)]
        self.down = nn.Sequential(*down, nn.Flatten())
        self.mean = nn.Linear(widths[3] * side**2, recipe.latent)
        self.log_variance = nn.Linear(widths[3] * side**2, recipe.latent)
        up = [layer for pair in zip(widths[:0:-1], widths[-2::-1], strict=True) for layer in doubling(*pair)]
        self.up = nn.Sequential(
            nn.Linear(recipe.latent, widths[3] * (2 * side) ** 2), nn.Unflatten(1, (widths[3], 2 * side, 2 * side)), *up, nn.Conv2d(widths[0], 3, 1)
        )

    def code(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each (B, latent)."""
        seen = self.down(images)
        return self.mean(seen), self.log_variance(seen)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images rebuilt from a code drawn with standard normal noise (B, latent), and the code's mean and log variance."""
        mean, log_variance = self.code(images)
        return self.up(mean + (log_variance / 2).exp() * noise), mean, log_variance


def halving(width_in: int, width_out: int) -> list[nn.Module]:
    """A convolution that halves the sides."""
    return [nn.Conv2d(width_in, width_out, 4, 2, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]


def doubling(width_in: int, width_out: int) -> list[nn.Module]:
    """A convolution that doubles the sides."""
    return [nn.ConvTranspose2d(width_in, width_out, 4, 2, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]


class Discriminator(nn.Sequential):
    """Codes (B, latent) to log odds (B,) of being labelled."""

    def __init__(self, latent: int) -> None:
        super().__init__(nn.Linear(latent, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1), nn.Flatten(0))


class Labelledness(nn.Module):
    """Images (B, 3, S, S) float in [0, 1] to the probability of being labelled, (B, 1), as the discriminator sees the mean of their code."""

    middle: Tensor
    spread: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.autoencoder, self.discriminator = Autoencoder(recipe), Discriminator(recipe.latent)
        self.register_buffer("middle", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """As the autoencoder takes them."""
        return (images - self.middle) / self.spread

    def forward(self, images: Tensor) -> Tensor:
        mean, _ = self.autoencoder.code(self.normalised(images))
        odds: Tensor = self.discriminator(mean)
        return odds.sigmoid()[:, None]


def build(recipe: Recipe, seed: int) -> Labelledness:
    """Untrained: He's weights, as the authors have them."""
    with seeded(seed, "vaal"):
        made = Labelledness(recipe)
        for module in made.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return made


def train(
    images: Images,
    labeled: Rows,
    unlabeled: Rows,
    recipe: Recipe,
    *,
    seed: int,
    workers: int,
    device: torch.device,
    on_epoch: OnEpoch = lambda epoch, loss, rate: None,
) -> Labelledness:
    """The two trained against each other, in evaluation mode. Deterministic on one device.

    Args:
        images: of the pool.
        labeled: rows whose labels are known, at least one.
        unlabeled: rows that may be asked about, at least one.
        recipe: how.
        seed: of weights, order and noise.
        workers: loader processes.
        device: where to train.
        on_epoch: called after each pass over the unlabelled images with the autoencoder's mean loss.

    Raises:
        ValueError: no labelled or no unlabelled rows, or a loss that is not finite.
    """
    for name, rows in (("labelled", labeled), ("unlabelled", unlabeled)):
        if len(rows) == 0:
            raise ValueError(f"there are no {name} images, and VAAL learns to tell labelled from unlabelled ones; take another method")
    network = build(recipe, seed).to(device).train()
    players = Players(network, recipe)
    picks = list(batches(labeled, unlabeled, recipe, seed))
    per_epoch = len(picks) // recipe.epochs
    total = 0.0
    with deterministic(1):
        for step, both in enumerate(load(images, picks, Square(recipe.image_size), seed=seed, workers=workers), start=1):
            x = network.normalised(unit(both, device))
            noise = torch.randn(len(x), recipe.latent, generator=torch.Generator().manual_seed(derive(seed, "noise", step))).to(device)
            total += players.vae_step(x, noise)
            if step % recipe.vae_steps == 0:
                players.discriminator_step(x)
            if not math.isfinite(total):
                raise ValueError(f"the loss of VAAL's step {step} is not finite; lower its learning_rate (now {recipe.learning_rate})")
            epoch, rest = divmod(step, per_epoch)
            if rest == 0:
                on_epoch(epoch, total / per_epoch, recipe.learning_rate)
                total = 0.0
    return network.eval()


class Players:
    """The two with their optimisers. A batch is labelled images and behind them as many unlabelled ones."""

    def __init__(self, network: Labelledness, recipe: Recipe) -> None:
        self.vae, self.discriminator, self.recipe = network.autoencoder, network.discriminator, recipe
        self.for_vae, self.for_discriminator = (torch.optim.Adam(each.parameters(), lr=recipe.learning_rate) for each in (self.vae, self.discriminator))

    def vae_step(self, x: Tensor, noise: Tensor) -> float:
        """The autoencoder learns to rebuild both halves, and to give codes that the discriminator takes for labelled ones; its loss before."""
        loss: Tensor = torch.zeros((), device=x.device)
        for half, its_noise in zip(x.chunk(2), noise.chunk(2), strict=True):
            rebuilt, mean, log_variance = self.vae(half, its_noise)
            loss = loss + vae_loss(half, rebuilt, mean, log_variance, self.recipe.beta) + self.recipe.adversary * taken_for(self.discriminator(mean), 1.0)
        self.for_vae.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.for_vae.step()
        return loss.item()

    def discriminator_step(self, x: Tensor) -> None:
        """The discriminator learns to tell the halves apart."""
        with torch.no_grad():
            labeled, unlabeled = (self.vae.code(half)[0] for half in x.chunk(2))
        loss = taken_for(self.discriminator(labeled), 1.0) + taken_for(self.discriminator(unlabeled), 0.0)
        self.for_discriminator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.for_discriminator.step()


def vae_loss(images: Tensor, rebuilt: Tensor, mean: Tensor, log_variance: Tensor, beta: float) -> Tensor:
    """Mean squared error over all values, plus beta times the codes' divergence from a standard normal, summed over the batch, as the authors' code has it."""
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return mse_loss(rebuilt, images) + beta * divergence


def taken_for(log_odds: Tensor, labeled: float) -> Tensor:
    """Binary cross-entropy of being taken for labelled (1) or unlabelled (0), mean over the batch."""
    return binary_cross_entropy_with_logits(log_odds, torch.full_like(log_odds, labeled))


def batches(labeled: Rows, unlabeled: Rows, recipe: Recipe, seed: int) -> Iterator[list[Pick]]:
    """Picks of each step: a batch of labelled rows and behind it as many unlabelled ones. Unlabelled rows are gone through once an epoch, in full batches
    that the rows of the epoch's beginning fill up; labelled rows again and again, each time in a new order."""
    size = recipe.batch_size
    known = endless(labeled, derive(seed, "labeled"))
    for epoch in range(recipe.epochs):
        order = generator(seed, "unlabeled", epoch).permutation(unlabeled)
        filled = np.resize(order, -(-len(order) // size) * size)
        for start in range(0, len(filled), size):
            yield [(epoch, next(known)) for _ in range(size)] + [(epoch, int(row)) for row in filled[start : start + size]]


def endless(rows: Rows, seed: int) -> Iterator[int]:
    """All rows in a random order, then again in another."""
    turn = 0
    while True:
        yield from generator(seed, "turn", turn).permutation(rows).tolist()
        turn += 1
