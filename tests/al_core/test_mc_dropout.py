"""Passes against torch's own dropout and against networks written out with their masks; what is computed once is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from al_core import Pool
from al_core.mc_dropout import McDropout, dropout_layers, mask, mc_heads, mc_passes
from al_core.passes import passes_of
from al_core.seeds import seeded

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Counted(nn.Module):
    """Says how often it was called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.inner(x)
        return out


class Branched(nn.Module):
    """Dropout in one of two branches, a layer used twice, and an output that is written into behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Counted(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
        self.drop = nn.Dropout2d(0.4)
        self.mix = Counted(nn.Conv2d(4, 4, 1))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        plain = self.mix(self.stem(x))
        dropped = self.mix(self.drop(plain))
        plain += dropped
        out: Tensor = self.head(plain)
        return out


def network() -> Branched:
    """With batch norm statistics that are not the initial ones."""
    with seeded(3, "test"):
        made = Branched()
        made.train()(torch.rand(32, 3, 8, 8))
    return made.eval()


def by_hand(made: Branched, x: Tensor, number: int, seed: int) -> Tensor:
    """One pass with shared masks, written out."""
    plain = made.mix.inner(made.stem.inner(x))
    channels = torch.from_numpy(mask((4, 1, 1), 0.4, seed, (number, 0)))
    together = plain + made.mix.inner(plain * channels)
    hidden = made.head[2](made.head[1](together.flatten(1)))
    dropped: Tensor = made.head[4](hidden * torch.from_numpy(mask((16,), 0.5, seed, (number, 1))))
    return dropped


@torch.no_grad()
def test_passes_are_the_network_with_its_masks_written_out() -> None:
    made = network()
    passes = list(mc_passes(made, X, passes=4, seed=7))
    expected = [by_hand(made, X.clone(), number, 7) for number in range(4)]
    torch.testing.assert_close(passes, expected, rtol=0, atol=1e-6)
    assert not torch.equal(passes[0], passes[1])


@torch.no_grad()
def test_what_comes_before_the_first_dropout_layer_is_computed_once() -> None:
    made = network()
    made.stem.calls = made.mix.calls = 0
    list(mc_passes(made, X, passes=5, seed=0))
    assert made.stem.calls == 1
    assert made.mix.calls == 1 + 5  # once before the dropout layer, then behind it in each pass

    layers = nn.Sequential(Counted(nn.Flatten()), Counted(nn.Linear(192, 8)), nn.Dropout(0.5), Counted(nn.Linear(8, 2)))
    list(mc_passes(layers, X, passes=5, seed=0))
    assert [layer.calls for layer in layers if isinstance(layer, Counted)] == [1, 1, 5]


@torch.no_grad()
def test_each_row_is_dropped_like_torchs_own_dropout() -> None:
    for kind, x in ((nn.Dropout, torch.ones(2000, 6)), (nn.Dropout2d, torch.ones(2000, 6, 2, 3)), (nn.Dropout1d, torch.ones(2000, 6, 3))):
        (ours,) = mc_passes(nn.Sequential(kind(0.3)), x, passes=1, seed=0, masks="fresh")
        with seeded(0, "test"):
            theirs = kind(0.3).train()(x)
        assert sorted(set(ours.flatten().tolist())) == pytest.approx(sorted(set(theirs.flatten().tolist())))
        share, expected = (ours == 0).float().mean().item(), (theirs == 0).float().mean().item()
        assert abs(share - 0.3) < 0.02 > abs(expected - 0.3)
        of_channel = ours.reshape(2000, 6, -1)
        assert torch.equal(of_channel, of_channel[:, :, :1].expand_as(of_channel))  # whole channels or none of them
        assert abs(np.corrcoef(of_channel[:, :, 0].numpy().T)[~np.eye(6, dtype=bool)]).max() < 0.1


@torch.no_grad()
def test_shared_masks_are_one_network_and_fresh_ones_many() -> None:
    made, alike = network(), X[:1].expand(6, 3, 8, 8).contiguous()
    for first in mc_passes(made, alike, passes=3, seed=0):
        torch.testing.assert_close(first, first[:1].expand_as(first))
    for first in mc_passes(made, alike, passes=3, seed=0, masks="fresh"):
        assert len(torch.unique(first, dim=0)) == 6


@torch.no_grad()
def test_shared_masks_do_not_depend_on_batches_and_fresh_ones_go_by_row() -> None:
    made = network()
    whole = torch.stack(list(mc_passes(made, X, passes=3, seed=0)))
    parts = [torch.stack(list(mc_passes(made, part, passes=3, seed=0))) for part in (X[:4], X[4:])]
    torch.testing.assert_close(whole, torch.cat(parts, 1))
    here, there = (next(mc_passes(made, X, passes=1, seed=0, masks="fresh", row=row)) for row in (0, 6))
    assert not torch.equal(here, there)


@torch.no_grad()
def test_the_network_is_left_as_it_was_and_no_global_generator_moves() -> None:
    made = network()
    before, state = made(X), torch.get_rng_state()
    statistics = {name: value.clone() for name, value in made.state_dict().items()}
    passes = mc_passes(made, X, passes=3, seed=0)
    next(passes)
    assert torch.equal(made(X), before)  # also between two passes
    list(passes)
    assert torch.equal(made(X), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, statistics[name]) for name, value in made.state_dict().items())
    assert not any("forward" in vars(module) for module in made.modules())


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_drops_what_the_cpu_drops(gpu: str) -> None:
    here = torch.stack(list(mc_passes(network(), X, passes=3, seed=0)))
    there = torch.stack(list(mc_passes(network().to(gpu), X.to(gpu), passes=3, seed=0)))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        next(mc_passes(nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2)), X, passes=2, seed=0))
    assert str(error.value) == "the network has no dropout layer, so all its passes are alike; build one with dropout, or draw heads with mc_heads"
    with pytest.raises(ValueError) as error:
        dropout_layers(nn.Sequential(nn.AlphaDropout(0.1)))
    assert str(error.value) == "layer 0 is AlphaDropout; passes are drawn with Dropout, Dropout1d, Dropout2d and Dropout3d alone"


# ---- draws of a linear head ------------------------------------------------------------------------------------------------------


def linear(dim: int = 40, classes: int = 3) -> nn.Linear:
    with seeded(1, "test"):
        return nn.Linear(dim, classes)


@torch.no_grad()
def test_draws_of_the_head_are_the_passes_of_the_head_behind_a_dropout_layer() -> None:
    head, x = linear(), torch.randn(9, 40, generator=torch.Generator().manual_seed(1))
    weight, bias = mc_heads(head.weight.numpy(), head.bias.numpy(), passes=20, dropout=0.25, seed=5)
    pool = Pool(embeddings=x.numpy(), mc_heads=(weight, bias))
    drawn = torch.stack([torch.from_numpy(p) for p in passes_of(pool).of(np.arange(9))], 1)
    passes = McDropout(nn.Sequential(nn.Dropout(0.25), head), passes=20, seed=5)(x)
    torch.testing.assert_close(drawn.float(), passes, rtol=0, atol=1e-6)
    assert passes.shape == (9, 20, 3)


def test_each_draw_drops_whole_columns_and_all_together_give_the_head_back() -> None:
    head = linear()
    weight, bias = mc_heads(head.weight.detach().numpy(), head.bias.detach().numpy(), passes=4000, dropout=0.25, seed=0)
    scale = weight / head.weight.detach().numpy()
    np.testing.assert_allclose(scale, np.broadcast_to(scale[:, :1], scale.shape), rtol=1e-5)
    np.testing.assert_allclose(np.unique(scale[:, 0].round(4)), [0, 1.3333])
    assert abs((scale[:, 0] == 0).mean() - 0.25) < 0.01
    np.testing.assert_allclose(weight.mean(0), head.weight.detach().numpy(), atol=0.01)
    assert (bias == head.bias.detach().numpy()).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": 1}, "passes is 1; passes can disagree only if there are at least 2"),
        ({"dropout": 0.0}, "dropout is 0.0; expected above 0 and below 1"),
        ({"dropout": 1.0}, "dropout is 1.0; expected above 0 and below 1"),
    ],
)
def test_draws_that_cannot_disagree_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as error:
        mc_heads(np.ones((2, 3), np.float32), np.zeros(2, np.float32), **{"passes": 5, "dropout": 0.5, "seed": 0} | changes)  # type: ignore[arg-type]
    assert str(error.value) == message
