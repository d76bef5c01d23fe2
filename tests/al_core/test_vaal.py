"""The losses by the authors' formulas, who learns from what, and whether a discriminator that is not fooled finds what is unlike the labelled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from al_core.features import features
from al_core.vaal import Labelledness, Players, Recipe, Rows, batches, build, taken_for, train, vae_loss

TINY = Recipe(image_size=16, width=4, latent=3, epochs=2, batch_size=6)
LABELED, UNLABELED = np.arange(5), np.arange(5, 25)
CPU = torch.device("cpu")


class Shades:
    """Dark images; from row 15 on bright ones."""

    def __len__(self) -> int:
        return 25

    def __getitem__(self, row: int, /) -> Image.Image:
        noise = np.random.default_rng(row).integers(0, 60, (16, 16, 3))
        return Image.fromarray((noise + (150 if row >= 15 else 20)).astype(np.uint8))


def trained(recipe: Recipe = TINY, seed: int = 0, workers: int = 0) -> Labelledness:
    return train(Shades(), LABELED, UNLABELED, recipe, seed=seed, workers=workers, device=CPU)


def test_the_autoencoders_loss_is_the_authors() -> None:
    rng = np.random.default_rng(0)
    x, rebuilt = rng.normal(size=(2, 4, 3, 8, 8))
    mean, log_variance = rng.normal(size=(2, 4, 5))
    squares = sum((a - b) ** 2 for a, b in zip(x.ravel(), rebuilt.ravel(), strict=True)) / x.size
    divergence = sum((math.exp(v) + m * m - 1 - v) / 2 for m, v in zip(mean.ravel(), log_variance.ravel(), strict=True))  # of each normal from the standard one
    a, b, c, d = (torch.from_numpy(each) for each in (x, rebuilt, mean, log_variance))
    value = vae_loss(a, b, c, d, beta=0.3)
    assert value.item() == pytest.approx(squares + 0.3 * divergence)


def test_cross_entropy_by_hand() -> None:
    odds = torch.tensor([2.0, -1.0], dtype=torch.float64)
    p = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    assert taken_for(odds, 1.0).item() == pytest.approx(-(math.log(p[0]) + math.log(p[1])) / 2)
    assert taken_for(odds, 0.0).item() == pytest.approx(-(math.log(1 - p[0]) + math.log(1 - p[1])) / 2)


def test_sizes_of_the_authors_networks() -> None:
    network = build(Recipe(), 0)
    linear = {name: tuple(each.weight.shape) for name, each in network.named_modules() if isinstance(each, nn.Linear)}
    assert linear == {
        "autoencoder.mean": (32, 4096),
        "autoencoder.log_variance": (32, 4096),
        "autoencoder.up.0": (16384, 32),
        "discriminator.0": (512, 32),
        "discriminator.2": (512, 512),
        "discriminator.4": (1, 512),
    }
    rebuilt, mean, _ = network.autoencoder(torch.zeros(2, 3, 32, 32), torch.zeros(2, 32))
    assert (rebuilt.shape, mean.shape, network(torch.zeros(2, 3, 32, 32)).shape) == ((2, 3, 32, 32), (2, 32), (2, 1))


def test_each_step_teaches_one_player_alone() -> None:
    network = build(TINY, 0).train()
    players = Players(network, TINY)
    x, noise = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(12, 3)

    def weights() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return tuple([each.clone() for each in part.parameters()] for part in (network.autoencoder, network.discriminator))  # type: ignore[return-value]

    def alike(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    first = weights()
    players.vae_step(x, noise)
    second = weights()
    players.discriminator_step(x)
    third = weights()
    assert [alike(first[0], second[0]), alike(first[1], second[1])] == [False, True]
    assert [alike(second[0], third[0]), alike(second[1], third[1])] == [True, False]


def test_the_discriminator_is_to_be_fooled_into_labelled_for_both_halves() -> None:
    network = build(TINY, 0).train()
    recipe = Recipe(image_size=16, width=4, latent=3, beta=0.0, adversary=50.0, learning_rate=1e-3)
    players = Players(network, recipe)
    x, noise = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(12, 3)
    with torch.no_grad():
        before = network.discriminator(network.autoencoder.code(x)[0])
    for _ in range(20):
        players.vae_step(x, noise)
    with torch.no_grad():
        after = network.discriminator(network.autoencoder.code(x)[0])
    assert (after.reshape(2, 6).mean(1) > before.reshape(2, 6).mean(1) + 0.1).all()


def test_batches_hold_both_and_go_through_the_unlabelled_once_an_epoch() -> None:
    picks = list(batches(LABELED, UNLABELED, TINY, 0))
    assert len(picks) == 2 * 4  # 20 rows in batches of 6
    for number, batch in enumerate(picks):
        assert {epoch for epoch, _ in batch} == {number // 4}
        assert {row for _, row in batch[:6]} <= set(LABELED)
        assert {row for _, row in batch[6:]} <= set(UNLABELED)
    for epoch in range(2):
        assert {row for batch in picks[4 * epoch : 4 * epoch + 4] for _, row in batch[6:]} == set(UNLABELED)
    known = [row for batch in picks for _, row in batch[:6]]
    assert [sorted(known[start : start + 5]) for start in range(0, 45, 5)] == [LABELED.tolist()] * 9
    assert picks[0] != picks[4]


def test_without_an_opponent_it_finds_what_is_unlike_the_labelled() -> None:
    recipe = Recipe(image_size=16, width=4, latent=3, beta=0.01, adversary=0.0, epochs=30, batch_size=6, learning_rate=2e-3)
    network = trained(recipe)
    (scores,) = features(Shades(), network, image_size=16, batch_size=25, workers=0, device=CPU)
    assert scores.shape == (25, 1)
    assert scores.min() >= 0 and scores.max() <= 1
    assert scores[15:].max() < scores[:15].min()  # bright ones are all unlabelled; dark ones are some of each


def test_equal_seeds_give_equal_weights_with_any_number_of_workers() -> None:
    first, second, other = trained(), trained(workers=1), trained(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not torch.equal(first.discriminator[0].weight, other.discriminator[0].weight)  # type: ignore[arg-type]
    assert not first.training


@pytest.mark.gpu
def test_a_gpu_trains_the_same_twice(gpu: str) -> None:
    first, second = (train(Shades(), LABELED, UNLABELED, TINY, seed=0, workers=0, device=torch.device(gpu)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "message"),
    [
        (LABELED[:0], UNLABELED, "there are no labelled images, and VAAL learns to tell labelled from unlabelled ones; take another method"),
        (LABELED, UNLABELED[:0], "there are no unlabelled images, and VAAL learns to tell labelled from unlabelled ones; take another method"),
    ],
)
def test_one_kind_alone_is_refused(labeled: Rows, unlabeled: Rows, message: str) -> None:
    with pytest.raises(ValueError) as error:
        train(Shades(), labeled, unlabeled, TINY, seed=0, workers=0, device=CPU)
    assert str(error.value) == message


def test_recipes_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        Recipe(image_size=28)
    assert str(error.value) == "image_size is 28; expected a multiple of 16, as four convolutions halve the sides"
    with pytest.raises(ValueError) as error:
        Recipe(batch_size=1)
    assert str(error.value) == "batch_size is 1; expected at least 2, as batch norm takes statistics over a batch"
