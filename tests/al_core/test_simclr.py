import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from al_core.encoders import Encoder, build
from al_core.features import features
from al_core.linear import fit
from al_core.loading import Images, load, pixels, resized, shuffled
from al_core.seeds import seeded
from al_core.simclr import Augment, train, two_views, warm_cosine

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


def pretrained(images: Images, **changes: Any) -> tuple[Encoder, list[tuple[int, float, float]]]:
    encoder, curve = build("small", 0), []
    arguments: dict[str, Any] = {"image_size": 8, "epochs": 2, "batch_size": 6, "learning_rate": 1e-3, "weight_decay": 1e-4, "temperature": 0.5, "seed": 0}
    arguments |= {"augment": Augment(), "workers": 0, "device": torch.device("cpu"), "on_epoch": lambda *line: curve.append(line)} | changes
    train(images, encoder, **arguments)
    return encoder, curve


def same(one: Encoder, other: Encoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_first_loss_is_the_papers_formula() -> None:
    """l(i, j) = -log exp(s_ij / t) / sum over k != i of exp(s_ik / t), with s the cosine; the mean over both orders of all pairs."""
    from lightly.models.modules.heads import SimCLRProjectionHead

    n, t = 6, 0.3
    _, curve = pretrained(Noise(n), epochs=1, temperature=t)
    held = resized(Noise(n), 8, workers=0)
    views = next(load(held, shuffled(range(n), n, 1, seed=0, drop_last=True), two_views(Augment(), 8), seed=0, workers=0)).float() / 255
    encoder = build("small", 0).train()
    with seeded(0, "simclr", "head"):
        head = SimCLRProjectionHead(128, 128, 128)
    with torch.no_grad():
        z = normalize(head.train()(encoder(torch.cat([views[:, 0], views[:, 1]])))).double().numpy()
    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [math.exp(float(z[i] @ z[k]) / t) for k in range(2 * n) if k != i]
        losses.append(-math.log(math.exp(float(z[i] @ z[j]) / t) / sum(others)))
    (epoch, loss, rate) = curve[0]
    assert (len(curve), epoch, rate) == (1, 1, 1e-3)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_falls() -> None:
    _, curve = pretrained(Noise(), epochs=15, batch_size=20, learning_rate=3e-3, temperature=0.2, augment=Augment(0.6, 0.0, False))
    assert [epoch for epoch, _, _ in curve] == list(range(1, 16))
    assert curve[-1][1] < curve[0][1] - 0.5


def test_equal_seeds_give_equal_weights_with_any_number_of_workers() -> None:
    before = torch.get_rng_state()
    first, curve = pretrained(Noise())
    assert torch.equal(before, torch.get_rng_state()), "it drew from the global generator"
    second, again = pretrained(Noise(), workers=2)
    other, _ = pretrained(Noise(), seed=1)
    assert same(first, second)
    assert curve == again
    assert not same(first, other)
    assert not first.training


def test_the_threads_of_the_caller_do_not_matter() -> None:
    weights = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        weights.append(pretrained(Noise())[0])
    torch.set_num_threads(before)
    assert same(*weights)


def test_a_batch_is_cut_to_the_pool() -> None:
    whole, _ = pretrained(Noise(), batch_size=20)
    cut, _ = pretrained(Noise(), batch_size=4096)
    assert same(whole, cut)


def test_the_rate_rises_for_an_epoch_and_falls_along_a_cosine() -> None:
    shares = [warm_cosine(step, 4, 12) for step in range(12)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[8] == pytest.approx(0.5)
    assert shares[11] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert warm_cosine(12, 4, 12) == 0
    _, curve = pretrained(Noise(), epochs=3, batch_size=5)  # 4 steps an epoch
    assert [rate for _, _, rate in curve] == [pytest.approx(1e-3 * shares[step]) for step in (3, 7, 11)]


def test_without_augmentation_both_views_are_the_image() -> None:
    image = Noise()[0].resize((8, 8))
    view = two_views(Augment(min_crop=1.0, color=0.0, flip=False, rotate=0.0), 8)
    squares = [pair for pair in (view(image) for _ in range(30)) if torch.equal(pair[0], pair[1])]
    assert squares, "a crop of the whole area has another aspect most of the time, and the image's own sometimes"
    assert torch.equal(squares[0][0], pixels(image))


@pytest.mark.parametrize(
    ("augment", "changed"),
    [(Augment(1, 0, False, 0), False), (Augment(1, 0.8, False, 0), True), (Augment(1, 0, False, 45), True), (Augment(0.2, 0, False, 0), False)],
)
def test_each_knob_does_its_own(augment: Augment, changed: bool) -> None:
    """Crops of a plain image are plain and of its colour; jitter and the corners of a rotation are not."""
    plain = Image.new("RGB", (8, 8), (200, 100, 50))
    with seeded(0, "test"):
        views = torch.stack([two_views(augment, 8)(plain) for _ in range(10)])  # (10, 2, 3, 8, 8)
    assert views.dtype == torch.uint8
    assert bool((views != torch.tensor([200, 100, 50]).view(3, 1, 1)).any()) == changed


def test_flips() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 30, dtype=np.uint8)[None, :, None], (8, 1, 3)))
    with seeded(0, "test"):
        rising = {flip: [bool(v[0, 0, -1] > v[0, 0, 0]) for _ in range(10) for v in two_views(Augment(0.5, 0, flip), 8)(ramp).int()] for flip in (False, True)}
    assert all(rising[False])
    assert 3 <= sum(rising[True]) <= 17


def test_errors_say_what_to_try() -> None:
    with pytest.raises(ValueError, match=r"SimCLR contrasts images with each other and got 1; give at least 2, or set pretrain.method to none"):
        pretrained(Noise(1))
    with pytest.raises(ValueError, match=r"the loss of epoch 1 is nan; lower pretrain.learning_rate \(now 1e\+30\) or raise pretrain.temperature \(now 0.5\)"):
        pretrained(Noise(), learning_rate=1e30)


@pytest.mark.slow
def test_digits_become_easier_to_tell_apart() -> None:
    """With 100 labels, a linear classifier on pretrained features beats those on random features and on pixels, by more than 3 points."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    shades, truth = np.round(digits.images * 255 / 16).astype(np.uint8), digits.target.astype(np.int64)

    class Digits:
        def __len__(self) -> int:
            return len(shades)

        def __getitem__(self, row: int, /) -> Image.Image:
            return Image.fromarray(shades[row]).convert("RGB")

    def embedded(encoder: Encoder) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.concatenate(list(features(Digits(), encoder, image_size=16, batch_size=256, workers=0, device=torch.device("cpu"))))

    def accuracy(x: np.ndarray[Any, np.dtype[np.float32]]) -> float:
        hits = []
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(len(x))
            head = fit(x[order[:100]], truth[order[:100]], 10, l2=1e-3)
            hits.append(((x[order[100:]] @ head.weight.T + head.bias).argmax(1) == truth[order[100:]]).mean())
        return float(np.mean(hits))

    augment = Augment(min_crop=0.5, color=0.0, flip=False, rotate=15.0)
    encoder, _ = pretrained(Digits(), image_size=16, epochs=10, batch_size=256, learning_rate=3e-3, augment=augment, workers=1)
    baseline = max(accuracy(embedded(build("small", 0))), accuracy(shades.reshape(len(shades), -1).astype(np.float32)))
    assert accuracy(embedded(encoder)) > baseline + 0.03
