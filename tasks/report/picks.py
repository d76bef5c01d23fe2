"""The contact sheet: what the money was spent on."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
from PIL import Image

from tasks.artifacts import ImportReport
from tasks.images import Images
from tasks.report.facts import Facts, rows_of
from tasks.report.layout import count_images, elsewhere, section
from tasks.report.markup import Child, Html, element, join

TILES = {"acquired": 120, "control": 40}  # most thumbnails of an arm
AT_ONCE = 45  # of these, how many are not folded away
THUMBNAIL, TINY = 128, 48  # pixels of the longer side: stored at most; up to which an image is kept as it is and enlarged crisply
TITLES = {"acquired": "Acquired by the method", "control": "Control arm"}
WORTH = {"acquired": "picked for their score, so no measure of accuracy", "control": "drawn at random: an unbiased measure"}


def picks(facts: Facts) -> Html | None:
    """The picks of both arms with score, expectation and answer; None before acquire."""
    if facts.selection is None:
        return None
    frame = facts.picks
    scored, expected = frame["score"].notna().any(), frame["prediction"].notna().any()
    shown = ["rank and score" if scored else "rank"]
    shown += ["what the model in use expected, with its confidence"] if expected else []
    shown += ["the answer, ticked where the model was right, crossed where wrong" if expected else "the answer"] if facts.labels is not None else []
    lead = [f"Under each picture: {'; '.join(shown)}."]
    lead += [f" Score: {facts.acquired.direction}."] if scored and facts.acquired is not None else []
    lead += [f" {answers(facts.imported)}"] if facts.imported is not None else []
    missing = element("p", elsewhere(facts)) if facts.shards is None or facts.manifest is None else None
    return section("Picks", missing, [arm(facts, frame[frame["arm"] == name], name) for name in TILES], lead=lead)


def answers(imported: ImportReport) -> str:
    """What came back from the labellers."""
    counts = [(imported.labelled, "labelled"), (imported.skipped, "cannot be labelled"), (imported.unanswered, "unanswered")]
    parts = ", ".join(f"{count:,} {what}" for count, what in counts if count)
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in sorted(imported.rejected.items()))
    return f"Of {count_images(imported.batch)} asked about: {parts or 'none answered'} (labeller: {imported.labeller})" + (
        f"; rows not taken: {rejected}." if rejected else "."
    )


def arm(facts: Facts, rows: pd.DataFrame, name: str) -> Html | None:
    """Heading and thumbnails of one arm."""
    if len(rows) == 0:
        return None
    shown = rows.head(TILES[name])
    tiles = [tile(pick, picture) for pick, picture in zip(shown.to_dict("records"), thumbnails(facts, shown["id"].tolist()), strict=True)]
    first, rest, more = tiles[:AT_ONCE], tiles[AT_ONCE:], len(rows) - len(shown)
    return join(
        element("h3", f"{TITLES[name]}: {count_images(len(rows))}", element("span", agreement(rows, name), class_="aside")),
        element("div", first, class_="tiles"),
        element("details", element("summary", f"the next {len(rest)}"), element("div", rest, class_="tiles"), class_="more") if rest else None,
        element("p", f"and {more:,} more, in selection.parquet", class_="more") if more else None,
    )


def agreement(rows: pd.DataFrame, name: str) -> str:
    """How often the model was right about an arm, and what that figure is worth."""
    judged = rows.dropna(subset=["prediction", "label"])
    right = int((judged["prediction"] == judged["label"]).sum())
    return f" the model in use was right about {right} of {len(judged)} ({WORTH[name]})" if len(judged) else ""


def tile(pick: dict[Any, Any], picture: Html | None) -> Html:
    """One pick: picture, rank, score, expectation and answer."""
    expected, answer = pick["prediction"], pick["label"]
    score: Child = element("span", "control", class_="badge") if pick["arm"] == "control" else f"{pick['score']:.3g}" if pd.notna(pick["score"]) else None
    lines = [
        line(element("b", f"#{pick['rank']}"), score),
        line(element("span", f"model {expected}", title=f"expected {expected}"), f"{pick['confidence']:.2f}") if pd.notna(expected) else None,
        verdict(expected if pd.notna(expected) else None, answer if pd.notna(answer) else None) if pick["answered"] else None,
    ]
    return element("figure", element("div", picture, class_="frame"), element("figcaption", lines), class_=f"tile {pick['arm']}", title=pick["reason"])


def line(left: Html, right: Child) -> Html:
    """A line under a thumbnail: what is on the left gives way, the number on the right does not."""
    return element("span", left, element("span", right, class_="amount"), class_="line two")


def verdict(expected: str | None, answer: str | None) -> Html:
    """The answer, marked right or wrong where the model had expected something."""
    if answer is None:
        return element("span", "cannot be labelled", class_="line")
    if expected is None:
        return element("span", f"answer {answer}", class_="line", title=answer)
    kind = "right" if expected == answer else "wrong"
    mark = Html(f'<svg class="mark" role="img" aria-label="{kind}"><use href="#{kind}"/></svg>')
    return element("span", mark, f" {answer}", class_=f"line {kind}", title=f"answer {answer}: the model was {kind}")


def thumbnails(facts: Facts, ids: Sequence[str]) -> list[Html | None]:
    """Small pictures of these images; None each where the shards are not here."""
    if facts.manifest is None or facts.shards is None:
        return [None] * len(ids)
    rows = rows_of(facts.manifest, ids)
    return [thumbnail(image) for image in Images(facts.manifest, facts.shards.path, rows)]


def thumbnail(image: Image.Image) -> Html:
    """An `<img>` that holds its data: PNG as it is where the image is tiny, else JPEG."""
    tiny = max(image.size) <= TINY
    buffer = io.BytesIO()
    if tiny:
        image.save(buffer, "PNG")
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return element("img", src=f"data:image/{'png' if tiny else 'jpeg'};base64,{data}", alt="", class_="tiny" if tiny else None)
