"""Robust core-set selection: the rows from which all but a few others lie within the smallest possible distance, by integer programming."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np

from al_core.bounds import Bools, Doubles
from al_core.farthest import FarthestFirst, farthest_first
from al_core.fingerprints import fingerprints
from al_core.points import Points
from al_core.pool import Pool, Rows
from al_core.registry import method
from al_core.selection import Selection

PAIRS = 4_000_000  # of rows within the greedy radius, at most: what an integer program of this kind can still be solved for
ORDERED_BY = 16  # coordinates that rows are put in order by, before their fingerprints


@method(
    "robust-coreset",
    family="diversity",
    needs=("embeddings",),
    direction="distance to the nearest row labelled or picked before, in the embeddings' unit, at the moment of the pick; farthest first",
    complexity="O(n^2 d) for the pairs within the greedy radius, then some integer programs over them, each NP-hard: it stops at `time_limit`",
    memory="O(pairs within the greedy radius): 100 bytes each, at most 4 million; with more it answers with the greedy picks",
    source="Sener & Savarese 2018, algorithm 2, as the smaller covering program; HiGHS through scipy",
    when="for a pool of some hundred rows with outliers that greedy would go after, or for partitions of that size; the gain over coreset is small",
)
@dataclass(frozen=True)
class RobustCoreSet:
    """Rows that cover the pool with the smallest radius possible, a share of outliers left aside (robust k-center).

    Greedy picks are a first solution. Integer programs then decide whether a radius can be reached, for distances between rows alone, halving what is
    left in between. `info["result"]`: "optimal", when no other choice has a smaller radius; "time limit", when the search did not end in time but found
    something better than greedy; "unfinished", when it did, but ended for another reason, `info["why"]`; "greedy", when it found nothing better in
    time, or `info["why"]` it could not be made or did not end. Where time runs out depends on the machine, and so do the picks then. `info["radius"]`
    is the distance from a labelled or picked row within which all available rows but `info["outliers"]` lie, `info["bound"]` what it cannot fall below,
    `info["greedy_radius"]` what greedy reached.

    The picks come farthest first, as in coreset. Of several best choices one is taken that does not depend on the order of the rows.
    """

    outliers: float = field(default=1e-4, metadata={"meaning": "share of the available rows that may stay uncovered, rounded down to whole rows"})
    time_limit: float = field(default=60.0, metadata={"meaning": "seconds for the search; what is found when they end depends on the machine"})
    normalize: bool = field(default=False, metadata={"meaning": "compare directions: every embedding is scaled to length 1 first"})

    def __post_init__(self) -> None:
        if not 0 <= self.outliers < 1:
            raise ValueError(f"outliers is {self.outliers}; expected a share from 0, below 1")
        if not self.time_limit > 0:
            raise ValueError(f"time_limit is {self.time_limit}; expected seconds above 0")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        if find_spec("scipy") is None:
            raise ValueError("robust-coreset solves its programs with scipy, which is not installed; pip install scipy, or use coreset")
        points = Points.of(pool.embeddings, pool.looked_at, unit=self.normalize, device=pool.device)
        spare = int(self.outliers * len(pool.available) + 1e-9)
        picks, _, _ = farthest_first(points, pool.available, pool.labeled, budget)
        greedy = covered(points, pool, picks, spare)
        search = Search(points, pool, budget, spare, greedy, time.monotonic() + self.time_limit)
        found = search.run()
        if found is not None:
            picks = filled(points, pool, found, budget, search.best)
        picks, squares, _ = farthest_first(points, np.sort(picks), pool.labeled, budget)
        radius = covered(points, pool, picks, spare)
        info = {
            "result": search.result,
            "radius": float(np.sqrt(radius)),
            "bound": float(np.sqrt(min(search.bound, radius))),
            "greedy_radius": float(np.sqrt(greedy)),
            "outliers": spare,
        }
        return Selection(picks, np.sqrt(squares), info | ({"why": search.why} if search.why else {}))


def covered(points: Points, pool: Pool, picks: Rows, spare: int) -> float:
    """Squared distance from a labelled or picked row within which all available rows but `spare` lie."""
    rest = FarthestFirst(points, np.setdiff1d(pool.available, picks), np.concatenate([pool.labeled, picks]))
    for _ in range(spare):
        row, _ = rest.best()
        if row < 0:
            break
        rest.drop(row)
    return max(rest.best()[1], 0.0)


def filled(points: Points, pool: Pool, picks: Rows, budget: int, square: float) -> Rows:
    """Picks up to the budget, where fewer cover all: farthest first, but rows beyond this squared distance, which are outliers, last."""
    rest = FarthestFirst(points, np.setdiff1d(pool.available, picks), np.concatenate([pool.labeled, picks]))
    more: list[int] = []
    outliers: list[int] = []
    while len(picks) + len(more) < budget:
        row, far = rest.best()
        if row < 0:
            more.append(outliers.pop(0))
        elif far > square:
            rest.drop(row)
            outliers.append(row)
        else:
            rest.take(row)
            more.append(row)
    return np.concatenate([picks, np.array(more, dtype=np.int64)])


class SolverError(Exception):
    """What the solver says where it finds neither a choice nor that there is none, and time has not run out."""


class Search:
    """For the smallest radius, all radii squared: `best` is the smallest that was reached, `bound` one below which none can be."""

    def __init__(self, points: Points, pool: Pool, budget: int, spare: int, greedy: float, end: float) -> None:
        self.points, self.labeled, self.budget, self.spare, self.best, self.end = points, pool.labeled, budget, spare, greedy, end
        self.bound = 0.0 if spare else greedy / 4  # without outliers, greedy is at most twice the best
        order = np.lexsort([fingerprints(points.x, pool.available), *points.x[:, :ORDERED_BY][pool.available].T[::-1]])
        self.rows = pool.available[order]  # by what they hold, so that the solver sees the same program however the pool is ordered
        self.result, self.why = "greedy", ""
        self.near = np.full(len(self.rows), np.inf)  # to the nearest labelled row, where that is within the greedy radius
        self.one, self.other, self.square = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0)  # pairs within it, each both ways

    def run(self) -> Rows | None:
        """The rows of the best choice, up to the budget; None where greedy's is the best known."""
        found = None
        try:
            if self.best > 0 and not self.weigh():
                return None
            levels = np.unique(np.concatenate([self.square, self.near[np.isfinite(self.near)]]))
            first, last = (int(np.searchsorted(levels, level)) for level in (self.bound * (1 - 1e-9), self.best))
            while first < last:
                middle = (first + last) // 2
                chosen = self.cover(float(levels[middle]))
                if chosen is None:
                    first = middle + 1
                    self.bound = float(levels[first])
                else:
                    found, self.best = self.rows[chosen], self.reached(chosen)
                    last = int(np.searchsorted(levels, self.best))
        except TimeoutError:
            self.result = "greedy" if found is None else "time limit"
        except SolverError as failure:
            self.result, self.why = "greedy" if found is None else "unfinished", f"the solver gave up: {failure}"
        else:
            self.result, self.bound = "optimal", self.best
        return found

    def weigh(self) -> bool:
        """Measure all pairs within the greedy radius, unless there are too many."""
        few = self.rows[:: len(self.rows) // 32 + 1]
        seen = sum(len(square) for _, _, square in self.points.within(few, self.rows, self.best))
        expected, total = seen * len(self.rows) // len(few), 0
        parts: list[tuple[Rows, Rows, Doubles]] = []
        if expected < 2 * PAIRS:
            for part in self.points.within(self.rows, self.rows, self.best):
                self.watch()
                parts.append(part)
                total += len(part[2])
                if total > PAIRS:
                    break
        if total > PAIRS or expected >= 2 * PAIRS:
            number = f"more than {PAIRS:,}" if total else f"about {expected:,}"
            self.why = f"{number} pairs of rows lie within the greedy radius, and the program is made for {PAIRS:,} at most; use partitions"
            return False
        self.one, self.other = (np.concatenate([part[side] for part in parts]).astype(np.int32) for side in (0, 1))
        self.square = np.concatenate([part[2] for part in parts])
        for row, _, square in self.points.within(self.rows, self.labeled, self.best):
            self.watch()
            np.minimum.at(self.near, row, square)
        return True

    def watch(self) -> None:
        """Raise when time has run out."""
        if time.monotonic() >= self.end:
            raise TimeoutError

    def cover(self, square: float) -> Bools | None:
        """(rows,) a choice within the budget that leaves no more rows than may be left beyond this distance; None where there is none.

        Sener & Savarese's program asks which centre serves each row. Who serves it does not matter, only that one could: so one variable says whether a
        row is chosen, another whether it is left aside, and each row beyond reach of the labelled ones has the constraint that it is left aside or one
        of the rows within the distance is chosen.

        Raises:
            TimeoutError: neither is known by the end.
            SolverError: the solver gave up for another reason.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, eye_array, hstack

        self.watch()
        rows, open_rows = len(self.rows), np.flatnonzero(self.near > square)
        place = np.full(rows, -1)
        place[open_rows] = np.arange(len(open_rows))
        kept = (self.square <= square) & (place[self.one] >= 0)
        reach = csr_array((np.ones(int(kept.sum())), (place[self.one[kept]], self.other[kept])), shape=(len(open_rows), rows))
        is_choice = np.arange(rows + len(open_rows)) < rows
        solved = milp(
            np.zeros(len(is_choice)),
            integrality=is_choice,  # what is left aside follows
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(hstack([reach, eye_array(len(open_rows))]), lb=1),
                LinearConstraint(csr_array(is_choice[None].astype(float)), ub=self.budget),
                LinearConstraint(csr_array((~is_choice)[None].astype(float)), ub=self.spare),
            ],
            options={"time_limit": max(0.01, self.end - time.monotonic())},
        )
        if solved.status == 2:
            return None
        if solved.status == 1:
            raise TimeoutError
        if solved.status != 0:
            raise SolverError(solved.message)
        return np.asarray(solved.x[:rows] > 0.5)

    def reached(self, chosen: Bools) -> float:
        """The radius of a choice."""
        gap = self.near.copy()
        kept = chosen[self.other]
        np.minimum.at(gap, self.one[kept], self.square[kept])
        return float(np.partition(gap, len(gap) - 1 - self.spare)[len(gap) - 1 - self.spare])
