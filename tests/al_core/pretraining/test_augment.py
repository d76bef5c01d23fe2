"""Views beside torchvision's own, image by image, and the law that crops are drawn by."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from al_core.pretraining.augment import ASPECT, Augment, Drawn, Views, blurred, boxes, colored, cropped, views_of

CPU = torch.device("cpu")
PLAIN = Augment(color=0, grey=0, flip=False)


def noise(n: int = 6, size: int = 24) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((n, 3, size, size), dtype=np.float32))


def identity(n: int) -> Drawn:
    """Parameters that change nothing."""
    zero, one = torch.zeros(n), torch.ones(n)
    return Drawn(zero, zero, one, one, one, zero, one, one, one, zero, zero, zero, zero)


def close(one: Tensor, other: Tensor, tolerance: float = 2e-6) -> bool:
    return bool((one - other).abs().max() <= tolerance)


def test_nothing_drawn_changes_nothing() -> None:
    x = noise()
    assert close(cropped(x, 24, identity(6)), x)
    assert colored(x, identity(6)) is x


@pytest.mark.parametrize(("left", "top", "width", "height"), [(0, 0, 24, 24), (6, 3, 12, 12), (3, 9, 12, 6)])
def test_a_crop_that_is_enlarged_is_torchvisions(left: int, top: int, width: int, height: int) -> None:
    """Inside; at its edges torchvision's sees the crop alone, ours what lies beyond."""
    x = noise()
    drawn = replace(identity(6), left=torch.full((6,), left / 24), top=torch.full((6,), top / 24))
    drawn = replace(drawn, width=torch.full((6,), width / 24), height=torch.full((6,), height / 24))
    theirs = functional.resized_crop(x, top, left, height, width, [24, 24], antialias=False)
    border = 24 // min(width, height)
    inside = (..., slice(border, -border), slice(border, -border))
    assert close(cropped(x, 24, drawn)[inside], theirs[inside])


def test_a_mirror_is_torchvisions() -> None:
    x = noise()
    mirror = torch.tensor([1.0, -1, -1, 1, 1, -1])
    ours = cropped(x, 24, replace(identity(6), mirror=mirror))
    assert close(ours, torch.where(mirror[:, None, None, None] > 0, x, functional.horizontal_flip(x)))


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turn_is_torchvisions(mirrored: bool) -> None:
    """Turned first, then mirrored, counter-clockwise; where torchvision looks beyond the image it sees black, and we its reflection."""
    x = noise()
    angles = [10.0, -10.0, 45.0, 90.0, 180.0, 3.0]
    drawn = replace(identity(6), angle=torch.tensor([math.radians(angle) for angle in angles]), mirror=torch.full((6,), -1.0 if mirrored else 1.0))
    ours = cropped(x, 24, drawn)
    for image, each, angle in zip(x, ours, angles, strict=True):
        theirs = functional.rotate(image, angle, interpolation=v2.InterpolationMode.BILINEAR)
        theirs = functional.horizontal_flip(theirs) if mirrored else theirs
        seen = functional.rotate(torch.ones_like(image), angle, interpolation=v2.InterpolationMode.BILINEAR)
        seen = functional.horizontal_flip(seen) if mirrored else seen
        assert close(each[seen == 1], theirs[seen == 1], 1e-4)


def test_what_lies_beyond_the_edge_is_the_reflection() -> None:
    plain = torch.full((1, 3, 8, 8), 0.7)
    assert close(cropped(plain, 8, replace(identity(1), angle=torch.tensor([0.8]))), plain)


@pytest.mark.parametrize(
    ("name", "values", "change"),
    [
        ("brightness", [0.2, 1.5, 1.0], functional.adjust_brightness),
        ("contrast", [0.2, 1.5, 1.0], functional.adjust_contrast),
        ("saturation", [0.0, 1.7, 1.0], functional.adjust_saturation),
        ("hue", [-0.5, 0.13, 0.4], functional.adjust_hue),
    ],
)
def test_each_jitter_is_torchvisions(name: str, values: list[float], change: object) -> None:
    assert callable(change)
    x = noise(3)
    x[:, :, :2] = x[:, :1, :2]  # grey, where hue means nothing
    ours = colored(x, replace(identity(3), **{name: torch.tensor(values)}))
    assert close(ours, torch.stack([change(image, value) for image, value in zip(x, values, strict=True)]))


def test_jitters_follow_each_other_in_a_fixed_order() -> None:
    x = noise(2)
    b, c, s, h = ([0.7, 1.2], [1.3, 0.6], [0.5, 1.5], [0.1, -0.2])
    drawn = replace(identity(2), brightness=torch.tensor(b), contrast=torch.tensor(c), saturation=torch.tensor(s), hue=torch.tensor(h))
    for i, each in enumerate(colored(x, drawn)):
        theirs = functional.adjust_saturation(functional.adjust_contrast(functional.adjust_brightness(x[i], b[i]), c[i]), s[i])
        assert close(each, functional.adjust_hue(theirs, h[i]))


def test_grey_and_solarised_are_torchvisions_where_they_are_drawn() -> None:
    x = noise(4)
    which = torch.tensor([1.0, 0, 1, 0])
    kept = which[:, None, None, None] == 0
    assert close(colored(x, replace(identity(4), grey=which)), torch.where(kept, x, functional.rgb_to_grayscale(x, 3)))
    assert close(colored(x, replace(identity(4), solarize=which)), torch.where(kept, x, functional.solarize(x, 0.5)))


@pytest.mark.parametrize(("size", "kernel"), [(16, 3), (40, 5), (224, 23)])
def test_a_blur_is_torchvisions(size: int, kernel: int) -> None:
    x, sigmas = noise(3, size), [0.1, 0.8, 2.0]
    theirs = torch.stack([functional.gaussian_blur(image, [kernel, kernel], [sigma, sigma]) for image, sigma in zip(x, sigmas, strict=True)])
    assert close(blurred(x, torch.tensor(sigmas)), theirs)


def test_crops_have_the_areas_aspects_and_places_of_random_resized_crop() -> None:
    """Means over 20,000 crops of a square of 1,000 px, where torchvision's rounding to pixels hardly shows."""
    n, area = 20_000, (0.2, 1.0)
    left, top, width, height = boxes(area, np.random.default_rng(0), n)
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 1 + 1e-12).all() and (top + height <= 1 + 1e-12).all()
    crop = v2.RandomResizedCrop(8, scale=area)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [crop.make_params([torch.empty(3, 1000, 1000)]) for _ in range(n // 4)]
    their = {key: np.array([each[key] / 1000 for each in theirs]) for key in ("left", "top", "width", "height")}
    for ours, key in ((left, "left"), (top, "top"), (width, "width"), (height, "height")):
        for power in (1, 2):
            noise_of_mean = (their[key] ** power).std() / math.sqrt(n // 4)
            assert (ours**power).mean() == pytest.approx((their[key] ** power).mean(), abs=5 * noise_of_mean)
    assert (width * height).min() >= area[0] - 1e-12
    assert ((width / height) >= ASPECT[0] - 1e-9).all() and ((width / height) <= ASPECT[1] + 1e-9).all()


def test_a_crop_of_the_whole_area_is_the_whole_image() -> None:
    """Only an aspect of exactly 1 would fit."""
    left, top, width, height = boxes((1.0, 1.0), np.random.default_rng(0), 100)
    assert (left == 0).all() and (top == 0).all() and (width == 1).all() and (height == 1).all()


def test_shares_are_as_asked_for() -> None:
    n = 20_000
    drawn = Drawn.of(Views(8, (0.5, 1), Augment(color=0.5, grey=0.3, flip=True, rotate=15, blur=0.2, solarize=0.1)), np.random.default_rng(0), n)
    shares = {
        "mirror": (drawn.mirror < 0, 0.5),
        "jitter": (drawn.brightness != 1, 0.8),
        "grey": (drawn.grey > 0, 0.3),
        "blur": (drawn.sigma > 0, 0.2),
        "solarize": (drawn.solarize > 0, 0.1),
    }
    for which, share in shares.values():
        assert float(which.float().mean()) == pytest.approx(share, abs=0.02)
    assert float(drawn.angle.abs().max()) == pytest.approx(math.radians(15), rel=0.01)
    for values, reach in ((drawn.brightness - 1, 0.4), (drawn.contrast - 1, 0.4), (drawn.saturation - 1, 0.4), (drawn.hue, 0.1)):
        assert float(values.abs().max()) == pytest.approx(reach, rel=0.01)
    assert float(drawn.sigma[drawn.sigma > 0].min()) >= 0.1 and float(drawn.sigma.max()) <= 2


def test_knobs_that_are_off_draw_nothing() -> None:
    drawn = Drawn.of(Views(8, (1, 1), PLAIN), np.random.default_rng(0), 50)
    for name, value in vars(identity(50)).items():
        assert torch.equal(getattr(drawn, name), value), name


def test_a_part_of_a_batch_gets_the_views_that_the_whole_would_give_it() -> None:
    batch = (255 * noise(10)).to(torch.uint8)
    views = [Views(16, (0.3, 1), Augment(blur=0.5, solarize=0.5, rotate=20), 2), Views(8, (0.1, 0.3), Augment(), 2)]
    whole = views_of(batch, views, np.random.default_rng(3), CPU, part=slice(0, 10), whole=10)
    assert [tuple(view.shape) for view in whole] == [(10, 3, 16, 16)] * 2 + [(10, 3, 8, 8)] * 2
    assert not torch.equal(whole[0], whole[1])
    for part in (slice(0, 4), slice(4, 10)):
        for view, each in zip(views_of(batch[part], views, np.random.default_rng(3), CPU, part=part, whole=10), whole, strict=True):
            assert torch.equal(view, each[part])


def test_much_larger_images_are_averaged_first() -> None:
    """A fine chequerboard is grey from afar, where single samples would be black or white."""
    board = torch.from_numpy(((np.indices((64, 64)).sum(axis=0) % 2) * 255).astype(np.uint8)).expand(1, 3, 64, 64)
    (view,) = views_of(board, [Views(8, (1, 1), PLAIN)], np.random.default_rng(0), CPU, part=slice(0, 1), whole=1)
    assert close(view, torch.full((1, 3, 8, 8), 0.5), 0.05)


@pytest.mark.gpu
def test_views_on_a_gpu_are_those_of_the_cpu(gpu: str) -> None:
    batch = (255 * noise(10)).to(torch.uint8)
    views = [Views(16, (0.3, 1), Augment(blur=0.5, solarize=0.0, rotate=20), 2)]
    one, other = (views_of(batch, views, np.random.default_rng(3), torch.device(name), part=slice(0, 10), whole=10) for name in ("cpu", gpu))
    for ours, theirs in zip(one, other, strict=True):
        assert close(ours, theirs.cpu(), 1e-4)
