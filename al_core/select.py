"""One call from a method's name to its picks."""

from __future__ import annotations

import json

import numpy as np

from al_core.pool import MissingSignalError, Pool
from al_core.registry import build, needs
from al_core.seeds import generator
from al_core.selection import Selection


def select(name: str, pool: Pool, *, budget: int, seed: int, **params: object) -> Selection:
    """The rows that a method would have labelled next, best first.

    The control arm of a round is `select("random", pool, ...)`; the method then picks from `pool.without(control.rows)`.

    Args:
        name: of the method; `methods()` lists them.
        pool: what it may look at and pick from.
        budget: picks, at least 1 and at most the rows that are available.
        seed: of every random choice, from 0. Equal seeds give equal picks; two arms of a round need two seeds.
        params: the method's parameters, and those of `al_core.composition.Composition`.

    Raises:
        ValueError: unknown method or parameter, a budget that cannot be met, a signal that the pool lacks.
    """
    pool.processes.agree("a selection", (name, budget, seed, params, pool.outline()))
    method = build(name, params)
    for argument, value, least in (("budget", budget, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{argument} is {value!r}; expected a whole number from {least}")
    if budget > len(pool.available):
        raise ValueError(f"budget is {budget} but only {len(pool.available)} images are unlabelled; lower it or ingest more")
    for signal in needs(method):
        if signal not in pool.signals:
            raise MissingSignalError(name, signal)
    selection = method(pool, int(budget), generator(int(seed), "select", name))
    check(name, selection, pool, int(budget))
    return pool.processes.first(selection)  # some searches, such as those with a time limit, end otherwise in every process


def check(name: str, selection: Selection, pool: Pool, budget: int) -> None:
    """Raise unless the method kept its side: as many distinct available rows as asked, a score each, infinite nowhere, and info for JSON."""
    rows, scores = selection.rows, selection.scores
    if rows.dtype != np.int64 or rows.shape != (budget,) or scores.dtype != np.float64 or scores.shape != (budget,):
        raise ValueError(f"{name} answered rows {rows.dtype} {rows.shape} and scores {scores.dtype} {scores.shape}; expected int64 and float64 ({budget},)")
    if len(np.unique(rows)) < budget:
        raise ValueError(f"{name} picked a row more than once")
    if not np.isin(rows, pool.available).all():
        raise ValueError(f"{name} picked row {rows[~np.isin(rows, pool.available)][0]}, which is not available")
    if np.isinf(scores).any():
        raise ValueError(f"{name} gave an infinite score to row {rows[np.isinf(scores)][0]}")
    try:
        json.dumps(dict(selection.info), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} gave info that JSON cannot hold: {error}") from error
