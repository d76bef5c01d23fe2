"""The loop: what a run depends on and what not, cut off and resumed, alone and shared, and how it ends when it goes wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from al_core.encoders import Encoder, build
from al_core.pretraining import METHODS
from al_core.pretraining import build as build_method
from al_core.pretraining.augment import Augment
from al_core.pretraining.train import CollapseError, Epoch, Plan, Recipe, Training, along_cosine, optimizer_of, train
from al_core.processes import ALONE, Processes

from .test_objectives import QUEUE, SMALL

CPU = torch.device("cpu")
N = 20


class Noise:
    """Coarse patterns, so that crops of one image resemble each other."""

    def __init__(self, n: int = N) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int, /) -> Image.Image:
        coarse = np.random.default_rng(row).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((10, 10), Image.Resampling.BILINEAR)


class KilledError(Exception):
    """Stands for a kill: nothing after it runs."""


class Memory:
    """A store that keeps copies, and that can be told when a run dies."""

    def __init__(self, *, always: bool = False, die_after: int | None = None) -> None:
        self.state: dict[str, Any] | None = None
        self.always, self.die_after, self.saves = always, die_after, 0

    def load(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.state)

    def due(self) -> bool:
        return self.always

    def save(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(state)
        self.saves += 1
        if self.saves == self.die_after:
            raise KilledError


def pretrained(method: str = "simclr", images: Any = None, **changes: Any) -> tuple[Encoder, list[Epoch]]:
    """An encoder after a short training, and its curve."""
    curve: list[Epoch] = []
    it = build_method(method, changes.pop("params", SMALL[method]))
    more: dict[str, Any] = {"seed": 0, "workers": 0, "device": CPU}
    more |= {key: changes.pop(key) for key in list(changes) if key in ("seed", "workers", "labels", "processes", "store", "device")}
    encoder = changes.pop("encoder", None) or build("small", 0, image_size=8)
    recipe = Recipe(**{"epochs": 2, "batch_size": 6, "learning_rate": 1e-3} | changes)
    size = encoder.image_size
    train(
        images or Noise(),
        it.over(encoder, epochs=recipe.epochs, seed=more["seed"]),
        recipe,
        views=it.views(size, 0.4, Augment()),
        source_size=size,
        on_epoch=curve.append,
        **more,
    )
    return encoder, curve


def same(one: Encoder, other: Encoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def plain(curve: list[Epoch]) -> list[tuple[int, float, float]]:
    return [(each.number, each.loss, each.learning_rate) for each in curve]


def test_the_loss_falls() -> None:
    _, curve = pretrained(epochs=15, batch_size=20, learning_rate=3e-3, params={"temperature": 0.2})
    assert [each.number for each in curve] == list(range(1, 16))
    assert curve[-1].loss < curve[0].loss - 0.3


@pytest.mark.parametrize("method", ["dino", "swav"])
@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"])
def test_transformers_see_small_views_beside_large_ones(method: str, name: str) -> None:
    """They have a place for each part of an image of one size; small views have fewer parts."""
    begun = build(name, 0, image_size=64)
    encoder, curve = pretrained(
        method, images=Noise(4), encoder=build(name, 0, image_size=64), params=SMALL[method] | {"local_size": 32}, epochs=1, batch_size=4
    )
    assert math.isfinite(curve[0].loss)
    assert not same(encoder, begun)


def test_an_encoder_that_does_not_take_small_views_is_refused_before_anything_is_trained() -> None:
    """The default of 3/7 of a large view is no multiple of a ViT's patch."""
    message = (
        "^encoder 'vit_b_16', made for images of 64 px, does not take views of 32 px: .*[^.]; set local_size in pretrain.objective to what it takes "
        r"\(a ViT of timm's: a multiple of its patch\), or local_views to 0$"
    )
    with pytest.raises(ValueError, match=message):
        pretrained("dino", encoder=build("vit_b_16", 0, image_size=64), params=SMALL["dino"] | {"local_size": 32})
    with pytest.raises(ValueError, match=r"does not take views of 27 px: .* divisible by patch size .*; set local_size"):
        pretrained("dino", encoder=build("timm/vit_tiny_patch16_224", 0, image_size=64), params=SMALL["dino"] | {"local_size": None})


def test_equal_seeds_give_equal_weights_with_any_number_of_workers() -> None:
    before = torch.get_rng_state()
    first, curve = pretrained()
    assert torch.equal(before, torch.get_rng_state()), "it drew from the global generator"
    second, again = pretrained(workers=2)
    other, _ = pretrained(seed=1)
    assert same(first, second)
    assert plain(curve) == plain(again)
    assert not same(first, other)
    assert not first.training


def test_the_threads_of_the_caller_do_not_matter() -> None:
    weights = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        weights.append(pretrained()[0])
    torch.set_num_threads(before)
    assert same(*weights)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_a_run_that_is_killed_anywhere_ends_as_one_that_is_not(method: str, optimizer: str) -> None:
    """KilledError after each of its saves in turn, and started again each time."""
    options = {"optimizer": optimizer, "accumulate": 2, "batch_size": 8, "weight_decay_end": 0.1, "clip": 1.0}
    whole, curve = pretrained(method, **options)
    kept = Memory(always=True, die_after=1)
    deaths = 0
    while True:
        try:
            again, resumed = pretrained(method, store=kept, **options)
            break
        except KilledError:
            deaths += 1
            kept.saves = 0
    assert deaths == 4  # 2 epochs of 2 steps
    assert same(whole, again)
    assert plain(resumed) == plain(curve)
    assert [each.resumed for each in resumed] == [True, True]


def test_a_state_is_kept_at_the_end_of_each_epoch_and_when_it_is_due() -> None:
    seldom, often = Memory(), Memory(always=True)
    pretrained(store=seldom, epochs=3)
    pretrained(store=often, epochs=3)
    assert (seldom.saves, often.saves) == (3, 9)  # 3 steps an epoch


def test_a_batch_is_cut_to_the_pool() -> None:
    whole, _ = pretrained(batch_size=20)
    cut, _ = pretrained(batch_size=4096)
    assert same(whole, cut)


def test_parts_of_a_step_add_up() -> None:
    """Without batch norm and contrasts, the gradient of a batch is the mean over its parts'."""

    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Flatten()
            self.weight = torch.nn.Parameter(torch.zeros(3 * 8 * 8))
            self.gradients: list[Tensor] = []

        def forward(self, views: list[Tensor]) -> Tensor:
            found: Tensor = (self.encoder(views[0]) @ self.weight).mean()
            return found

        def before_step(self) -> None:
            assert self.weight.grad is not None
            self.gradients.append(self.weight.grad.clone())

        def after_step(self) -> None: ...

    views = [torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    found = []
    for parts in (1, 4):
        it = Sum()
        recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.1, accumulate=parts)
        run = Training(it, recipe, Plan.of(8, recipe, ALONE), CPU, ALONE)  # type: ignore[arg-type]
        for part in views[0].chunk(parts):
            run.learn([part], seed=0)
        assert len(it.gradients) == 1
        found.append(it.gradients[0])
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_a_plan_covers_every_epoch_in_a_new_order() -> None:
    plan = Plan.of(23, Recipe(epochs=3, batch_size=8, learning_rate=1, accumulate=2), ALONE)
    picks = list(plan.picks(0, seed=5))
    assert (plan.part_size, plan.parts_an_epoch, plan.parts) == (4, 4, 12)
    assert [len(part) for part in picks] == [4] * 12
    orders = [[row for part in picks[4 * epoch : 4 * epoch + 4] for _, row in part] for epoch in range(3)]
    assert all(len(set(order)) == 16 and max(order) < 23 for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert [{epoch for epoch, _ in part} for part in picks] == [{1}] * 4 + [{2}] * 4 + [{3}] * 4
    assert list(plan.picks(6, seed=5)) == picks[6:]


class Two:
    """A group as a plan sees it."""

    def __init__(self, rank: int) -> None:
        self.at = rank

    def size(self) -> int:
        return 2

    def rank(self) -> int:
        return self.at


def test_processes_share_the_batches_of_one() -> None:
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=1)
    one = list(Plan.of(20, recipe, ALONE).picks(0, seed=5))
    two = [list(Plan.of(20, recipe, Processes(Two(rank))).picks(0, seed=5)) for rank in range(2)]  # type: ignore[arg-type]
    assert [first + second for first, second in zip(*two, strict=True)] == one


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (1, {}, "pretraining got 1 images and takes at least 2; give more, or set pretrain.method to none"),
        (7, {"accumulate": 4, "batch_size": 8}, "pretraining got 7 images and takes at least 8; give more, or set pretrain.method to none"),
        (
            20,
            {"accumulate": 4, "batch_size": 10},
            "pretrain.batch_size is 10, which 4 parts (pretrain.accumulate) of 1 processes (pretrain.launch) cannot share evenly; make it a multiple of 4",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(images: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        pretrained(images=Noise(images), **changes)
    assert str(caught.value) == message


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    """12 steps, of which 4 rise to 1e-3, from which it falls to 1e-4."""
    _, curve = pretrained(epochs=3, batch_size=5, learning_rate_end=1e-4)
    expected = [1e-3 * (step + 1) / 4 for step in range(4)] + [1e-4 + 9e-4 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert [each.learning_rate for each in curve] == [pytest.approx(expected[step]) for step in (3, 7, 11)]
    assert along_cosine(0.04, 0.4, 0.25) == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi / 4)) / 2)


def test_a_rise_over_part_of_an_epoch_stops_at_the_peak() -> None:
    recipe = Recipe(epochs=2, batch_size=2, learning_rate=1.0, warmup_epochs=0.5)
    run = Training(build_method("simclr", {}).over(build("small", 0), epochs=2, seed=0), recipe, Plan.of(14, recipe, ALONE), CPU, ALONE)
    assert [run.rate(step / 14) for step in range(4)] == pytest.approx([2 / 7, 4 / 7, 6 / 7, 1.0])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_only_matrices_decay(name: Any) -> None:
    """With no gradient to speak of, decay is all that moves weights."""
    linear = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(linear.bias)
    layer = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(2))
    optimizer = optimizer_of(layer, Recipe(epochs=1, batch_size=2, learning_rate=0.1, weight_decay=0.5, optimizer=name))
    before = copy.deepcopy(layer.state_dict())
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    optimizer.step()
    after = layer.state_dict()
    assert not torch.equal(before["0.weight"], after["0.weight"])
    if name != "adamw":  # which moves by the sign of the gradient, however small
        assert torch.allclose(before["0.bias"], after["0.bias"], atol=1e-5)
        assert torch.allclose(before["1.weight"], after["1.weight"], atol=1e-5)


def test_labels_are_watched_and_never_trained_on() -> None:
    labels = np.arange(N) % 2
    labels[3] = -1
    without, _ = pretrained()
    watched, curve = pretrained(labels=labels)
    assert same(without, watched)
    assert all(each.health.probe is not None and 0 <= each.health.probe <= 1 for each in curve)


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_state() -> None:
    kept = Memory(always=True)
    with pytest.raises(ValueError, match=r"^the loss of epoch 1 is nan; lower pretrain.learning_rate \(now 1e\+30\)$"):
        pretrained(learning_rate=1e30, store=kept)
    assert kept.state is None or all(value.isfinite().all() for value in kept.state["objective"].values() if value.is_floating_point())


def test_an_encoder_that_collapses_is_said_so() -> None:
    """VICReg without what keeps dimensions apart: all embeddings become one."""
    params = {"variance": 0.0, "covariance": 0.0, "projection": 4}
    with pytest.raises(CollapseError) as caught:
        pretrained("vicreg", epochs=150, batch_size=20, learning_rate=0.05, params=params)
    text = str(caught.value)
    assert text.startswith("the training has collapsed in epoch ")
    assert "an effective rank of" in text
    assert "lower pretrain.learning_rate (now 0.05)" in text


def test_bfloat16_trains_nearly_alike() -> None:
    _, full = pretrained()
    _, half = pretrained(precision="bfloat16")
    assert plain(half) != plain(full)
    assert half[-1].loss == pytest.approx(full[-1].loss, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_trains_the_same_twice_and_begins_as_a_cpu_does(method: str, gpu: str) -> None:
    """The first step's loss differs by rounding alone, of factors of convolutions too (TF32); from then on the weights part."""
    device = torch.device(gpu)
    first, _ = pretrained(method, device=device)
    again, _ = pretrained(method, device=device)
    assert same(first, again)
    step = {"epochs": 1, "batch_size": N}
    on_gpu, on_cpu = (pretrained(method, device=each, **step)[1][0].loss for each in (device, CPU))
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)


@pytest.mark.slow
def test_compiled_it_trains_nearly_alike() -> None:
    _, plain_run = pretrained()
    _, compiled = pretrained(compile=True)
    assert compiled[-1].loss == pytest.approx(plain_run[-1].loss, rel=1e-3)


# ---- several processes -----------------------------------------------------------------------------------------------------

SHARED: dict[str, Any] = {"epochs": 3, "batch_size": 8, "accumulate": 2}
SHARED_METHODS = ("simclr", "mocov2", "swav")


def shared_params(method: str) -> dict[str, Any]:
    """Of the method, with memories of earlier batches."""
    return {"params": SMALL[method] | (QUEUE if method == "swav" else {})}


def shared(rank: int) -> dict[str, tuple[list[tuple[int, float, float]], dict[str, Tensor]]]:
    """Curves and weights of runs that two processes share; one of them is killed and resumed."""
    group = Processes(torch.distributed.group.WORLD)
    found = {}
    for method in SHARED_METHODS:
        encoder, curve = pretrained(method, processes=group, **SHARED | shared_params(method))
        found[method] = plain(curve), encoder.state_dict()
    kept = Memory()
    pretrained("simclr", processes=group, store=kept, **SHARED | {"epochs": 3})
    first = kept.state
    assert (first is None) == (rank > 0), "the first process keeps the state"
    encoder, curve = pretrained("simclr", processes=group, store=kept, **SHARED)
    found["resumed"] = plain(curve), encoder.state_dict()
    return found


def test_two_processes_train_as_one(two_processes: Callable[..., list[Any]]) -> None:
    halves = two_processes(shared)
    for method in SHARED_METHODS:
        encoder, curve = pretrained(method, **SHARED | shared_params(method))
        for losses, weights in (half[method] for half in halves):
            assert [each[0] for each in losses] == [1, 2, 3]
            assert [each[1] for each in losses] == pytest.approx([each.loss for each in curve], rel=2e-3)
            for key, value in encoder.state_dict().items():
                assert torch.allclose(weights[key].double(), value.double(), rtol=0.05, atol=5e-3), (method, key)
        assert all(torch.equal(one, other) for one, other in zip(halves[0][method][1].values(), halves[1][method][1].values(), strict=True))
    for half in halves:
        assert half["resumed"][0] == half["simclr"][0]
        assert all(torch.equal(one, other) for one, other in zip(half["resumed"][1].values(), half["simclr"][1].values(), strict=True))
