"""Charts as inline SVG. Colours come from the page's style sheet by class, so that light, dark and print are decided in one place.

Coordinates are pixels at the chart's natural width. Every mark differs by shape too, never by colour alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.artifacts import Estimate
from tasks.report.markup import Child, Html, element, join

Points = npt.NDArray[np.float64]  # (n, 2)

FEW = 20  # classes up to which a matrix has room for large cells and slanted names, and the page for a recall each beside it


@dataclass(frozen=True)
class Mark:
    """One estimate of a series, with its whiskers."""

    x: float
    estimate: Estimate
    label: str
    group: str  # neighbours of one group are joined by a line


@dataclass(frozen=True)
class Series:
    """Marks that are drawn alike."""

    name: str
    kind: str  # class of the style sheet, and key of SHAPES
    marks: Sequence[Mark]
    joined: bool


@dataclass(frozen=True)
class Layer:
    """Points of a map that are drawn alike; later layers lie above earlier ones."""

    name: str
    kind: str  # class of the style sheet, and key of SHAPES
    points: Points
    titles: Sequence[str] | None = None  # one a point; without them the points are drawn as one path, which is far shorter


# ---- shapes --------------------------------------------------------------------------------------------------------------


def disc(x: float, y: float, radius: float, *children: Child, **attributes: str) -> Html:
    """A circle."""
    return element("circle", *children, cx=x, cy=y, r=radius, **attributes)


def diamond(x: float, y: float, radius: float, *children: Child, **attributes: str) -> Html:
    """A square on its corner."""
    r = 1.25 * radius
    return element("path", *children, d=f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z", **attributes)


def triangle(x: float, y: float, radius: float, *children: Child, **attributes: str) -> Html:
    """A triangle, point up."""
    r = 1.25 * radius
    return element("path", *children, d=f"M{x:.1f} {y - r:.1f}l{r:.1f} {1.75 * r:.1f}h{-2 * r:.1f}z", **attributes)


SHAPES = {"test": disc, "control": diamond, "acquired": triangle, "labelled": disc, "unlabelled": disc}


def shape_key(kind: str) -> Html:
    """A mark as it is drawn in charts."""
    return SHAPES[kind](8, 8, 4, class_=f"mark {kind}")


def bar_key(kind: str) -> Html:
    """The end of a bar."""
    return element("rect", x=1, y=5, width=14, height=6, class_=f"bar {kind}")


def legend(entries: Iterable[tuple[str, str]], swatch: Callable[[str], Html] = shape_key) -> Html:
    """Kinds and what they are, as text that wraps."""
    keys = (element("li", element("svg", swatch(kind), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true"), f" {name}") for kind, name in entries)
    return element("ul", list(keys), class_="legend")


# ---- axes ----------------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them and at least two."""
    span = high - low or abs(high) or 1.0
    raw = span / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def decimals(values: Sequence[float]) -> int:
    """Decimal places that tell the ticks apart."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    return max(0, -math.floor(math.log10(step) + 1e-9))


# ---- accuracy over labels ------------------------------------------------------------------------------------------------


def intervals(series: Sequence[Series], x_label: str, y_label: str, *, width: int = 640, height: int = 380) -> Html:
    """Proportions with their whiskers over a number; the axis, in percent, reaches as far as the whiskers and never beyond 0 and 100."""
    marks = [mark for each in series for mark in each.marks]
    left, right, top, bottom = 74, 34, 18, 66
    y_ticks = [t for t in ticks(min(m.estimate.low for m in marks), max(m.estimate.high for m in marks), 6) if -1e-9 <= t <= 1 + 1e-9]
    x_low, x_high = min(m.x for m in marks), max(m.x for m in marks)
    pad = 0.14 * (x_high - x_low) or max(1.0, 0.1 * x_high)
    x_ticks = [t for t in ticks(x_low - pad, x_high + pad, 7) if x_low - pad <= t <= x_high + pad and t == int(t)]

    def at(x: float) -> float:
        return left + (x - x_low + pad) / (x_high - x_low + 2 * pad) * (width - left - right)

    def up(y: float) -> float:
        return height - bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)

    places = decimals([100 * t for t in y_ticks])
    grid = [
        join(
            element("line", x1=left, x2=width - right, y1=up(t), y2=up(t), class_="grid"),
            element("text", f"{100 * t:.{places}f}", x=left - 8, y=up(t), dy="0.35em", text_anchor="end"),
        )
        for t in y_ticks
    ]
    feet = [
        join(
            element("line", x1=at(t), x2=at(t), y1=height - bottom, y2=height - bottom + 5, class_="axis"),
            element("text", f"{t:,.0f}", x=at(t), y=height - bottom + 22, text_anchor="middle"),
        )
        for t in x_ticks
    ]
    names = [
        element("text", x_label, x=(left + width - right) / 2, y=height - 10, text_anchor="middle", class_="name"),
        element("text", y_label, x=0, y=0, text_anchor="middle", class_="name", transform=f"translate(16 {(top + height - bottom) / 2:.0f}) rotate(-90)"),
    ]
    drawn = []
    for order, each in enumerate(series):
        shift = 9.0 * order  # whiskers at the same number of labels stay apart
        places_xy = [(at(m.x) + shift, up(m.estimate.value), m) for m in each.marks]
        if each.joined:
            drawn += [
                element("line", x1=a[0], y1=a[1], x2=b[0], y2=b[1], class_=f"join {each.kind}")
                for a, b in itertools.pairwise(places_xy)
                if a[2].group == b[2].group
            ]
        drawn += [whiskered(x, y, up(m.estimate.low), up(m.estimate.high), each, m) for x, y, m in places_xy]
    return element(
        "svg",
        grid,
        feet,
        names,
        drawn,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{y_label} over {x_label}",
        class_="chart",
        style=f"max-width:{width}px",
    )


def whiskered(x: float, y: float, low: float, high: float, series: Series, mark: Mark) -> Html:
    """One estimate: whiskers, caps, shape, label beside it, and everything in words when hovered."""
    e = mark.estimate
    outline = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
    return element(
        "g",
        element("title", f"{mark.label}, {series.name}: {e.value:.1%} [{100 * e.low:.1f}, {100 * e.high:.1f}] of {e.n} images; {mark.x:,.0f} labels"),
        element("path", d=outline, class_=f"whisker {series.kind}"),
        SHAPES[series.kind](x, y, 5, class_=f"mark {series.kind}"),
        element("text", mark.label, x=x - 9, y=y, dy="-0.5em", text_anchor="end", class_="point") if mark.label and series.joined else None,
    )


# ---- bars and whiskers inside tables -------------------------------------------------------------------------------------


def bars(shares: Sequence[tuple[str, float | None]]) -> Html:
    """Thin bars one below another, (kind, share of the width, 0 to 1) each; None leaves a gap."""
    drawn = [element("rect", x=0, y=i * 8, width=100 * share, height=6, class_=f"bar {kind}") for i, (kind, share) in enumerate(shares) if share is not None]
    height = 8 * len(shares) - 2
    return element("svg", drawn, viewBox=f"0 0 100 {height}", preserveAspectRatio="none", height=height, class_="bars", aria_hidden="true")


def whisker(estimate: Estimate) -> Html:
    """A proportion with its interval on a track from 0 to 1."""
    return element(
        "svg",
        element("rect", x=0, y=6.5, width=100, height=1, class_="track"),
        element("rect", x=100 * estimate.low, y=5.5, width=max(100 * (estimate.high - estimate.low), 0.5), height=3, class_="range"),
        element("rect", x=min(max(100 * estimate.value - 0.6, 0.0), 98.8), y=1, width=1.2, height=12, class_="value"),
        viewBox="0 0 100 14",
        preserveAspectRatio="none",
        height=14,
        class_="bars",
        aria_hidden="true",
    )


# ---- map -----------------------------------------------------------------------------------------------------------------


def scatter(layers: Sequence[Layer], *, width: int = 1072, height: int = 660) -> Html:
    """Points in a plane, one scale for both axes."""
    everything = np.concatenate([layer.points for layer in layers])
    low, high = everything.min(0), everything.max(0)
    margin = 12
    scale = min((width - 2 * margin) / max(high[0] - low[0], 1e-9), (height - 2 * margin) / max(high[1] - low[1], 1e-9))
    centre = (low + high) / 2
    drawn = []
    for layer in layers:
        place = (layer.points - centre) * [scale, -scale] + [width / 2, height / 2]
        if layer.titles is None:
            drawn.append(element("path", d="".join(f"M{x:.1f} {y:.1f}h0" for x, y in place), class_=f"dots {layer.kind}"))
        else:
            shape = SHAPES[layer.kind]
            drawn += [
                shape(float(x), float(y), 5, element("title", title), class_=f"mark {layer.kind}") for (x, y), title in zip(place, layer.titles, strict=True)
            ]
    return element("svg", drawn, viewBox=f"0 0 {width} {height}", role="img", aria_label="map of the pool", class_="chart map", style=f"max-width:{width}px")


# ---- confusion matrix ----------------------------------------------------------------------------------------------------


def matrix(counts: npt.NDArray[np.int64], names: Sequence[str]) -> Html:
    """Counts (actual, predicted), shaded by their share of the row; the diagonal, where both agree, is framed."""
    n, longest = len(names), max(len(cut(name)) for name in names)
    cell = min(44, max(17, 620 // n))
    turn = 0 if longest <= 3 and n <= FEW else -40 if n <= FEW else -90  # degrees, of the names above the columns
    left, top = 40 + int(7.5 * longest), 46 + (0 if turn == 0 else 5 * longest if turn == -40 else 7 * longest)
    right, bottom = left + n * cell, top + n * cell
    width, height = right + (5 * longest if turn == -40 else 0) + 8, bottom + 4
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    lines = "".join(f"M{left} {top + k * cell}H{right}M{left + k * cell} {top}V{bottom}" for k in range(n + 1))
    cells = [
        square(left + j * cell, top + i * cell, cell, str(counts[i, j]), float(shares[i, j]), names[i], names[j])
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
    frames = "".join(f"M{left + k * cell} {top + k * cell}h{cell}v{cell}h{-cell}z" for k in range(n))
    drawn = [
        element("rect", x=left, y=top, width=n * cell, height=n * cell, class_="field"),
        element("path", d=lines, class_="lines"),
        cells,
        element("path", d=frames, class_="diagonal"),
        element("text", "predicted", x=(left + right) / 2, y=14, text_anchor="middle", class_="name"),
        element("text", "actual", text_anchor="middle", class_="name", transform=f"translate(14 {(top + bottom) / 2:.0f}) rotate(-90)"),
    ]
    for k, name in enumerate(names):
        title, shown, middle = element("title", name), cut(name), (k + 0.5) * cell
        above = f"translate({left + middle + (4 if turn == -90 else 0):.1f} {top - 8}) rotate({turn})"
        drawn.append(element("text", title, shown, x=left - 8, y=top + middle, dy="0.35em", text_anchor="end"))
        drawn.append(element("text", title, shown, text_anchor="start" if turn else "middle", transform=above))
    size = f"max-width:{width}px;min-width:{min(width, left + 17 * n)}px;--cell:{min(13.0, cell * 0.6):.1f}px"
    return element("svg", drawn, viewBox=f"0 0 {width} {height}", role="img", aria_label="confusion matrix", class_="chart matrix", style=size)


def square(x: int, y: int, side: int, count: str, share: float, actual: str, predicted: str) -> Html:
    """One cell of the matrix."""
    return element(
        "g",
        element("title", f"{actual} read as {predicted}: {count} ({share:.0%} of {actual})"),
        element("rect", x=x, y=y, width=side, height=side, class_="shade", fill_opacity=round(0.06 + 0.94 * share, 2)),
        element("text", count, x=x + side / 2, y=y + side / 2, dy="0.35em", text_anchor="middle", class_="deep" if share > 0.45 else "pale"),
    )


def cut(name: str, most: int = 14) -> str:
    """The name, its end replaced by an ellipsis where it is longer than `most` letters."""
    return name if len(name) <= most else name[: most - 1] + "…"
