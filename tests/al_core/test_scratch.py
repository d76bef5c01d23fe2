from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from al_core.encoders import build
from al_core.finetune import Finetuned, Tuning
from al_core.scratch import enough_epochs, scratch
from tests.al_core.test_finetune import LABELS, Stripes, logits

HOW = Tuning(epochs=2, batch_size=10, learning_rate=3e-3)


def train(how: Tuning = HOW, **changes: Any) -> Finetuned:
    arguments: dict[str, Any] = {"images": Stripes(), "labels": LABELS, "encoder": build("small", 0, image_size=12), "classes": 3}
    return scratch(how=how, **arguments | {"seed": 0, "workers": 0, "device": torch.device("cpu")} | changes)


def state(result: Finetuned) -> dict[str, torch.Tensor]:
    return result.encoder.state_dict()


def test_it_learns_what_it_is_shown() -> None:
    losses: list[float] = []
    result = train(replace(HOW, epochs=30), on_epoch=lambda epoch, loss, rate: losses.append(loss))
    assert (logits(result).argmax(1).numpy() == LABELS).all()
    assert losses[-1] < 0.2 * losses[0]


def test_only_the_architecture_of_the_encoder_counts() -> None:
    first, other = (build("small", seed, image_size=12) for seed in (0, 1))
    before = {name: value.clone() for name, value in first.state_dict().items()}
    one, two = state(train(encoder=first)), state(train(encoder=other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())
    assert not any(torch.equal(one[name], before[name]) for name in one), "batch norm's statistics too"
    assert one["body.1.num_batches_tracked"] == 4, "2 epochs of 2 whole batches of 10 of 24 images"


def test_the_result_depends_on_the_seed_and_not_on_the_workers_or_on_other_draws() -> None:
    """Also of a network that draws as it runs."""
    encoder = build("bayesian-cnn", 0, image_size=12)
    first = train(encoder=encoder)
    before = torch.get_rng_state()
    torch.rand(1)
    second, other = train(encoder=encoder, workers=2), train(encoder=encoder, seed=1)
    torch.set_rng_state(before)
    assert first.head.weight.tobytes() == second.head.weight.tobytes() != other.head.weight.tobytes()
    assert all(torch.equal(a, b) for a, b in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True))
    train(encoder=encoder)
    assert torch.equal(before, torch.get_rng_state()), "it drew from the global generator"


def test_dropout_is_at_work() -> None:
    """Of images that look alike in every view, only dropout makes losses differ."""

    class Plain(Stripes):
        def __getitem__(self, row: int, /) -> Image.Image:
            return Image.new("RGB", (12, 12), (200, 100, 50))

    def losses(name: str) -> list[float]:
        seen: list[float] = []
        encoder, labels = build(name, 0, image_size=12), np.zeros(24, np.int64)
        train(
            Tuning(epochs=3, batch_size=24, learning_rate=1e-12),
            images=Plain(),
            labels=labels,
            encoder=encoder,
            on_epoch=lambda epoch, loss, rate: seen.append(loss),
        )
        return seen

    assert np.ptp(losses("small")) < 1e-6 < 1e-3 < np.ptp(losses("bayesian-cnn"))


def test_few_labels_are_seen_more_often() -> None:
    assert enough_epochs(200, 64, epochs=30, min_steps=2000) == 667  # of 3 whole batches
    assert enough_epochs(60_000, 64, epochs=30, min_steps=2000) == 30
    assert enough_epochs(10, 64, epochs=30, min_steps=2000) == 2000  # of one batch of 10


def test_errors_say_what_was_got() -> None:
    with pytest.raises(ValueError, match=r"^a batch holds 1 of 24 labelled images, expected at least 2, which batch norm takes its statistics from$"):
        train(replace(HOW, batch_size=1))
    with pytest.raises(ValueError, match=r"the loss of step 2 is nan; lower retrain.scratch.learning_rate \(now 1e\+30\)"):
        train(replace(HOW, learning_rate=1e30))


@pytest.mark.gpu
def test_a_gpu_trains_the_same_twice(gpu: str) -> None:
    first, second = (train(device=torch.device(gpu)) for _ in range(2))
    assert first.head.weight.tobytes() == second.head.weight.tobytes()
    assert all(torch.equal(a, b) for a, b in zip(first.encoder.state_dict().values(), second.encoder.state_dict().values(), strict=True))
