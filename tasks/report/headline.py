"""The top of the page: what was bought, what it brought, and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.artifacts import Metrics
from tasks.report.facts import Facts, change, method_of
from tasks.report.layout import count_images, pairs, percent
from tasks.report.markup import Child, Html, element, join
from tasks.retrain import doubted


def headline(facts: Facts) -> Html:
    """Names, state, the sentences that matter, and the model's other figures."""
    return element(
        "header",
        element("h1", element("span", facts.workspace, class_="workspace"), " ", facts.name),
        pairs([("state", facts.state), ("method", method_of(facts.params)), ("pool", facts.pool.name)], "about"),
        element("div", [element("p", sentence) for sentence in sentences(facts)], class_="headline"),
        figures(facts.metrics) if facts.metrics else None,
    )


def sentences(facts: Facts) -> Iterator[Html]:
    """Labels, accuracy and what speaks against the model, control arm."""
    yield bought(facts)
    if facts.metrics is None:
        yield Html("This round's model is not trained yet.")
    else:
        yield accuracy(facts, facts.metrics)
        if doubt := doubted(facts.metrics, len(facts.classes), facts.params.retrain):
            yield join(element("strong", "Beware"), f": {doubt}.")
        yield from control(facts, facts.metrics)


def bought(facts: Facts) -> Html:
    """How many labels, and what is being waited for."""
    labels = facts.labels if facts.labels is not None else facts.earlier
    frame = labels.frame.query("arm != 'source'") if labels is not None else None
    total, now, none = (len(frame), int((frame["round"] == facts.name).sum()), int(frame["label"].isna().sum())) if frame is not None else (0, 0, 0)
    part = f", {now:,} of them in this round" if now and now != total else ""
    text = join(element("strong", f"{total:,} labels bought"), part, f" ({none:,} say: cannot be labelled)" if none else None, ".")
    if facts.labels is not None:
        return text
    if facts.selection is None:
        return join(text, " Nothing is picked yet in this round.")
    arms = facts.selection.frame["arm"].value_counts()
    return join(
        text, f" {count_images(len(facts.selection))} picked ({arms.get('acquired', 0)} acquired, {arms.get('control', 0)} control) and not yet labelled."
    )


def accuracy(facts: Facts, metrics: Metrics) -> Html:
    """On the test split, and what changed since the previous round."""
    if metrics.accuracy is not None:
        value = element("strong", percent(metrics.accuracy, "%"))
        return join("Accuracy ", value, f" on the test split ({count_images(metrics.accuracy.n)})", since(facts, metrics), ".")
    if facts.params.acquire.control == 0:
        return Html("There is neither a test split nor a control arm: nothing measures this model.")
    return Html("There is no test split, so accuracy is known from the control arms alone.")


def since(facts: Facts, metrics: Metrics) -> Child:
    """The difference to the previous round, as far as it can be said."""
    before = facts.before
    if before is None or before.metrics is None or before.metrics.accuracy is None or metrics.accuracy is None:
        return None
    if before.pool != facts.pool.name:
        return f"; {before.name} scored {percent(before.metrics.accuracy, '%')} on the test split of {before.pool}"
    found = change(facts)
    if found is None:
        return join(", ", element("strong", f"{100 * (metrics.accuracy.value - before.metrics.accuracy.value):+.1f} points"), f" since {before.name}")
    bounds = f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}] since {before.name}"
    unsure = "; the interval includes no change" if found.low <= 0 <= found.high else ""
    told = f": {count_images(found.gained)} newly right, {found.lost:,} newly wrong{unsure}"
    return join(", ", element("strong", f"{100 * found.value:+.1f} points"), bounds, told)


def control(facts: Facts, metrics: Metrics) -> Iterator[Html]:
    """The unbiased figure of the previous model, or why there is none."""
    if metrics.control_accuracy is not None:
        whose = f"The previous model ({facts.before.name})" if facts.before else "The previous model"
        value = element("strong", percent(metrics.control_accuracy, "%"))
        yield join(f"{whose} scored ", value, f" on this round's control arm ({count_images(metrics.control_accuracy.n)} drawn at random).")
    elif facts.selection is not None and len(picks := facts.selection.frame.query("arm == 'control'")):
        why = "none of its images has got a label" if picks["prediction"].notna().any() else "no model had looked at it before its labels were known"
        yield join("The control arm measures nothing in this round: ", why, ".")


def figures(metrics: Metrics) -> Html:
    """The other figures in a row."""
    cells: list[tuple[Child, str | None]] = [
        ("train labels the model has seen", f"{metrics.labels:,}"),
        ("accuracy on these labels", f"{metrics.train_accuracy:.1%}"),
        ("balanced accuracy on test: mean of the classes' recall", None if metrics.balanced_accuracy is None else percent(metrics.balanced_accuracy, "%")),
        ("negative log-likelihood on test, nats; lower is better", None if metrics.nll is None else f"{metrics.nll.value:.3f}"),
        ("calibration error on test; lower is better", None if metrics.ece is None else percent(metrics.ece, "%")),
        ("the same before calibration", percent(metrics.ece_uncalibrated, "%") if metrics.ece_uncalibrated and metrics.temperature else None),
    ]
    return pairs([(name, value) for name, value in cells if value is not None], "figures")
