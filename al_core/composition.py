"""What may be laid over a method: partitions over any, and over those that rank: chance, diversity, quotas and distances within the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from al_core.farthest import FarthestFirst
from al_core.points import Points
from al_core.pool import Pool, Rows, blocks
from al_core.progress import tell
from al_core.ranking import Ranking, require
from al_core.selection import Method, Scores, Selection


@dataclass(frozen=True)
class Diversify:
    """Spread a ranking's picks: each maximises utility * distance^strength, the distance being that to the nearest row labelled or picked before."""

    by: Literal["embeddings"] = field(default="embeddings", metadata={"meaning": "what distances are measured in"})
    strength: float = field(default=1.0, metadata={"meaning": "exponent of the distance; near 0 the ranking alone decides, far above 1 the distance alone"})

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 100:
            raise ValueError(f"diversify.strength is {self.strength}; expected above 0, at most 100")


@dataclass(frozen=True)
class Quota:
    """Keep one class or group from filling the batch."""

    by: Literal["prediction", "groups"] = field(default="prediction", metadata={"meaning": "predicted class, or the pool's groups"})
    share: float = field(default=0.5, metadata={"meaning": "largest share of the batch that one class or group may take, rounded up to whole picks"})

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"quota.share is {self.share}; expected above 0, at most 1")


@dataclass(frozen=True)
class Composition:
    """Parameters that `select` takes beside a method's own."""

    partitions: int = field(default=1, metadata={"meaning": "split the pool at random into so many parts and pick an equal share of the budget in each"})
    stochastic: Literal["power", "softmax", "softrank"] | None = field(
        default=None, metadata={"meaning": "draw in place of taking the best: by utility^(1/temperature), exp(utility/temperature) or rank^(-1/temperature)"}
    )
    temperature: float = field(default=1.0, metadata={"meaning": "of `stochastic`: near 0 takes the best, far above 1 draws uniformly"})
    diversify: Diversify | None = field(default=None, metadata={"meaning": "spread the picks in the embeddings"})
    quota: Quota | None = field(default=None, metadata={"meaning": "keep one class or group from filling the batch"})
    min_distance: float = field(default=0.0, metadata={"meaning": "no two picks lie closer than this in the embeddings"})
    max_similarity: float | None = field(default=None, metadata={"meaning": "no two picks have a cosine similarity above this: near-duplicates are left out"})

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise ValueError(f"partitions is {self.partitions}; expected at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; expected above 0")
        if self.temperature != 1 and self.stochastic is None:
            raise ValueError(f"temperature is {self.temperature} but nothing is drawn; say stochastic: power, softmax or softrank, or leave it out")
        if self.min_distance < 0:
            raise ValueError(f"min_distance is {self.min_distance}; expected at least 0")
        if self.max_similarity is not None and not -1 < self.max_similarity < 1:
            raise ValueError(f"max_similarity is {self.max_similarity}; expected a cosine between -1 and 1, such as 0.98")

    @property
    def over_rankings(self) -> tuple[str, ...]:
        """Names of what is asked for that only a ranking bears."""
        asked = {
            "stochastic": self.stochastic is not None,
            "diversify": self.diversify is not None,
            "quota": self.quota is not None,
            "min_distance": self.min_distance > 0,
            "max_similarity": self.max_similarity is not None,
        }
        return tuple(name for name, it_is in asked.items() if it_is)

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals that it reads beside the method's."""
        apart = self.diversify is not None or self.min_distance > 0 or self.max_similarity is not None
        by = {None: (), "prediction": ("logits",), "groups": ("groups",)}[self.quota.by if self.quota else None]
        return (*(("embeddings",) if apart else ()), *by)


def batch(ranking: Ranking, composition: Composition, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
    """A ranking's picks under a composition; the scores stay the ranking's own.

    Raises:
        ValueError: quota, distance or similarity leave fewer rows than the budget.
    """
    ranked = ranking.rank(pool, rng)
    require(len(ranked.rows), budget)
    rules = Rules(composition, pool, ranked.rows, budget)
    keys = perturbed(ranking.utility(ranked.scores), composition, rng) if composition.stochastic else None
    if composition.diversify:
        logs = keys if keys is not None else log(ranking.utility(ranked.scores))
        picks = spread(logs, composition.diversify.strength, rules, pool, ranked.rows, budget)
    else:
        best_first = np.argsort(-keys if keys is not None else -ranked.scores if ranking.highest_first else ranked.scores, kind="stable")
        picks = in_order(best_first, rules, budget)
    if len(picks) < budget:
        raise ValueError(f"the rules leave only {len(picks)} picks of a budget of {budget}; loosen them or lower the budget")
    return Selection(ranked.rows[picks], ranked.scores[picks], dict(ranked.info))


def perturbed(utility: Scores, composition: Composition, rng: np.random.Generator) -> Scores:
    """(candidates,) log weights with Gumbel noise: the largest of them are a draw without replacement by those weights.

    Kirsch et al. 2023, "Stochastic batch acquisition", https://arxiv.org/abs/2106.12059: power, softmax and soft-rank acquisition.
    """
    if composition.stochastic == "power":
        logs = log(utility)
    elif composition.stochastic == "softmax":
        logs = utility
    else:
        ranks = np.empty(len(utility))
        ranks[np.argsort(-utility, kind="stable")] = np.arange(1, len(utility) + 1)
        logs = -log(ranks)
    keys: Scores = logs / composition.temperature + rng.gumbel(size=len(utility))
    return keys


def log(values: Scores) -> Scores:
    """Logarithms; of 0, -inf."""
    with np.errstate(divide="ignore"):
        logs: Scores = np.log(values)
    return logs


def in_order(best_first: Rows, rules: Rules, budget: int) -> list[int]:
    """Candidates in the order given, less those that the rules forbid beside the ones before."""
    picks: list[int] = []
    for candidate in best_first.tolist():
        if len(picks) == budget:
            break
        if rules.allow(candidate):
            rules.take(candidate)
            picks.append(candidate)
    return picks


def spread(logs: Scores, strength: float, rules: Rules, pool: Pool, rows: Rows, budget: int) -> list[int]:
    """Candidates that each maximise log utility + strength * log distance to the nearest row labelled or picked before."""
    place = np.full(pool.size, -1)
    place[rows] = np.arange(len(rows))
    points = Points.of(pool.embeddings, pool.looked_at, unit=False, device=pool.device, processes=pool.processes)
    greedy = FarthestFirst(points, rows, pool.labeled, lambda open_rows, square: logs[place[open_rows]] + strength / 2 * log(square))
    picks: list[int] = []
    if not len(pool.labeled):  # every distance is infinite
        picks.append(int(np.argmax(logs)))
        rules.take(picks[0])
        greedy.take(int(rows[picks[0]]))
    while len(picks) < budget:
        tell("picks", len(picks), budget)
        row, _ = greedy.best()
        if row < 0:
            break
        candidate = int(place[row])
        if rules.allow(candidate):
            rules.take(candidate)
            greedy.take(row)
            picks.append(candidate)
        else:
            greedy.drop(row)
    tell("picks", budget, budget)
    return picks


class Rules:
    """Which candidates may join the batch beside those that have."""

    def __init__(self, composition: Composition, pool: Pool, rows: Rows, budget: int) -> None:
        self.members = members(composition.quota, pool, rows)  # (candidates,) class or group
        self.most = math.ceil(composition.quota.share * budget) if composition.quota else budget
        self.taken = np.zeros(int(self.members.max()) + 1, dtype=np.int64)
        self.apart = []
        if composition.min_distance > 0:
            self.apart.append(Apart(pool, rows, budget, composition.min_distance**2, unit=False))
        if composition.max_similarity is not None:
            self.apart.append(Apart(pool, rows, budget, 2 - 2 * composition.max_similarity, unit=True))

    def allow(self, candidate: int) -> bool:
        """Whether it breaks no rule."""
        return bool(self.taken[self.members[candidate]] < self.most) and all(each.allow(candidate) for each in self.apart)

    def take(self, candidate: int) -> None:
        """It has joined."""
        self.taken[self.members[candidate]] += 1
        for each in self.apart:
            each.take(candidate)


def members(quota: Quota | None, pool: Pool, rows: Rows) -> Rows:
    """(candidates,) the class or group that a quota counts by; all of one without a quota."""
    if quota is None:
        return np.zeros(len(rows), dtype=np.int64)
    if quota.by == "groups":
        return pool.groups[rows]
    return np.concatenate([pool.logits[rows[block]].argmax(axis=1) for block in blocks(rows, width=pool.logits.shape[1])])


class Apart:
    """A least squared distance between the picks of a batch."""

    def __init__(self, pool: Pool, rows: Rows, budget: int, least: float, *, unit: bool) -> None:
        self.x, self.rows, self.least, self.unit = pool.embeddings, rows, least, unit
        self.taken = np.empty((budget, self.x.shape[1]))
        self.count = 0

    def point(self, candidate: int) -> Scores:
        """(d,) its coordinates, as a direction with `unit`; rows of zeros have none and stay as they are."""
        point: Scores = self.x[self.rows[candidate]].astype(np.float64)
        return point / (np.linalg.norm(point) or 1.0) if self.unit else point

    def allow(self, candidate: int) -> bool:
        """Whether no pick lies closer."""
        return bool((np.square(self.taken[: self.count] - self.point(candidate)).sum(axis=1) >= self.least).all())

    def take(self, candidate: int) -> None:
        """It has joined."""
        self.taken[self.count] = self.point(candidate)
        self.count += 1


@dataclass(frozen=True)
class Composed:
    """A method under a composition. Partitions come first: the rest of the composition holds within each."""

    method: Method
    composition: Composition

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        if self.composition.partitions == 1:
            return self.pick(pool, budget, rng)
        parts = min(self.composition.partitions, budget)
        dealt = zip(shuffled_parts(pool.available, parts, rng), shuffled_parts(pool.labeled, parts, rng), strict=True)
        everything = np.concatenate([pool.available, pool.labeled])
        shares = [budget // parts + (part < budget % parts) for part in range(parts)]
        selections = [self.pick(pool.without(np.setdiff1d(everything, np.concatenate(kept))), share, rng) for kept, share in zip(dealt, shares, strict=True)]
        order = np.argsort(np.concatenate([np.arange(share) for share in shares]), kind="stable")  # in turn, so that a batch half done has something of each
        rows, scores = (np.concatenate(arrays)[order] for arrays in zip(*((each.rows, each.scores) for each in selections), strict=True))
        return Selection(rows, scores, {"partitions": [dict(each.info) for each in selections]})

    def pick(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Within one part."""
        if isinstance(self.method, Ranking) and self.composition.over_rankings:
            return batch(self.method, self.composition, pool, budget, rng)
        return self.method(pool, budget, rng)


def shuffled_parts(rows: Rows, parts: int, rng: np.random.Generator) -> list[Rows]:
    """The rows dealt at random into parts whose sizes differ by 1 at most, larger ones first."""
    return np.array_split(rng.permutation(rows), parts)
