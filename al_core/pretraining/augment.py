"""Random views of images, a batch at a time, on the device where the batch lies.

Every image of a batch has parameters of its own. All are drawn before anything is computed, for the whole batch and in one order, so that a process that
holds a part of the batch makes just the views that one process would make of that part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, pad

Draws = npt.NDArray[np.float64]
Change = Callable[[Tensor, Tensor], Tensor]  # some images, and which they are, to others

JITTER = (0.8, 0.8, 0.8, 0.2)  # brightness, contrast, saturation and hue at strength 1, as SimCLR has them
JITTERED = 0.8  # share of views whose colours are jittered at all
ASPECT = (3 / 4, 4 / 3)  # of a crop
TRIES = 10  # at a crop that fits
SIGMA = (0.1, 2.0)  # of a blur, pixels
GREY = (0.2989, 0.587, 0.114)  # what the channels count for


@dataclass(frozen=True)
class Augment:
    """How the views of an image differ, beside the crop."""

    color: float = 0.5  # strength of colour jitter; 0: none
    grey: float = 0.2  # share of views that lose their colour
    flip: bool = True  # mirror left-right half of the time
    rotate: float = 0.0  # largest rotation, degrees
    blur: float = 0.0  # share of views that are blurred
    solarize: float = 0.0  # share of views whose bright pixels are inverted


@dataclass(frozen=True)
class Views:
    """Some views of each image."""

    size: int  # pixels of a side
    area: tuple[float, float]  # smallest and largest share of the image that a crop keeps
    augment: Augment
    count: int = 1


def views_of(batch: Tensor, views: Sequence[Views], rng: np.random.Generator, device: torch.device, *, part: slice, whole: int) -> list[Tensor]:
    """Views of images, (b, 3, size, size) float32 in [0, 1] on the device, one tensor a view.

    A view is a crop as torchvision's RandomResizedCrop draws it (area, log-uniform aspect, place), turned around its middle, mirrored, sampled bilinearly,
    then jittered (brightness, contrast, saturation, hue, in this order), greyed, blurred and solarised. Beyond its edge the image is mirrored.

    Args:
        batch: (b, 3, s, s) uint8, the images `part` of a batch of `whole`.
        views: what to make of each; a view much smaller than the images is cut out of them at twice its size.
        rng: all draws are taken from it.
        device: where to work.
        part: which images of the whole batch these are.
        whole: how many images it has.
    """
    source = batch.to(device).float().div_(255)
    made = []
    for each in views:
        near = shrunk(source, 2 * each.size)
        for _ in range(each.count):
            draws = Drawn.of(each, rng, whole).part(part, device)
            made.append(colored(cropped(near, each.size, draws), draws))
    return made


def shrunk(images: Tensor, size: int) -> Tensor:
    """Images whose sides are longer than `size`, averaged down to it."""
    return interpolate(images, (size, size), mode="bilinear", antialias=True) if images.shape[-1] > size else images


@dataclass(frozen=True)
class Drawn:
    """Parameters of one view of each image, (n,) each."""

    left: Tensor  # of the crop; like its sides, as a share of the image's
    top: Tensor
    width: Tensor
    height: Tensor
    mirror: Tensor  # -1 where mirrored, else 1
    angle: Tensor  # radians
    brightness: Tensor  # factors; 1 changes nothing
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # shift in turns; 0 changes nothing
    grey: Tensor  # 1 where the colour is lost, else 0
    sigma: Tensor  # of the blur, pixels; 0: none
    solarize: Tensor  # 1 where bright pixels are inverted, else 0

    @classmethod
    def of(cls, views: Views, rng: np.random.Generator, n: int) -> Drawn:
        """For n images."""
        augment = views.augment
        box = boxes(views.area, rng, n)
        mirror = np.where(rng.random(n) < 0.5 * augment.flip, -1.0, 1.0)
        angle = np.radians(augment.rotate) * rng.uniform(-1, 1, n)
        jittered = rng.random(n) < JITTERED
        shift = [np.where(jittered, augment.color * strength * rng.uniform(-1, 1, n), 0.0) for strength in JITTER]
        brightness, contrast, saturation = (np.maximum(1 + each, 0.0) for each in shift[:3])
        grey = (rng.random(n) < augment.grey).astype(float)
        sigma = np.where(rng.random(n) < augment.blur, rng.uniform(*SIGMA, n), 0.0)
        solarize = (rng.random(n) < augment.solarize).astype(float)
        drawn = (*box, mirror, angle, brightness, contrast, saturation, np.clip(shift[3], -0.5, 0.5), grey, sigma, solarize)
        return cls(*(torch.from_numpy(each.astype(np.float32)) for each in drawn))

    def part(self, part: slice, device: torch.device) -> Drawn:
        """Of some of the images, on a device."""
        return Drawn(*(value[part].to(device) for value in vars(self).values()))


def boxes(area: tuple[float, float], rng: np.random.Generator, n: int) -> tuple[Draws, Draws, Draws, Draws]:
    """Left, top, width and height of n crops of a square of side 1: the first of TRIES that fits, else all of it."""
    share = rng.uniform(*area, (n, TRIES))
    aspect = np.exp(rng.uniform(np.log(ASPECT[0]), np.log(ASPECT[1]), (n, TRIES)))
    width, height = np.sqrt(share * aspect), np.sqrt(share / aspect)
    fits = (width <= 1) & (height <= 1)
    first = fits.argmax(axis=1)[:, None]
    some = fits.any(axis=1)
    width, height = (np.where(some, np.take_along_axis(side, first, axis=1)[:, 0], 1.0) for side in (width, height))
    place = rng.random((2, n))
    return place[0] * (1 - width), place[1] * (1 - height), width, height


def cropped(images: Tensor, size: int, drawn: Drawn) -> Tensor:
    """(b, 3, size, size) crops, turned and mirrored."""
    cos, sin = torch.cos(drawn.angle), torch.sin(drawn.angle)
    turned = torch.stack([torch.stack([cos * drawn.mirror, -sin], 1), torch.stack([sin * drawn.mirror, cos], 1)], 1)  # (b, 2, 2): view to crop
    sides = torch.stack([drawn.width, drawn.height], 1)
    middle = torch.stack([2 * drawn.left + drawn.width - 1, 2 * drawn.top + drawn.height - 1], 1)
    theta = torch.cat([sides[:, :, None] * turned, middle[:, :, None]], 2)  # (b, 2, 3): places in the view to places in the image, both -1 to 1
    grid = affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def colored(images: Tensor, drawn: Drawn) -> Tensor:
    """Images with other colours, or out of focus. What no image needs is not computed."""
    if bool((drawn.brightness != 1).any() | (drawn.contrast != 1).any() | (drawn.saturation != 1).any()):
        images = blend(images, torch.zeros_like(images), drawn.brightness)
        images = blend(images, lightness(images).mean(dim=(1, 2, 3), keepdim=True), drawn.contrast)
        images = blend(images, lightness(images), drawn.saturation)
    images = changed(images, drawn.hue != 0, lambda some, at: hue_shifted(some, drawn.hue[at]))
    images = changed(images, drawn.grey > 0, lambda some, _: lightness(some).expand_as(some))
    images = changed(images, drawn.sigma > 0, lambda some, at: blurred(some, drawn.sigma[at]))
    return changed(images, drawn.solarize > 0, lambda some, _: torch.where(some >= 0.5, 1 - some, some))


def changed(images: Tensor, which: Tensor, change: Change) -> Tensor:
    """Images of which some are changed."""
    at = which.nonzero().view(-1)
    return images if not len(at) else images.index_copy(0, at, change(images[at], at))


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """The images where the factor is 1, the other where it is 0, and beyond; within 0 to 1."""
    return torch.lerp(other.expand_as(images), images, factor[:, None, None, None]).clamp_(0, 1)


def lightness(images: Tensor) -> Tensor:
    """(b, 1, s, s) grey of RGB."""
    red, green, blue = images.unbind(1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(1)


def hue_shifted(images: Tensor, shift: Tensor) -> Tensor:
    """Colours turned around the circle of hues by (b,) turns, with value and chroma as they are."""
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    red, green, blue = images.unbind(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(value == red, (green - blue) / safe, torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4))
    sixths = sixths + 6 * shift[:, None, None]
    places = torch.stack([(sixths + start) % 6 for start in (5, 3, 1)], 1)  # (b, 3, s, s): how far each channel is along the circle
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(places, 4 - places).clamp(0, 1)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images under a Gaussian of (b,) standard deviations, over a tenth of their side at least."""
    size = images.shape[-1]
    radius = max(1, size // 20)
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (3b, 2 radius + 1)
    planes = pad(images, (radius,) * 4, mode="reflect").reshape(1, -1, size + 2 * radius, size + 2 * radius)
    planes = conv2d(planes, weights[:, None, None, :], groups=len(weights))
    return conv2d(planes, weights[:, None, :, None], groups=len(weights)).reshape(images.shape)
