"""The module written out in NumPy, the ranking loss pair by pair, and whether what it learns orders unseen losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from al_core.encoders import build
from al_core.finetune import Finetuned, Tuning, finetune, regression
from al_core.loss_prediction import LossPrediction, Recipe, Watched, WithPredictedLoss, pooled, ranking_loss, widths_of
from al_core.seeds import seeded


def small() -> nn.Sequential:
    with seeded(0, "test"):
        first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU())
        return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def by_pairs(predicted: list[float], losses: list[float], margin: float) -> float:
    """The paper's sum, pair by pair."""
    even = len(predicted) - len(predicted) % 2
    total = 0.0
    for i in range(even // 2):
        j = even - 1 - i
        if losses[i] != losses[j]:
            sign = 1 if losses[i] > losses[j] else -1
            total += max(0.0, -sign * (predicted[i] - predicted[j]) + margin)
    return 2 * total / even


@pytest.mark.parametrize("size", [2, 3, 7, 8])
@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_the_ranking_loss_is_the_sum_over_pairs(size: int, margin: float) -> None:
    rng = np.random.default_rng(size)
    predicted, losses = rng.normal(size=size), rng.integers(0, 4, size).astype(float)  # with ties
    value = ranking_loss(torch.from_numpy(predicted), torch.from_numpy(losses), margin=margin)
    assert value.item() == pytest.approx(by_pairs(predicted.tolist(), losses.tolist(), margin))


def test_the_ranking_loss_by_hand() -> None:
    losses = torch.tensor([2.0, 0.5, 1.0, 3.0])  # pairs (0, 3) and (1, 2): the second of each has the larger loss
    assert ranking_loss(torch.zeros(4), losses).item() == 1.0  # equal predictions: the margin
    assert ranking_loss(torch.tensor([0.0, 5.0, 6.0, 1.0]), losses).item() == 0.0
    assert ranking_loss(torch.tensor([1.0, 6.0, 5.0, 0.0]), losses).item() == 2.0
    assert ranking_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])).item() == 0.0
    assert ranking_loss(torch.tensor([1.0]), torch.tensor([4.0])).item() == 0.0


def test_nothing_is_learned_through_the_losses_and_nothing_from_ties_or_the_odd_one() -> None:
    predicted, losses = torch.zeros(5, requires_grad=True), torch.tensor([1.0, 2.0, 2.0, 3.0, 9.0], requires_grad=True)
    ranking_loss(predicted, losses).backward()  # type: ignore[no-untyped-call]
    assert losses.grad is None
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0.5, 0.0, 0.0, -0.5, 0.0]


def test_the_module_is_the_papers() -> None:
    module = LossPrediction([64, 128, 256, 512])
    assert sum(each.numel() for each in module.parameters()) == 128 * (64 + 128 + 256 + 512 + 4) + 512 + 1
    assert module.widths == (64, 128, 256, 512)
    rng = np.random.default_rng(0)
    stages = [torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in ((5, 64, 8, 8), (5, 128, 4, 4), (5, 256, 2, 2), (5, 512, 1, 1))]
    weights = [(each.weight.detach().numpy(), each.bias.detach().numpy()) for each in module.maps if isinstance(each, nn.Linear)]
    hidden = [np.maximum(stage.numpy().mean((2, 3)) @ weight.T + bias, 0) for stage, (weight, bias) in zip(stages, weights, strict=True)]
    expected = np.concatenate(hidden, 1) @ module.line.weight.detach().numpy()[0] + module.line.bias.item()
    np.testing.assert_allclose(module(stages).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_places_are_averaged_in_any_layout() -> None:
    maps = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = maps.mean((2, 3))
    for stage in (maps, maps.permute(0, 2, 3, 1), maps.flatten(2).transpose(1, 2), expected):
        torch.testing.assert_close(pooled(stage), expected)


def test_stages_are_seen_and_leave_no_hooks() -> None:
    network, x = small().eval(), torch.rand(3, 3, 8, 8)
    watched = Watched(network, ["0", "1.0"])
    output, stages = watched(x)
    torch.testing.assert_close(output, network(x))
    torch.testing.assert_close(stages, [network[0](x), network.get_submodule("1.0")(network[0](x))])
    assert widths_of(watched.train(), x) == [4, 6]
    assert watched.network.training
    assert not any(module._forward_hooks for module in network.modules())
    both = WithPredictedLoss(watched, LossPrediction([4, 6])).eval()
    assert both(x).shape == (3, 7)
    torch.testing.assert_close(both(x)[:, :6], network.eval()(x))
    torch.testing.assert_close(both(x)[:, 6], both.module(watched(x)[1]))


class Spots:
    """Dark or bright, by row."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, row: int, /) -> Image.Image:
        return Image.fromarray((np.random.default_rng(row).integers(0, 100, (12, 12, 3)) + 100 * (row % 2)).astype(np.uint8))


def tuned(recipe: Recipe | None, name: str = "small") -> Finetuned:
    how = Tuning(epochs=4, batch_size=8, learning_rate=1e-3, loss_prediction=recipe)
    encoder = build(name, 0, image_size=12)
    given: dict[str, Any] = {"classes": 2, "seed": 0, "workers": 0, "device": torch.device("cpu")}
    head = regression(Spots(), np.arange(21) % 2, encoder, batch_size=how.batch_size, **given)
    return finetune(Spots(), np.arange(21) % 2, encoder, head, how, **given)


def differing(first: nn.Module, second: nn.Module) -> int:
    return sum(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_encoder_learns_from_the_module_until_the_stated_epoch() -> None:
    alone, never, half, always = tuned(None), tuned(Recipe(cut=0.0)), tuned(Recipe(cut=0.5)), tuned(Recipe(cut=1.0))
    assert alone.loss_prediction is None
    assert never.loss_prediction is not None
    assert never.loss_prediction.widths == (16, 32, 64, 128)
    assert differing(alone.encoder, never.encoder) == 0  # cut off from the first epoch: as if it were not there
    assert (alone.head.weight == never.head.weight).all()
    assert differing(alone.encoder, half.encoder) > 0
    assert differing(half.encoder, always.encoder) > 0
    assert not any(module._forward_hooks for module in always.encoder.modules())


def test_equal_seeds_give_equal_modules() -> None:
    first, second = tuned(Recipe(), "bayesian-cnn"), tuned(Recipe(), "bayesian-cnn")
    assert first.loss_prediction is not None and second.loss_prediction is not None
    assert differing(first.loss_prediction, second.loss_prediction) == 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"cut": 1.5}, "cut is 1.5; expected 0 to 1, a share of the epochs"),
        ({"margin": 0.0}, "weight is 1.0 and margin 0.0; expected both above 0"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(knobs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Recipe(**knobs)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "the network names no stages whose outputs a loss could be predicted from; choose another encoder"),
        (["0", "layer4"], "the network has no module 'layer4'; it has 0, 1, 2, 3 and what is in them"),
    ],
)
def test_stages_that_are_not_there_are_refused(stages: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Watched(small(), stages)
    assert str(error.value) == message


def test_it_learns_the_order_of_losses_that_it_can_see() -> None:
    rng = torch.Generator().manual_seed(0)
    with seeded(0, "test"):
        module = LossPrediction([3, 3])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

    def batch(size: int) -> tuple[list[Tensor], Tensor]:
        x = torch.randn(size, 3, 2, 2, generator=rng)
        return [x, x.square()], x.square().mean((1, 2, 3))

    for _ in range(200):
        stages, losses = batch(64)
        optimizer.zero_grad()
        ranking_loss(module(stages), losses).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    stages, losses = batch(200)
    with torch.no_grad():
        predicted = module(stages)
    ranks = torch.stack([each.argsort().argsort().float() for each in (predicted, losses)])
    assert torch.corrcoef(ranks)[0, 1] > 0.95
