"""Classes of the picks against those of the pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks.report import charts
from tasks.report.facts import Facts, candidates
from tasks.report.layout import class_cell, count_images, section, table
from tasks.report.markup import Child, Html, element, join

MOST = 40  # classes shown: those whose shares differ most
NAMES = {"acquired": "acquired", "control": "control arm", "pool": "pool"}


@dataclass(frozen=True)
class Balance:
    """Counts by class of the two arms and of what they were drawn from, and where these come from."""

    counts: pd.DataFrame  # index: class; columns acquired, control, pool
    picks: str
    pool: str | None  # None: nothing is known of the pool


def balance(facts: Facts) -> Html | None:
    """Shares by class as bars and numbers; None while nothing is known of the picks."""
    found = count_classes(facts)
    if found is None:
        return None
    kinds = [kind for kind in NAMES if found.counts[kind].sum() > 0]
    shares = found.counts[kinds] / found.counts[kinds].sum()
    both = "acquired" in kinds and "pool" in kinds
    order = list(shares.index)
    if len(order) > MOST:
        gap = shares["acquired"] - shares["pool"] if both else shares[kinds[0]]
        order = sorted(order, key=lambda name: -abs(gap[name]))[:MOST]  # stable: ties stay in class order
    rows: list[list[Child]] = []
    for name in order:
        bars = charts.bars([(kind, float(shares[kind][name] / shares.to_numpy().max())) for kind in kinds])
        rows.append([class_cell(name), bars, *(f"{int(found.counts[kind][name]):,} ({float(shares[kind][name]):.1%})" for kind in kinds)])
    lead = join(f"Picks: {found.picks}. ", f"Pool: {found.pool}. " if found.pool else None, skew(shares) if both else None)
    legend = charts.legend([(kind, NAMES[kind]) for kind in kinds], swatch=charts.bar_key)
    hidden = len(shares) - len(rows)
    more = element("p", f"and {hidden:,} more classes, whose shares differ less", class_="more") if hidden else None
    return section("Class balance of the picks", legend, table(["class", "share", *(f">{NAMES[kind]}" for kind in kinds)], rows, "balance"), more, lead=lead)


def count_classes(facts: Facts) -> Balance | None:
    """What is known of the classes of the picks and of the images that could have been picked; None where nothing is known of the picks."""
    if facts.selection is None:
        return None
    picks = facts.picks
    answered = facts.labels is not None
    column, source = ("label", "the answers") if answered else ("prediction", "what the model in use expects, as long as there are no answers")
    reference, origin = pool_classes(facts)
    classes_by_kind: dict[str, pd.Series[str]] = {arm: picks.loc[picks["arm"] == arm, column].dropna() for arm in ("acquired", "control")} | {"pool": reference}
    names = list(dict.fromkeys([*facts.classes, *sorted(set().union(*classes_by_kind.values()))]))
    counts = pd.DataFrame({kind: classes.value_counts().reindex(names, fill_value=0) for kind, classes in classes_by_kind.items()}, index=pd.Index(names))
    return Balance(counts, source, origin) if counts[["acquired", "control"]].to_numpy().sum() else None


def pool_classes(facts: Facts) -> tuple[pd.Series[str], str | None]:
    """Classes of the images that could have been picked: the source's labels where it has them for all, else what a model predicts."""
    if facts.manifest is None or facts.earlier is None:
        return pd.Series(dtype=object), None
    ids = candidates(facts)
    what = f"the {count_images(len(ids))} that could have been picked"
    known = facts.known.frame if facts.known is not None else pd.DataFrame({"id": [], "label": []})
    known = known[known["id"].isin(ids)]
    if len(known) == len(ids) > 0:
        return known["label"], f"{what}, by the labels that the source carries"
    before = facts.before.name if facts.before else ""
    for predictions, model in ((facts.predictions, facts.name), (facts.predictions_before, before)):
        if predictions is not None:
            frame = predictions.frame
            return frame.loc[frame["id"].isin(ids), "prediction"], f"{what}, as the model of {model} predicts them"
    return pd.Series(dtype=object), None


def skew(shares: pd.DataFrame) -> Html:
    """The classes that the method picks more and less often than chance would."""
    gap = (shares["acquired"] - shares["pool"]).to_numpy()

    def told(row: int) -> Html:
        at = shares.iloc[row]
        return join(element("b", str(shares.index[row])), f" ({at['acquired']:.1%} of the acquired picks, {at['pool']:.1%} of the pool)")

    return join("Most above its share: ", told(int(np.argmax(gap))), "; most below: ", told(int(np.argmin(gap))), ".")
