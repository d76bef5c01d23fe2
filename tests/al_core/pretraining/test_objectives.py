"""Each method's loss by its paper's formula in float64, written out; what follows a schedule; and what several processes make of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from al_core.encoders import Encoder
from al_core.pretraining import METHODS, build
from al_core.pretraining.augment import Augment
from al_core.pretraining.dino import Distilled
from al_core.pretraining.mocov2 import Queued
from al_core.pretraining.objective import Objective, enter
from al_core.pretraining.swav import Swapped

Array = npt.NDArray[np.float64]

DIM, SIZE, B = 12, 8, 6
SMALL: dict[str, dict[str, Any]] = {  # parameters that take milliseconds
    "simclr": {"temperature": 0.3, "projection": 5},
    "mocov2": {"queue": 9, "projection": 5, "momentum": 0.9},
    "vicreg": {"projection": 7},
    "barlow-twins": {"projection": 7},
    "dino": {"prototypes": 11, "hidden": 10, "local_views": 2, "local_size": 4, "teacher_temperature": 0.07, "teacher_warmup_epochs": 4},
    "swav": {"prototypes": 7, "projection": 5, "local_views": 2, "local_size": 4},
}


QUEUE: dict[str, Any] = {"queue": 8, "queue_from": 1}


def encoder() -> Encoder:
    """Without batch norm, so that what it makes of an image depends on that image alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, DIM, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DIM, DIM))
        return Encoder("small", DIM, body)


def objective(name: str, **changes: Any) -> Objective:
    return build(name, SMALL[name] | changes).over(encoder(), epochs=10, seed=0).train()


def views(name: str, seed: int = 0, size: int = B) -> list[Tensor]:
    """Noise, in a colour for each view: after pooling, noise alone would differ too little for a gradient to be more than rounding."""
    kinds = build(name, SMALL[name]).views(SIZE, 0.3, Augment())
    rng = np.random.default_rng(seed)
    made = []
    for each in (kind for kind in kinds for _ in range(kind.count)):
        colour = rng.random((size, 3, 1, 1), dtype=np.float32)
        made.append(torch.from_numpy(colour * rng.random((size, 3, each.size, each.size), dtype=np.float32)))
    return made


def projected(it: Any, x: list[Tensor]) -> list[Array]:
    """What the heads make of views of one size, which they see in one batch."""
    with torch.no_grad():
        made: Tensor = it.head(it.encoder(torch.cat(x)))
    return [each.double().numpy() for each in made.chunk(len(x))]


def unit(x: Array) -> Array:
    directions: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return directions


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Array = e / e.sum(axis=-1, keepdims=True)
    return shares


def test_simclr_is_its_formula() -> None:
    """l(i, j) = -log exp(s_ij / t) / sum over k != i of exp(s_ik / t), with s the cosine; the mean over both orders of all pairs."""
    it, x = objective("simclr"), views("simclr")
    z = unit(np.concatenate(projected(it, x)))
    losses = []
    for i in range(2 * B):
        others = [math.exp(float(z[i] @ z[k]) / 0.3) for k in range(2 * B) if k != i]
        losses.append(-math.log(math.exp(float(z[i] @ z[(i + B) % (2 * B)]) / 0.3) / sum(others)))
    assert it(x).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_mocov2_is_its_formula_and_its_queue_forgets_the_oldest() -> None:
    it = objective("mocov2")
    assert isinstance(it, Queued)
    before = it.queue.double().numpy().copy()
    first, second = views("mocov2")
    q = unit(projected(it, [first])[0])
    with torch.no_grad():
        k = unit(it.key_head(it.key_encoder(second)).double().numpy())
    losses = [-np.log(softmax(np.concatenate([[q[i] @ k[i]], before @ q[i]]) / 0.2)[0]) for i in range(B)]
    assert it([first, second]).item() == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_allclose(it.queue.numpy(), np.concatenate([k, before[B:]]), atol=1e-6)
    it([second, first])  # the queue of 9 holds the last 3 of the first batch and the 6 of the second
    kept = {tuple(np.round(row, 4)) for row in it.queue.numpy().astype(float)}
    assert {tuple(np.round(row, 4)) for row in k[3:]} <= kept
    assert not {tuple(np.round(row, 4)) for row in k[:3]} & kept


def test_more_keys_than_the_queue_holds_leave_the_last() -> None:
    queue, entered = torch.zeros(4, 5), torch.tensor(0)
    enter(queue, entered, torch.arange(6.0)[:, None].expand(6, 5))
    assert queue[:, 0].tolist() == [2, 3, 4, 5]
    enter(queue, entered, torch.full((1, 5), 6.0))
    assert queue[:, 0].tolist() == [6, 3, 4, 5]


def test_the_copy_of_mocov2_follows() -> None:
    it = objective("mocov2")
    assert isinstance(it, Queued)
    theirs, ours = next(it.key_encoder.parameters()).clone(), next(it.encoder.parameters())
    with torch.no_grad():
        ours.add_(1)
    it.after_step()
    assert torch.allclose(next(it.key_encoder.parameters()), 0.9 * theirs + 0.1 * ours)
    assert not any(parameter.requires_grad for parameter in it.key_encoder.parameters())


def test_vicreg_is_its_formula() -> None:
    it, x = objective("vicreg"), views("vicreg")
    a, b = projected(it, x)
    d = a.shape[1]
    invariance = ((a - b) ** 2).mean()
    variance = sum(np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4)).mean() for z in (a, b)) / 2
    covariance = 0.0
    for z in (a, b):
        c = np.cov(z.T)
        covariance += sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    assert it(x).item() == pytest.approx(25 * invariance + 25 * variance + covariance, rel=1e-4)


def test_barlow_twins_is_its_formula() -> None:
    it, x = objective("barlow-twins"), views("barlow-twins")
    a, b = ((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5) for z in projected(it, x))
    c = a.T @ b / B
    d = len(c)
    on = sum((c[i, i] - 1) ** 2 for i in range(d))
    off = sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
    assert it(x).item() == pytest.approx(on + 0.005 * off, rel=1e-4)
    assert objective("barlow-twins", scale=0.024)(x).item() == pytest.approx(0.024 * (on + 0.005 * off), rel=1e-4)


def test_dino_is_its_formula_and_moves_its_centre() -> None:
    it, x = objective("dino"), views("dino")
    assert isinstance(it, Distilled)
    it.share = 0.2  # epoch 2 of 10, half of the warm-up from 0.04 to 0.07
    center = np.linspace(-0.1, 0.1, 11)
    it.criterion.center.copy_(torch.from_numpy(center))
    teacher = projected(it, x[:2])  # as yet a copy of the student
    student = projected(it, x[:2]) + projected(it, x[2:])
    losses = [-(softmax((teacher[t] - center) / 0.055) * np.log(softmax(student[s] / 0.1))).sum(axis=1).mean() for t in range(2) for s in range(4) if s != t]
    assert it(x).item() == pytest.approx(np.mean(losses), rel=1e-4)
    np.testing.assert_allclose(it.criterion.center.flatten(), 0.9 * center + 0.1 * np.concatenate(teacher).mean(axis=0), atol=1e-6)


def test_dino_follows_its_schedules() -> None:
    it = objective("dino")
    assert isinstance(it, Distilled)
    seen = []
    for share in (0.0, 0.1, 0.4, 1.0):
        it.share = share
        seen.append((it.teacher_temperature, it.momentum))
    temperatures, momenta = zip(*seen, strict=True)
    assert temperatures == pytest.approx((0.04, 0.0475, 0.07, 0.07))
    assert momenta == pytest.approx((0.996, 1 - 0.004 * (1 + math.cos(0.1 * math.pi)) / 2, 1 - 0.004 * (1 + math.cos(0.4 * math.pi)) / 2, 1.0))


@pytest.mark.parametrize(("name", "held"), [("dino", "head.last_layer"), ("swav", "prototypes")])
def test_the_last_layer_is_held_for_the_first_epoch(name: str, held: str) -> None:
    it = objective(name)
    for share, waits in ((0.0, True), (0.09, True), (0.1, False)):
        it.zero_grad()
        it.share = share
        it(views(name)).backward()
        it.before_step()
        gradients = {key: parameter.grad is not None for key, parameter in it.named_parameters() if parameter.requires_grad}
        assert {key for key, there in gradients.items() if not there} == ({key for key in gradients if key.startswith(held)} if waits else set())


def test_an_epoch_is_over_when_its_last_step_is() -> None:
    """Whatever 1 / 49 is in floating point."""
    it = objective("simclr")
    for epochs in (1, 3, 49, 800):
        for steps in (1, 7, 313):
            for done in range(epochs):
                it.share = done * steps / (epochs * steps)
                assert it.epochs_done(epochs) == done
                it.share = (done * steps + steps - 1) / (epochs * steps)
                assert it.epochs_done(epochs) == done


def sinkhorn(scores: Array, epsilon: float, iterations: int) -> Array:
    """(b, prototypes) assignments: rows sum to 1, and columns to b / prototypes, more exactly with each iteration."""
    q = np.exp(scores / epsilon)
    for _ in range(iterations):
        q = q / q.sum(axis=0) / q.shape[1]
        q = q / q.sum(axis=1, keepdims=True) / len(q)
    return q * len(q)


def test_swav_is_its_formula() -> None:
    it, x = objective("swav"), views("swav")
    assert isinstance(it, Swapped)
    prototypes = it.prototypes.weight.detach().double().numpy()
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1, atol=1e-6)
    scores = [unit(z) @ prototypes.T for z in projected(it, x[:2]) + projected(it, x[2:])]
    losses = []
    for i in range(2):
        q = sinkhorn(scores[i], 0.05, 3)
        losses += [-(q * np.log(softmax(scores[v] / 0.1))).sum(axis=1).mean() for v in range(4) if v != i]
    assert it(x).item() == pytest.approx(np.mean(losses), rel=1e-4)
    with torch.no_grad():
        it.prototypes.weight.mul_(3)
    it.after_step()
    np.testing.assert_allclose(np.linalg.norm(it.prototypes.weight.detach(), axis=1), 1, atol=1e-6)


def test_swav_assigns_a_batch_with_the_images_before_it() -> None:
    """The queue of 8 holds all of the second batch and the last two of the first; it counts when it is full and an epoch is over."""
    it, batches = objective("swav", **QUEUE), [views("swav", seed) for seed in range(4)]
    assert isinstance(it, Swapped)
    prototypes = it.prototypes.weight.detach().double().numpy()
    scores = [[unit(z) @ prototypes.T for z in projected(it, x[:2]) + projected(it, x[2:])] for x in batches]

    def by_formula(now: int, earlier: list[int]) -> float:
        losses = []
        for i in range(2):
            rows = [scores[now][i], *(scores[batch][i] for batch in earlier)]
            q = sinkhorn(np.concatenate(rows)[: B + 8 if earlier else B], 0.05, 3)[:B]
            losses += [-(q * np.log(softmax(scores[now][v] / 0.1))).sum(axis=1).mean() for v in range(4) if v != i]
        return float(np.mean(losses))

    it.share = 0.2
    for now in range(2):  # not full
        assert it(batches[now]).item() == pytest.approx(by_formula(now, []), rel=1e-4)
    scores[0] = [each[-2:] for each in scores[0]]
    assert it(batches[2]).item() == pytest.approx(by_formula(2, [1, 0]), rel=1e-4)
    assert by_formula(2, [1, 0]) != pytest.approx(by_formula(2, []), rel=1e-3)
    it.share = 0.09
    assert it(batches[3]).item() == pytest.approx(by_formula(3, []), rel=1e-4)
    assert not it.queue.requires_grad


def test_a_queue_that_would_never_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^queue_from is 15 and there are 10 epochs, so that the queue would never count; lower it, or set queue to 0$"):
        objective("swav", queue=8)


@pytest.mark.parametrize("name", METHODS)
def test_heads_come_from_the_seed(name: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (build(name, SMALL[name]).over(encoder(), epochs=10, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_lowers_the_loss(name: str) -> None:
    """Of these views, by plain gradient descent: the sign of every gradient is right."""
    it, x = objective(name), views(name)
    it.share = 0.5
    losses = []
    for _ in range(20):
        state = copy.deepcopy({key: value for key, value in it.state_dict().items() if key in ("queue", "entered", "criterion.center")})
        it.zero_grad()
        loss = it(x)
        losses.append(loss.item())
        loss.backward()
        it.load_state_dict(it.state_dict() | state)
        with torch.no_grad():
            for parameter in it.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_small_crops_are_of_what_a_large_one_may_leave_out(name: str) -> None:
    kinds = build(name, {}).views(224, 0.3, Augment(solarize=0.2))
    *large, local = kinds
    assert [(each.size, each.area) for each in large] == [(224, (0.3, 1.0))] * len(large)
    assert (local.size, local.area, local.augment.solarize) == (96, (0.05, 0.3), 0.0)
    assert sum(each.count for each in large) == 2
    assert build(name, {"local_views": 0}).views(224, 0.3, Augment()) == [*build(name, {}).views(224, 0.3, Augment())][: len(large)]


@pytest.mark.parametrize("name", ["vicreg", "barlow-twins", "dino"])
def test_the_second_view_alone_is_solarised(name: str) -> None:
    first, second, *_ = build(name, {}).views(32, 0.3, Augment(solarize=0.2))
    assert (first.augment.solarize, second.augment.solarize) == (0.0, 0.2)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("simlcr", {}, "unknown self-supervised method 'simlcr'; did you mean 'simclr'?"),
        ("simclr", {"temprature": 1.0}, "simclr has no parameter 'temprature'; did you mean 'temperature'?"),
        ("simclr", {"temperature": "cold"}, "simclr.temperature is 'cold'; expected float"),
        ("simclr", {"temperature": 0}, "simclr: temperature is 0.0; expected above 0"),
        ("mocov2", {"queue": 0}, "mocov2: queue is 0; expected at least 1"),
        ("mocov2", {"momentum": 1.5}, "mocov2: momentum is 1.5; expected 0 to 1"),
        ("vicreg", {"variance": -1.0}, "vicreg: variance is -1.0; expected at least 0"),
        ("barlow-twins", {"projection": 1}, "barlow-twins: projection is 1; expected at least 2"),
        ("barlow-twins", {"scale": 0}, "barlow-twins: scale is 0.0; expected above 0"),
        ("dino", {"local_size": -3}, "dino: local_size is -3; expected above 0"),
        ("swav", {"prototypes": 1}, "swav: prototypes is 1; expected at least 2"),
    ],
)
def test_bad_parameters_are_refused(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(name, params)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_says_what_it_means(name: str) -> None:
    from al_core.registry import fits, parameters_of

    for each in parameters_of(METHODS[name]):
        assert each.meaning, each.name
        assert fits(each.default, each.type), each.name


# ---- several processes -----------------------------------------------------------------------------------------------------


Shares = dict[str, tuple[float, dict[str, Tensor], dict[str, Tensor]]]


@pytest.fixture(scope="module")
def shares(two_processes: Callable[..., list[Shares]]) -> list[Shares]:
    """What two processes have of each method."""
    return two_processes(shares_of)


def shares_of(rank: int) -> Shares:
    """Of each method, loss, gradients and state after two batches, of which this process has its half."""
    return {name: after_two_batches(name, slice(3 * rank, 3 * rank + 3)) for name in METHODS}


def after_two_batches(name: str, part: slice) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss and gradients of the second, and the state that it leaves."""
    it = without_batch_norm(objective(name))
    it.share = 0.5
    for seed in (0, 1):
        it.zero_grad()
        loss = it([view[part] for view in views(name, seed)])
        loss.backward()
    return loss.item(), {key: parameter.grad for key, parameter in it.named_parameters() if parameter.grad is not None}, it.state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_have_the_loss_the_gradient_and_the_memory_of_one(name: str, shares: list[Shares]) -> None:
    loss, gradients, state = after_two_batches(name, slice(None))
    assert np.mean([share[name][0] for share in shares]) == pytest.approx(loss, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert largest > 1e-3, "zeros would prove nothing"
    for key, gradient in gradients.items():
        mean = torch.stack([share[name][1][key] for share in shares]).mean(dim=0)
        assert torch.allclose(mean, gradient, rtol=1e-3, atol=3e-5 * largest), key
    for key, value in state.items():
        for share in shares:
            assert torch.allclose(share[name][2][key].double(), value.double(), atol=1e-5), key


def without_batch_norm(it: Objective) -> Objective:
    """Heads of this test do without; how several processes share its statistics is tested beside it."""
    for parent in list(it.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, nn.Identity())
    return it
