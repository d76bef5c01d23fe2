"""Farthest-first traversal: each pick is the row with the highest priority, which falls as picks come nearer.

Distances are summed in float64 from the differences of coordinates: nothing cancels, coincident rows are exactly 0 apart, ties are ties, and no
number of threads changes a pick. Few of them have to be measured, for four reasons, none of which can change a pick:

* Laziness. Centres only come nearer, so what a row's distance once was bounds it for ever. Only rows whose bounds reach the front meet the centres
  that they missed, and only as long as they stay in it.
* A front. Inside the best few hundred rows the greedy choice is that of the whole pool, as long as it beats the best bound outside.
* Products. Rows meet centres in float32 matrix products, whose rounding is bounded from both sides (`Bounded`); float64 decides what that leaves open.
* Sketches, once the products have cost more than sketches would: of each row its leading principal coordinates and the length of the rest, between
  which distances are never longer than between the rows. Most pairs then need no product of full length. Where they would, no sketch is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from al_core.bounds import REACH, Bools, Bounded, Centers, Contest, Doubles, pairs, product, smallest, squared_length
from al_core.points import Points
from al_core.pool import Rows, blocks
from al_core.progress import counted
from al_core.sketches import PAIR_COST, SKETCH, Sketches

Priority = Callable[[Rows, Doubles], Doubles]  # (m,) rows and (m,) squared distances to the nearest centre -> (m,), never rising as the distance falls

CLOSED = -1.0  # squared distance that stands for a row that can no longer be picked
NOBODY = -1  # in place of the nearest centre, where the bounds leave open which it is
FIRST_REACH = 128  # centres that a row meets in one product: few at first, since most rows leave the front early
EVERY = 8  # one in so many rows is brought up to date first, to learn how far down a front goes
AHEAD = 64  # picks for which the front is looked through in one product
MANY = 48  # rows that sketches leave near to a pick from which on a product is cheaper than measuring each


def farthest_first(points: Points, rows: Rows, centers: Rows, budget: int) -> tuple[Rows, Doubles, FarthestFirst]:
    """Picks that each are the farthest from all centres and all picks before; without centres the first is the row nearest to the mean of `rows`.

    Returns:
        The picks, the squared distance of each at the moment of the pick (NaN for a first one without centres), and what is left to pick from.
    """
    greedy = FarthestFirst(points, rows, centers)
    picks, squares = np.empty(budget, dtype=np.int64), np.empty(budget)
    for i in counted(range(budget), "picks", budget):
        picks[i], squares[i] = (points.nearest_mean(rows), np.nan) if i == 0 and not len(centers) else greedy.best()
        greedy.take(int(picks[i]))
    return picks, squares, greedy


class FarthestFirst:
    """The rows that may be picked, with bounds on their squared distances to the nearest centre: the rows that are known, and those taken since.

    Args:
        points: of the whole pool.
        rows: (m,) rows that may be picked, ascending.
        centers: (c,) rows to begin with; without any, every distance is infinite until the first `take`.
        priority: what is maximised; None: the squared distance itself. It is not asked about infinite distances, which come first.
    """

    def __init__(self, points: Points, rows: Rows, centers: Rows, priority: Priority | None = None) -> None:
        self.points, self.rows, self.priority = points, rows, priority
        self.gap = np.full(len(rows), np.inf)  # (m,) squared distance to the nearest centre, or more
        self.seen = np.zeros(len(rows), dtype=np.int32)  # (m,) the first so many centres, which it accounts for
        self.exact = np.ones(len(rows), dtype=bool)  # (m,) it is the distance to the nearest of these
        self.nearest = np.full(len(rows), NOBODY, dtype=np.int32)  # (m,) which that is
        own = points.processes.share(np.arange(len(rows)))
        self.own = slice(own[0], own[-1] + 1) if len(own) else slice(0, 0)  # places in this process's share
        self.open = len(rows)
        self.size = int(np.clip(len(rows) // 256, 256, 4096))  # of a front, about
        self.wanted = 8 * self.size  # rows that are looked at for one
        self.front: Front | None = None
        spread_out = np.argsort(np.arange(len(centers)) * 0.618033988749895 % 1)  # so that any beginning of them is like the whole
        self.centers = Centers(points.bounded, centers[spread_out])
        self.sketches: Sketches | None = None
        self.work = 0.0  # multiplications spent without a sketch
        self.patience = 2.0 * SKETCH * len(rows) * points.dim  # that go before one is tried

    def best(self) -> tuple[int, float]:
        """The open row of the highest priority, the lowest such row of several, and its squared distance to the nearest centre; -1 where none is open."""
        while self.open:
            if self.front:
                first = self.front.first()
                if first is not None:
                    return int(self.rows[self.front.at[first]]), float(self.front.gap[first])
            self.advance()
        return -1, CLOSED

    def take(self, row: int) -> None:
        """Pick an open row: it is a centre from now on."""
        at = self.close(row)
        self.centers.add(row)
        if self.sketches:
            self.sketches.centers.add(row)
        if self.front:
            self.thin(self.front, at)

    def drop(self, row: int) -> None:
        """Close a row without picking it."""
        self.close(row)

    def close(self, row: int) -> int:
        """The place of an open row, which is none from now on."""
        at = int(np.searchsorted(self.rows, row))
        self.gap[at] = CLOSED
        self.open -= 1
        if self.front:
            self.front.close(at)
        return at

    def values(self, at: Rows, gap: Doubles) -> Doubles:
        """(n,) priorities of the rows at these places, were they so far from the nearest centre."""
        if self.priority is None:
            return gap.copy()
        values, finite = np.full(len(gap), np.inf), np.isfinite(gap)
        values[finite] = self.priority(self.rows[at[finite]], gap[finite])
        return values

    # ---- the front: rows that are up to date, with exact distances -------------------------------------------------------------

    def advance(self) -> None:
        """Make a new front: the rows whose bounds are the highest, when all in it are up to date."""
        self.retreat()
        opened = np.flatnonzero(self.gap != CLOSED)
        value = np.full(len(self.rows), -np.inf)
        value[opened] = self.values(opened, self.gap[opened])
        while True:
            floor = highest(value, self.wanted) if self.wanted < self.open else -np.inf
            high = opened[value[opened] >= floor]
            last = self.update(high, value)
            if last >= floor:  # so no row below the floor belongs to the front
                break
            self.wanted *= 4
        self.wanted = max(8 * self.size, 2 * int(np.count_nonzero(self.seen[high] == len(self.centers))))
        inside = high[(self.seen[high] == len(self.centers)) & (value[high] >= last)]
        at = np.sort(inside[np.argsort(-value[inside], kind="stable")][: 2 * self.size])
        rest = np.setdiff1d(high, at, assume_unique=True)
        ceiling = (floor, len(self.rows))
        if len(rest) and value[rest].max() >= floor:
            best = rest[np.argmax(value[rest])]
            ceiling = (value[best], best)
        self.divide(at[~self.exact[at]], self.settle)
        self.front = Front(at, self.gap[at], self.nearest[at], self.seen[at], self.values(at, self.gap[at]), np.ones(len(at), dtype=bool), ceiling)

    def update(self, high: Rows, value: Doubles) -> float:
        """Bring rows up to date down to some value, above which there are about as many as a front is to have; that value, -inf where there are fewer.

        Args:
            high: places, ascending.
            value: (m,) priorities of all rows, changed in place.
        """
        stale = high[self.seen[high] < len(self.centers)]
        stale = stale[np.argsort(-value[stale], kind="stable")]
        fresh = value[high[self.seen[high] == len(self.centers)]]
        every = EVERY if len(stale) > 4 * self.size else 1
        sample = self.lower_all(stale[::every], value, highest(fresh, self.size))
        last = highest(np.concatenate([fresh, np.repeat(sample, every)]), self.size)
        self.lower_all(stale[(self.seen[stale] < len(self.centers)) & (value[stale] >= last)], value, last)
        return last

    def lower_all(self, at: Rows, value: Doubles, last: float) -> Doubles:
        """Bring rows up to date as long as their values stay at `last` or above; the new values, which go into `value`."""

        def lower(mine: Rows) -> None:
            for group in self.alike(mine):
                self.lower(group, last)

        self.divide(at, lower)
        value[at] = self.values(at, self.gap[at])
        return value[at]

    def divide(self, at: Rows, work: Callable[[Rows], None]) -> None:
        """Have each process work on those of these places that are in its share of all, and let all know what it found."""
        mine, before = at[(at >= self.own.start) & (at < self.own.stop)], self.work
        work(mine)
        found = (mine, self.gap[mine], self.seen[mine], self.exact[mine], self.nearest[mine], self.work - before)
        self.work = before
        for places, gap, seen, exact, nearest, spent in self.points.processes.gathered(found):
            self.gap[places], self.seen[places], self.exact[places], self.nearest[places] = gap, seen, exact, nearest
            self.work += spent

    def thin(self, front: Front, pick: int) -> None:
        """Account for the newest centre, the row at `pick`, in the front."""
        newest = len(self.centers) - 1
        near = front.alive
        if self.sketches:
            near = near & self.near(front, pick, "sketch", self.sketches.rows.__getitem__)
        if not self.sketches or np.count_nonzero(near) > MANY:
            near = near & self.near(front, pick, "point", self.bounded)
        change = np.flatnonzero(near)
        gap = self.measured(front.at[change], np.full(len(change), newest))
        nearer = gap < front.gap[change]
        change, gap = change[nearer], gap[nearer]
        front.lower(change, gap, self.values(front.at[change], gap), newest)

    def near(self, front: Front, pick: int, kind: str, of: Callable[[Rows], Bounded]) -> Bools:
        """(front,) rows to which the pick may be nearer than any centre before. The likeliest next picks are looked at in the same product."""
        if (kind, pick) not in front.columns:
            likely = np.argsort(-front.value, kind="stable")[: AHEAD - 1]
            ahead = np.concatenate([[pick], front.at[likely[front.alive[likely]]]])
            if kind not in front.members:
                front.members[kind] = of(front.at)
            picks, members = of(ahead), front.members[kind]
            lower = picks.lower(product(picks, members).cpu().numpy())
            front.columns = {key: each for key, each in front.columns.items() if key[0] != kind}
            front.columns |= {(kind, int(at)): each for at, each in zip(ahead, lower, strict=True)}
        near: Bools = front.columns[kind, pick] < front.gap * self.points.unit
        return near

    def retreat(self) -> None:
        """Keep what the front has found, and see whether sketches would pay from now on."""
        front, self.front = self.front, None
        if front is None:
            return
        kept = self.gap[front.at] != CLOSED
        at = front.at[kept]
        self.gap[at], self.nearest[at], self.exact[at] = front.gap[kept], front.nearest[kept], True
        self.seen[at] = np.where(front.alive, len(self.centers), front.seen)[kept]
        if self.sketches is None and len(at) and self.work > self.patience and self.points.dim > 4 * SKETCH:
            self.patience = 4 * self.work
            self.sketches = Sketches.that_pay(self.points, self.rows, self.centers.rows, at, self.gap[at] * self.points.unit)

    # ---- bounds ----------------------------------------------------------------------------------------------------------------

    def bounded(self, at: Rows) -> Bounded:
        """The points of the rows at these places."""
        return self.points.bounded(self.rows[at])

    def alike(self, at: Rows) -> Iterator[Rows]:
        """Places of rows that missed about as many centres, in blocks."""
        at = at[np.argsort(self.seen[at], kind="stable")]
        missed = len(self.centers) - self.seen[at]
        start = 0
        while start < len(at):
            group = at[start : start + int(np.count_nonzero(missed[start:] > 0.7 * missed[start]))]
            yield from (group[block] for block in blocks(group, width=max(self.points.dim, REACH)))
            start += len(group)

    def lower(self, at: Rows, last: float) -> None:
        """Account for the centres that these rows missed, as long as their values stay at `last` or above."""
        since, reach = int(self.seen[at].min()), REACH if self.sketches else FIRST_REACH
        mine = self.sketches.rows[at] if self.sketches else self.bounded(at)
        while len(at) and since < len(self.centers):
            until = min(since + reach, len(self.centers))
            if self.sketches:
                self.meet_sketched(self.sketches, at, mine, since, until, last)
            else:
                self.meet(at, mine, since, until)
            self.seen[at] = np.maximum(self.seen[at], until)
            stay = np.flatnonzero(self.values(at, self.gap[at]) >= last)
            if len(stay) < len(at):
                at, mine = at[stay], mine[stay]
            since, reach = until, min(2 * reach, REACH)

    def meet(self, at: Rows, mine: Bounded, since: int, until: int) -> None:
        """Account for some centres by products of full length."""
        import torch

        self.work += len(at) * (until - since) * self.points.dim
        theirs = self.centers[since:until]
        dots = product(mine, theirs)
        least, center = smallest(dots)
        near = np.flatnonzero(mine.lower(least) < self.gap[at] * self.points.unit)
        if not len(near):
            return
        mine, least, center = mine[near], least[near], center[near]
        most = mine.upper(least, theirs, center)
        rivals = mine.within(dots, near, most).view(torch.uint8).sum(dim=1, dtype=torch.int32).cpu().numpy()
        self.approach(at[near], mine, most, np.where(rivals == 1, center + since, NOBODY))

    def meet_sketched(self, all_sketches: Sketches, at: Rows, sketches: Bounded, since: int, until: int, last: float) -> None:
        """Account for some centres, by full length only where sketches do not show that others are nearer."""
        dots = product(sketches, all_sketches.centers[since:until])
        least, center = smallest(dots)
        near = np.flatnonzero(sketches.lower(least) < self.gap[at] * self.points.unit)
        if not len(near):
            return
        at, center, mine, theirs = at[near], center[near], self.bounded(at[near]), self.centers[since:until]
        everyone = np.arange(len(at))
        low, high = mine.alone(everyone, theirs, center)
        stay = np.flatnonzero(self.values(at, np.minimum(self.gap[at], high / self.points.unit)) >= last)
        bound = np.minimum(self.gap[at] * self.points.unit, high)[stay]
        row, other = pairs(sketches[near[stay]].within(dots, near[stay], bound), center[stay])
        if len(row) * PAIR_COST > len(stay) * (until - since):
            self.meet(at[stay], mine[stay], since, until)
            go = np.setdiff1d(everyone, stay)
            self.approach(at[go], mine[go], high[go], np.full(len(go), NOBODY))
            return
        more = mine.alone(stay[row], theirs, other)
        contest = Contest(np.concatenate([everyone, stay[row]]), np.concatenate([low, more[0]]), np.concatenate([high, more[1]]))
        known = np.isin(everyone, stay) & (contest.rivals == 1)
        center = np.concatenate([center, other])[contest.leader]
        self.approach(at, mine, contest.high[contest.leader], np.where(known, center + since, NOBODY))

    def approach(self, at: Rows, mine: Bounded, most: Doubles, center: Rows) -> None:
        """Note that some centres may be nearer to each of these rows than those before: the nearest of them, or NOBODY, and how far that is at most."""
        before, most = self.gap[at], most / self.points.unit
        same = (center == self.nearest[at]) & (center != NOBODY)  # a centre seen before
        doubt = np.where(self.exact[at], 0.0, (mine.doubt + self.centers.doubt) / self.points.unit + 4 * mine.slack * before)
        with np.errstate(invalid="ignore"):
            clearly = (most <= before - doubt) & (self.exact[at] | (self.nearest[at] != NOBODY))
        self.gap[at] = np.minimum(before, most)
        self.exact[at] &= same
        self.nearest[at] = np.where(clearly | same, center, NOBODY)

    def settle(self, at: Rows) -> None:
        """Measure what bounds the gaps of rows that are up to date, so that they are exact."""
        self.exact[at] = True
        known = at[self.nearest[at] != NOBODY]
        self.gap[known] = self.measured(known, self.nearest[known])
        unknown = at[self.nearest[at] == NOBODY]
        for block in blocks(unknown, width=max(self.points.dim, REACH)):
            part = unknown[block]
            bound, self.gap[part] = self.gap[part], np.inf
            mine, everyone = self.bounded(part), np.arange(len(part))
            for since in range(0, len(self.centers), REACH):
                until = since + REACH
                limit = np.minimum(bound, self.gap[part]) * self.points.unit
                if self.sketches:
                    sketches = self.sketches.rows[part]
                    row, center = pairs(sketches.within(product(sketches, self.sketches.centers[since:until]), everyone, limit))
                    contest = Contest(row, *mine.alone(row, self.centers[since:until], center))
                    row, center = row[contest.open], center[contest.open]
                else:
                    dots = product(mine, self.centers[since:until])
                    least, first = smallest(dots)
                    limit = np.minimum(limit, mine.upper(least, self.centers[since:until], first))
                    row, center = pairs(mine.within(dots, everyone, limit))
                self.measure(part[row], center + since)

    def measure(self, at: Rows, center: Rows) -> None:
        """Take the exact distances of these pairs over where they are smaller."""
        gap = self.measured(at, center)
        order = np.lexsort((gap, at))
        at, first = np.unique(at[order], return_index=True)
        gap, center = gap[order][first], center[order][first]
        nearer = gap < self.gap[at]
        self.gap[at[nearer]], self.nearest[at[nearer]] = gap[nearer], center[nearer]

    def measured(self, at: Rows, center: Rows) -> Doubles:
        """(n,) exact squared distances between rows and centres, pair by pair."""
        ends = self.centers.rows[center]
        parts = [slice(0), *blocks(at, width=self.points.dim)]
        return np.concatenate([squared_length(self.points[self.rows[at[part]]] - self.points[ends[part]]) for part in parts])


@dataclass
class Front:
    """The rows that the next picks are among: places, and of each what `FarthestFirst` keeps of all rows, as of now where it is alive."""

    at: Rows  # ascending
    gap: Doubles
    nearest: npt.NDArray[np.int32]
    seen: npt.NDArray[np.int32]
    value: Doubles
    alive: Bools  # no row outside is known to come before it
    ceiling: tuple[float, int]  # what may be the value and place of the best row outside
    members: dict[str, Bounded] = field(default_factory=dict)
    columns: dict[tuple[str, int], Doubles] = field(default_factory=dict)  # lower bounds on squared distances to a row, for each row of the front

    def first(self) -> int | None:
        """The position of the best row of the pool; None where that may lie outside."""
        best = int(np.argmax(self.value))
        if not self.alive[best]:
            best = int(np.argmax(self.alive))  # the lowest of rows whose value is -inf
        value, at = self.ceiling
        ahead = self.value[best] > value or (self.value[best] == value and self.at[best] < at)
        return best if self.alive[best] and ahead else None

    def close(self, at: int) -> None:
        """Take a row out, if it is in."""
        position = int(np.searchsorted(self.at, at))
        if position < len(self.at) and self.at[position] == at:
            self.alive[position], self.value[position] = False, -np.inf

    def lower(self, positions: Rows, gap: Doubles, value: Doubles, center: int) -> None:
        """Note that a centre is nearer to some rows than those before; rows that fall below the ceiling are not brought up to date again."""
        self.gap[positions], self.nearest[positions], self.value[positions] = gap, center, value
        fallen = positions[value < self.ceiling[0]]
        self.alive[fallen], self.value[fallen], self.seen[fallen] = False, -np.inf, center + 1


def highest(values: Doubles, count: int) -> float:
    """The lowest of the `count` highest; -inf where there are fewer."""
    return float(np.partition(values, len(values) - count)[len(values) - count]) if len(values) >= count else -np.inf
