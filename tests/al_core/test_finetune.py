from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from al_core.encoders import build
from al_core.features import features
from al_core.finetune import Finetuned, Jitter, Tuning, finetune, regression
from al_core.linear import Linear, fit
from al_core.loading import Square, in_order, load

LABELS = np.arange(24) % 2 * 2  # class 1 has no examples
HOW = Tuning(epochs=3, batch_size=10, learning_rate=1e-3)


class Stripes:
    """Horizontal for label 0, vertical for label 2, with noise."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, row: int, /) -> Image.Image:
        pattern = np.tile(np.arange(12)[:, None] % 4 < 2, (1, 12))
        noise = np.random.default_rng(row).integers(0, 100, (12, 12, 3))
        striped = np.where(pattern.T if LABELS[row] else pattern, 155, 0)[:, :, None]
        return Image.fromarray((striped + noise).astype(np.uint8))


def tune(how: Tuning = HOW, l2: float | None = 1e-3, head: Linear | None = None, **changes: Any) -> Finetuned:
    on_epoch = changes.pop("on_epoch", lambda epoch, loss, rate: None)
    given: dict[str, Any] = {"images": Stripes(), "labels": LABELS, "encoder": build("small", 0, image_size=12), "classes": 3}
    given |= {"seed": 0, "workers": 0, "device": torch.device("cpu")} | changes
    return finetune(how=how, head=head or regression(batch_size=how.batch_size, l2=l2, **given), on_epoch=on_epoch, **given)


def logits(result: Finetuned) -> torch.Tensor:
    batch = next(load(Stripes(), in_order(range(24), 24), Square(12), seed=0, workers=0)).float() / 255
    with torch.no_grad():
        features = result.encoder.eval()(batch)
    scores: torch.Tensor = features @ torch.from_numpy(result.head.weight).T + torch.from_numpy(result.head.bias)
    return scores


def test_it_learns_what_it_is_shown() -> None:
    losses: list[float] = []
    result = tune(replace(HOW, epochs=10, learning_rate=3e-3), on_epoch=lambda epoch, loss, rate: losses.append(loss))
    assert (logits(result).argmax(1).numpy() == LABELS).all()
    assert losses[-1] < 0.5 * losses[0]


def test_it_starts_from_the_logistic_regression() -> None:
    encoder = build("small", 0, image_size=12)
    x = np.concatenate(list(features(Stripes(), encoder, image_size=12, batch_size=24, workers=0, device=torch.device("cpu"))))
    expected = fit(x, LABELS, 3, l2=0.5)
    head = tune(replace(HOW, epochs=1, learning_rate=1e-12), encoder=encoder, l2=0.5).head
    np.testing.assert_allclose(head.weight, expected.weight, atol=1e-6)
    np.testing.assert_allclose(head.bias, expected.bias, atol=1e-6)


def test_it_starts_from_the_head_given() -> None:
    head = fit(np.random.default_rng(0).normal(size=(24, 128)).astype(np.float32), LABELS, 3, l2=0.1)
    before = head.weight.copy()
    result = tune(replace(HOW, epochs=1, learning_rate=1e-12), head=head).head
    np.testing.assert_allclose(result.weight, before, atol=1e-9)
    np.testing.assert_allclose(result.bias, head.bias, atol=1e-9)
    assert not np.allclose(tune(replace(HOW, epochs=1), head=head).head.weight, before, atol=1e-4)
    assert (head.weight == before).all(), "the head given was changed"


def test_all_weights_move_but_batch_norms_statistics_and_the_encoder_given() -> None:
    encoder = build("small", 0, image_size=12)
    encoder.train()(torch.rand(64, 3, 12, 12))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    after = tune(encoder=encoder).encoder.state_dict()
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert len(statistics) == 12
    assert {name for name in before if torch.equal(before[name], after[name])} == statistics


def test_the_rate_falls_along_a_cosine() -> None:
    seen: dict[int, float] = {}
    tune(replace(HOW, epochs=2), on_epoch=lambda epoch, loss, rate: seen.update({epoch: rate}))
    last_steps = {1: 2, 2: 5}  # of 3 in each epoch, from 0
    assert seen == pytest.approx({epoch: 1e-3 * (1 + np.cos(np.pi * step / 6)) / 2 for epoch, step in last_steps.items()})


def test_the_result_depends_on_the_seed_and_not_on_the_workers() -> None:
    before = torch.get_rng_state()
    once = replace(HOW, epochs=1)
    first, second, other = tune(once), tune(once, workers=2), tune(once, seed=1)
    assert torch.equal(before, torch.get_rng_state()), "it drew from the global generator"
    assert first.head.weight.tobytes() == second.head.weight.tobytes() != other.head.weight.tobytes()
    assert all(torch.equal(a, b) for a, b in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True))


def test_jitter_crops_and_mirrors_within_its_limits() -> None:
    image = Stripes()[3]
    whole, mirrored = Square(8)(image), Square(8)(image).flip(2)
    assert torch.equal(Jitter(8, 1.0, flip=False)(image), whole)
    torch.manual_seed(0)
    views = [Jitter(8, 1.0, flip=True)(image) for _ in range(20)]
    assert all(torch.equal(view, whole) or torch.equal(view, mirrored) for view in views)
    assert 3 <= sum(torch.equal(view, mirrored) for view in views) <= 17
    ramp = Image.fromarray(np.tile(np.arange(0, 200, dtype=np.uint8)[None, :, None], (200, 1, 3)))  # the pixel's place is its value
    spans = [int(view[0, 0, -1]) - int(view[0, 0, 0]) for view in (Jitter(200, 0.5, flip=False)(ramp) for _ in range(20))]
    assert 98 <= min(spans) < 130
    assert 170 < max(spans) <= 199


def test_errors_say_what_was_got() -> None:
    with pytest.raises(ValueError, match="there are no labels to train on; label some images first"):
        tune(labels=LABELS[:0])
    with pytest.raises(ValueError, match=r"got labels of shape \(23,\) for 24 images, expected one for each"):
        tune(labels=LABELS[1:])
    with pytest.raises(ValueError, match="labels reach from 0 to 2, expected 0 to 1"):
        tune(classes=2)
    with pytest.raises(ValueError, match=r"the loss of step 2 is nan; lower retrain.learning_rate \(now 1e\+30\)"):
        tune(replace(HOW, learning_rate=1e30))


@pytest.mark.gpu
def test_a_gpu_trains_the_same_twice(gpu: str) -> None:
    first, second = (tune(device=torch.device(gpu)) for _ in range(2))
    assert first.head.weight.tobytes() == second.head.weight.tobytes()
    assert all(torch.equal(a, b) for a, b in zip(first.encoder.state_dict().values(), second.encoder.state_dict().values(), strict=True))
