"""Nearest points: which of many points lie nearest to each of many others, decided exactly.

Distances are summed in float64 from the differences of coordinates, so nothing cancels, coincident points are exactly 0 apart and no device, number
of threads or block size changes an answer. That is too slow for every pair. So a float32 matrix product first bounds every distance from both
sides, and only pairs that may be among the nearest are measured.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from al_core.bounds import Doubles, plus_product, squared_length
from al_core.pool import Floats, Rows, blocks
from al_core.progress import tell

if TYPE_CHECKING:
    import faiss
    import torch

Index = Literal["exact", "ivf", "hnsw"]
Candidates = tuple[slice, Rows, Rows, Doubles]  # points; pairs: point counted from the slice's start, other point, squared distance

CHUNK = 512  # points summed at a time: fixed, so that the blocks' size cannot change a sum
LONGEST = 1e150  # spread of points whose squared distances float64 has room for
TINY = 1e-30  # of the squared unit of a frame: more than what float32 loses to underflow
QUERIES = 256  # values that a point whose neighbours are looked for counts for in a block: 4096 points at a time
TILE = 1024  # and one that they are looked for among, at least: 1024 points at a time, at most
GROUPS = 4  # groups a neighbour asked for: of more, fewer pairs are kept, and bounding them costs more
HNSW = (32, 80, 128)  # links a point, and candidates held while it is added, and while it is looked for
EXTRA = 2  # candidates that an approximate index gives for each neighbour asked for
COMPONENTS = (32, 64, 128, 256)  # principal components that an approximate index may look along
PROBES, RECALL = 64, 0.99  # points that say how few of them will do, and the share of their neighbours that has to be among the candidates
SAMPLE = 4096  # points that principal components are those of
PAIR_WIDTH = 4  # coordinates that one counts for in a block of pairs that are measured: such blocks fit a core's cache


@dataclass(frozen=True, eq=False)
class Cloud:
    """Some rows of the embeddings as points, read when they are asked for.

    Attributes:
        x: (n, d) embeddings as they lie.
        rows: (m,) the rows that are points; point i is row `rows[i]`.
        unit: scale every point to length 1; rows of zeros have no direction and stay as they are.
    """

    x: Floats
    rows: Rows
    unit: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Rows | slice) -> Doubles:
        """(points, d) coordinates in float64."""
        points = self.x[self.rows[at]].astype(np.float64, order="C")
        if self.unit:
            length = np.sqrt(squared_length(points))
            points /= np.where(length > 0, length, 1.0)[:, None]
        return points

    @property
    def dim(self) -> int:
        """Number of coordinates, d."""
        return int(self.x.shape[1])

    @property
    def tile(self) -> int:
        """Points that are compared with others at a time."""
        return int(next(blocks(self.x, width=TILE)).stop)

    def coordinates(self, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """As Frame.coordinates, of these points."""
        import torch

        return self.frame.coordinates(self[at], torch.device("cpu"))

    def squared(self, point: Rows, other: Rows) -> Doubles:
        """(pairs,) squared distances."""
        return squared_distances(self, point, self, other)

    def part(self, at: Rows) -> Cloud:
        """These points alone."""
        return Cloud(self.x, self.rows[at], self.unit)

    @cached_property
    def frame(self) -> Frame:
        """Coordinates around the mean of the points, in units of how far they spread.

        Raises:
            ValueError: they spread too far for their distances to be squared.
        """
        mean = np.sum([self[chunk].sum(axis=0) for chunk in chunks(len(self))], axis=0) / len(self)
        total = 0.0
        for chunk in chunks(len(self)):
            around = self[chunk]
            around -= mean
            total += float(squared_length(around).sum())
        spread = float(np.sqrt(total / len(self)))
        if not spread < LONGEST:
            raise ValueError(f"embeddings are too long to measure: they spread over {spread:.3g}, expected less than {LONGEST:g}; scale them down")
        return Frame.of(mean, spread)


@dataclass(frozen=True, eq=False)
class Frame:
    """Where float32 coordinates are counted from, and their unit: near the points and about their spread, so that little is lost."""

    origin: Doubles  # (d,)
    scale: float  # a power of two, so that it rounds nothing

    @classmethod
    def of(cls, origin: Doubles, spread: float) -> Frame:
        """The power of two next to 1 / spread."""
        return cls(origin, 2.0 ** -float(np.ceil(np.log2(spread))) if 1 / LONGEST < spread < LONGEST else 1.0)

    @property
    def error(self) -> float:
        """Share of |x|^2 + |c|^2 by which |x|^2 + |c|^2 - 2 x.c may be off in float32.

        With u the rounding unit, a dot product of length d errs by at most d u |x| |c|, which 2 |x| |c| <= |x|^2 + |c|^2 makes d u of the sum; 16 u
        beside that are for the other roundings.
        """
        return (len(self.origin) / 2 + 8) * float(np.finfo(np.float32).eps)

    def coordinates(self, x: Doubles, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, d) float32 coordinates of points and (b,) float64 squared lengths, on the device."""
        import torch

        around = x - self.origin
        around *= self.scale
        with np.errstate(over="ignore"):  # infinite products stand for what is too far to tell, which is then measured
            return torch.from_numpy(around.astype(np.float32)).to(device), torch.from_numpy(squared_length(around)).to(device)


class Targets:
    """Points among which the nearest is looked for.

    Args:
        points: (m, d) their coordinates.
        device: where the matrix product runs, as torch names it.
    """

    def __init__(self, points: Doubles, device: str = "cpu") -> None:
        import torch

        self.points, self.device = points, torch.device(device)
        origin = points.mean(axis=0)
        self.frame = Frame.of(origin, float(np.abs(points - origin).max(initial=0.0)))
        self.coordinates, self.square = self.frame.coordinates(points, self.device)  # (m, d), (m,)
        self.low_square = ((1 - self.frame.error) * self.square).float()

    def contenders(self, x: Doubles, reach: Doubles | None = None) -> tuple[Rows, Rows]:
        """Pairs (point of x, target) of which one may be the point's nearest and no farther than its reach; no other pair is.

        Args:
            x: (b, d).
            reach: (b,) squared distances; None: infinite.

        Returns:
            (pairs,) positions in x, ascending, and (pairs,) targets, ascending for each position.
        """
        import torch

        error = self.frame.error
        coordinates, square = self.frame.coordinates(x, self.device)
        low = plus_product(self.low_square, coordinates, self.coordinates.T, -2)  # (b, m) least squared distances, less (1 - error) |x|^2
        nearest, at = low.min(dim=1)
        farthest = nearest.double() + 2 * error * (square + self.square[at])  # (b,) a target lies no farther
        if reach is not None:
            farthest = torch.minimum(farthest, torch.from_numpy(reach * self.frame.scale**2).to(self.device) - (1 - error) * square)
        row, target = np.divmod(true_at(~(low > up(farthest)[:, None])).cpu().numpy(), len(self.points))  # NaN, from what overflows, may be near
        return row, target


def neighbors(x: Floats, rows: Rows, k: int, *, unit: bool = False, device: str = "cpu", index: Index = "exact") -> tuple[Rows, Doubles]:
    """The k nearest others of each of some rows, nearest first; of equally near ones, the first.

    `exact` looks at all pairs: O(m^2 d), by matrix products on the device. `ivf` and `hnsw` let faiss, on the CPU, look for candidates in an index
    that holds float32 coordinates of the rows, along a few principal components where those find nearly all neighbours (`Projected.of`); what it
    misses is missed, but what it finds is measured and ordered as `exact` does, and where it finds too few, the first rows stand in. Its answers may
    differ between machines and versions, those of `hnsw` between runs too.

    Args:
        x: (n, d) embeddings, such as a memory map; read block by block, by `exact` once for every 4096 rows on the CPU, and held on any other device.
        rows: (m,) the rows to look at.
        k: 1 to m - 1.
        unit: scale every row to length 1 first; rows of zeros stay as they are.
        device: where `exact` computes, as torch names it.
        index: how candidates are found.

    Returns:
        (m, k) int64 positions in `rows`, and (m, k) float64 squared distances.

    Raises:
        ValueError: k is out of range, the rows spread too far to be measured, or the index needs faiss and faiss is not there.
    """
    if not 1 <= k < len(rows):
        raise ValueError(f"k is {k}; expected 1 to {len(rows) - 1}, the number of other rows")
    cloud = Cloud(x, rows, unit)
    points = cloud if device == "cpu" or index != "exact" else Held(cloud, device)
    found, squares = np.empty((len(rows), k), dtype=np.int64), np.empty((len(rows), k))
    for queries, query, other, square in near_pairs(points, k) if index == "exact" else indexed_pairs(cloud, k, index):
        tell("rows with their neighbours", queries.start, len(rows))
        order = np.lexsort((other, square, query))
        first = np.searchsorted(query[order], np.arange(queries.stop - queries.start))
        best = order[first[:, None] + np.arange(k)]
        found[queries], squares[queries] = other[best], square[best]
    tell("rows with their neighbours", len(rows), len(rows))
    return found, squares


def near_pairs(points: Cloud | Held, k: int) -> Iterator[Candidates]:
    """For each slice of points, what may be among the k nearest of each, at least k a point."""
    import torch

    for queries in blocks(np.arange(len(points)), width=QUERIES):
        coordinates, square = (torch.cat(parts) for parts in zip(*(part for _, *part in tiles(points, queries)), strict=True))
        search = Search(coordinates, square, k, points.frame.error)
        for tile, others, other_square in tiles(points, slice(0, len(points))):
            search.look(others, other_square, tile, queries.start)
        query, other = search.pairs()
        yield queries, query, other, points.squared(queries.start + query, other)


def tiles(points: Cloud | Held, span: slice) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Those of a span in slices, as float32 coordinates and float64 squared lengths."""
    step = points.tile
    for start in range(span.start, span.stop, step):
        tile = slice(start, min(start + step, span.stop))
        yield (tile, *points.coordinates(tile))


class Held:
    """The points of a cloud, held on a device as they lie, and what `Cloud` computes of them, computed there."""

    tile = 2**16

    def __init__(self, cloud: Cloud, device: str) -> None:
        import torch

        self.frame = cloud.frame
        self.points = torch.empty((len(cloud), cloud.dim), dtype=torch.from_numpy(np.empty(0, cloud.x.dtype)).dtype, device=device)
        self.length = torch.ones(len(cloud), dtype=torch.float64, device=device)
        for part in blocks(cloud.rows, width=cloud.dim):
            rows = cloud.x[cloud.rows[part]]
            self.points[part] = torch.from_numpy(rows)
            if cloud.unit:
                length = np.sqrt(squared_length(rows.astype(np.float64)))
                self.length[part] = torch.from_numpy(np.where(length > 0, length, 1.0))

    def __len__(self) -> int:
        return len(self.points)

    def coordinates(self, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """As Frame.coordinates, of these points."""
        import torch

        around = (self.points[at].double() / self.length[at, None] - torch.from_numpy(self.frame.origin).to(self.points.device)) * self.frame.scale
        return around.float(), around.square().sum(dim=1)

    def squared(self, point: Rows, other: Rows) -> Doubles:
        """(pairs,) squared distances."""
        import torch

        measured = [np.empty(0)]
        for part in blocks(point, width=max(1, self.points.shape[1] // 64)):
            one, two = (torch.from_numpy(at[part]).to(self.points.device) for at in (point, other))
            gap = self.points[one].double() / self.length[one, None] - self.points[two].double() / self.length[two, None]
            measured.append(gap.square().sum(dim=1).cpu().numpy())
        return np.concatenate(measured)


class Balls:
    """Points as float32 coordinates held on a device, to count again and again how many lie within a radius. Memory 4 bytes a coordinate."""

    def __init__(self, cloud: Cloud, device: str) -> None:
        import torch

        self.cloud, self.device = cloud, torch.device(device)
        self.at = torch.empty((len(cloud), cloud.dim), device=self.device)
        self.square = torch.empty(len(cloud), dtype=torch.float64, device=self.device)
        for part in blocks(cloud.rows, width=cloud.dim):
            self.at[part], self.square[part] = cloud.frame.coordinates(cloud[part], self.device)

    def counts(self, targets: Rows, square: float) -> Rows:
        """(points,) how many of these points lie nearer to each than the root of `square`; a point is nearer to itself than any radius."""
        counts = np.zeros(len(self.cloud), dtype=np.int64)
        for some in blocks(targets, width=TILE):
            few = targets[some]
            for part in blocks(counts, width=max(1, len(few) // 4)):  # the fewer targets, the more points at a time
                counts[part] += self.within(part, few, square)
        return counts

    def within(self, part: slice, targets: Rows, square: float) -> Rows:
        """(part,) those of `counts`, for some targets; pairs that float32 cannot decide are measured."""
        import torch

        error = self.cloud.frame.error
        near = torch.from_numpy(targets).to(self.device)
        length = self.square[near]
        low = plus_product(((1 - error) * length).float(), self.at[part], self.at[near].T, -2)  # (b, t) least squares, less (1 - error) |x|^2
        reach = square * self.cloud.frame.scale**2 - (1 - error) * self.square[part]
        inside = low < -up(2 * error * (self.square[part] + length.max()) - reach)[:, None]
        unsure = true_at((low <= up(reach)[:, None]) & ~inside).cpu().numpy()
        point, target = np.divmod(unsure, len(targets))
        nearer = self.cloud.squared(part.start + point, targets[target]) < square
        counts: Rows = inside.float().sum(dim=1).long().cpu().numpy() + np.bincount(point[nearer], minlength=part.stop - part.start)
        return counts


class Search:
    """The k nearest of some points, among others that come tile by tile.

    Every other point falls into one of at least GROUPS * k groups. The least upper bound in a group is a distance that one of its members does not exceed, so
    the k-th smallest over the groups bounds the k-th smallest distance; whatever may be nearer is kept.
    """

    def __init__(self, coordinates: torch.Tensor, square: torch.Tensor, k: int, error: float) -> None:
        import torch

        self.coordinates, self.square, self.k, self.error = coordinates, square, k, error
        groups = 1 << (GROUPS * k - 1).bit_length()  # a power of two, so that tiles mostly hold whole rounds of groups
        self.groups = torch.full((len(coordinates), groups), torch.inf, device=coordinates.device)  # least upper bounds, less (1 + error) |x|^2
        self.limit = torch.full((len(coordinates),), torch.inf, dtype=torch.float64, device=coordinates.device)
        self.seen, self.seen_at_limit = 0, 0
        self.kept: list[
            tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]
        ] = []  # points, others, least squared distances as `look` has them

    def look(self, others: torch.Tensor, square: torch.Tensor, tile: slice, start: int) -> None:
        """Keep of these points what may be near.

        Args:
            others: (t, d) coordinates.
            square: (t,) squared lengths.
            tile: which points they are.
            start: which point the first query is; a point is not its own neighbour.
        """
        import torch

        low = plus_product(((1 - self.error) * square).float(), self.coordinates, others.T, -2)  # (b, t) less (1 - error) |x|^2
        own = torch.arange(max(start, tile.start), max(start, tile.start, min(start + len(low), tile.stop)), device=low.device)
        low[own - start, own - tile.start] = torch.inf
        self.bound(low, square, tile.start)
        self.seen += len(others)
        if self.seen >= 1.25 * self.seen_at_limit:
            self.limit, self.seen_at_limit = self.kth_bound(), self.seen
        flat = true_at(~(low > up(self.limit)[:, None]))
        query, other = np.divmod(flat.cpu().numpy(), len(others))
        self.kept.append((query.astype(np.int32), (tile.start + other).astype(np.int32), low.view(-1)[flat].cpu().numpy()))

    def bound(self, low: torch.Tensor, square: torch.Tensor, start: int) -> None:
        """Lower the groups' bounds to those of a tile; a point's group is its number modulo the number of groups."""
        import torch

        groups = self.groups.shape[1]
        around = (start % groups, -(start + len(square)) % groups)
        if any(around):
            low, square = torch.nn.functional.pad(low, around, value=torch.inf), torch.nn.functional.pad(square, around)
        least, longest = low.view(len(low), -1, groups).amin(dim=1), square.view(-1, groups).amax(dim=0)
        self.groups = torch.minimum(self.groups, up(least.double() + 2 * self.error * longest))

    def kth_bound(self) -> torch.Tensor:
        """(b,) a squared distance that k of the points seen do not exceed, less (1 - error) |x|^2."""
        return kth_smallest(self.groups, self.k).double() + 2 * self.error * self.square

    def pairs(self) -> tuple[Rows, Rows]:
        """What may be among the k nearest of all that was seen."""
        query, other, low = (np.concatenate(arrays) for arrays in zip(*self.kept, strict=True))
        close = ~(low > up(self.kth_bound()).cpu().numpy()[query]) & (low < np.inf)
        return query[close].astype(np.int64), other[close].astype(np.int64)


def indexed_pairs(cloud: Cloud, k: int, index: Index) -> Iterator[Candidates]:
    """As `near_pairs`, from an approximate index of faiss."""
    imported_faiss()  # before the work
    points = Projected.of(cloud, k)
    finder = hnsw(points, k) if index == "hnsw" else ivf(points)
    for part in blocks(cloud.rows, width=cloud.dim):
        finder.add(points[part])
    for part in blocks(cloud.rows, width=max(cloud.dim, EXTRA * k)):
        _, others = finder.search(points[part], min(EXTRA * k + 1, len(cloud)))
        others = filled_up(others, k)
        query, other = np.repeat(np.arange(part.start, part.stop), others.shape[1]), others.ravel()
        another = (other >= 0) & (other != query)
        query, other = query[another], other[another]
        yield part, query - part.start, other, cloud.squared(query, other)


def filled_up(others: Rows, k: int) -> Rows:
    """What faiss found of each point, -1 where it found too few; with fewer than k others, the first k + 1 stand in, of which one may be the point itself."""
    short = np.flatnonzero((others >= 0).sum(axis=1) <= k)
    if len(short) == 0:
        return others
    first = np.arange(k + 1)
    others = np.hstack([others, np.full((len(others), k + 1), -1)])
    others[short, -len(first) :] = np.where((others[short, None] == first[:, None]).any(axis=2), -1, first)  # none twice
    return others


@dataclass(frozen=True, eq=False)
class Projected:
    """The points of a cloud as an approximate index sees them.

    Attributes:
        cloud: the points.
        basis: (d, p) orthonormal directions; None: the points' own coordinates.
    """

    cloud: Cloud
    basis: torch.Tensor | None = None

    @classmethod
    def of(cls, cloud: Cloud, k: int) -> Projected:
        """Along the fewest principal components along which twice as many candidates hold RECALL of the k neighbours of PROBES points.

        Reads the points three times; O(d^2) memory and O(d^3) time, of d beyond SAMPLE O(d SAMPLE) and O(d SAMPLE^2). Where neighbours lie closer than
        float32 tells in products, as near-copies do, the points' own coordinates are kept.
        """
        sizes = [size for size in COMPONENTS if 2 * size <= cloud.dim]
        if not sizes:
            return cls(cloud)
        basis = components(cloud, sizes[-1])
        found = (basis[:, :size].contiguous() for size, recall in zip(sizes, recalls(cloud, basis, sizes, k), strict=True) if recall >= RECALL)
        return cls(cloud, next(found, None))

    def __len__(self) -> int:
        return len(self.cloud)

    @property
    def dim(self) -> int:
        """Number of coordinates, p, or d."""
        return self.cloud.dim if self.basis is None else self.basis.shape[1]

    def __getitem__(self, at: slice) -> npt.NDArray[np.float32]:
        """(points, dim) coordinates."""
        points = self.cloud.coordinates(at)[0]
        found: npt.NDArray[np.float32] = (points if self.basis is None else points @ self.basis).numpy()
        return found


def components(cloud: Cloud, count: int) -> torch.Tensor:
    """(d, count) the principal components of a sample, the leading ones first; fewer where the sample has fewer points."""
    import torch

    step = max(1, len(cloud) // SAMPLE)  # doubles are a copy: a slice would hold its block
    sample = torch.cat([cloud.coordinates(part)[0][::step].double() for part in blocks(cloud.rows, width=cloud.dim)])
    if len(sample) < cloud.dim:
        leading: torch.Tensor = torch.linalg.svd(sample, full_matrices=False).Vh[:count].T
    else:
        leading = torch.linalg.eigh(sample.T @ sample)[1].flip(1)[:, :count]
    return leading.float()


def recalls(cloud: Cloud, basis: torch.Tensor, sizes: list[int], k: int) -> list[float]:
    """For each number of directions, how many of the k neighbours of PROBES points are among the EXTRA * k nearest along these alone."""
    import torch

    probes = cloud.frame.coordinates(cloud[np.linspace(0, len(cloud) - 1, PROBES).astype(np.int64)], torch.device("cpu"))[0]
    truth, *along = (Nearest(probes, k + 1), *(Nearest(probes @ basis[:, :size], EXTRA * k + 1) for size in sizes))  # each with itself
    for part in blocks(cloud.rows, width=cloud.dim):
        points = cloud.coordinates(part)[0]
        places = points @ basis
        truth.look(points, part.start)
        for size, nearest in zip(sizes, along, strict=True):
            nearest.look(places[:, :size], part.start)
    return [nearest.recall_of(truth) for nearest in along]


class Nearest:
    """The nearest to a few points, of others that come block by block and have these among them; within rounding."""

    def __init__(self, points: torch.Tensor, k: int) -> None:
        import torch

        self.points, self.k = points, k
        self.square, self.number = torch.empty(len(points), 0), torch.empty(len(points), 0, dtype=torch.int64)

    def look(self, others: torch.Tensor, start: int) -> None:
        """Keep the nearest; the first of the others is number `start`."""
        import torch

        square = torch.cat([self.square, others.square().sum(dim=1) - 2 * (self.points @ others.T)], 1)  # less that of the point
        number = torch.cat([self.number, torch.arange(start, start + len(others)).expand(len(self.points), -1)], 1)
        self.square, at = square.topk(min(self.k, square.shape[1]), largest=False)
        self.number = number.gather(1, at)

    def recall_of(self, truth: Nearest) -> float:
        """The share of the true neighbours that are among these; a point itself, which is among both, does not count."""
        among = (truth.number[:, :, None] == self.number[:, None, :]).any(dim=2).sum(dim=1) - 1
        return float(among.double().mean()) / (truth.number.shape[1] - 1)


def hnsw(points: Projected, k: int) -> faiss.Index:
    """An empty graph of links, to look in for k neighbours."""
    links, adding, looking = HNSW
    finder: faiss.IndexHNSWFlat = imported_faiss().IndexHNSWFlat(points.dim, links)
    finder.hnsw.efConstruction, finder.hnsw.efSearch = adding, max(looking, EXTRA * k)
    return finder


def ivf(points: Projected) -> faiss.Index:
    """Empty lists, one for each of some 4 sqrt(m) cells, of which the nearest 32nd part is looked through."""
    cells = max(1, min(int(4 * np.sqrt(len(points))), len(points) // 39))  # faiss wants 39 points a cell to train on, and takes no more than 256
    library = imported_faiss()
    finder: faiss.IndexIVFFlat = library.IndexIVFFlat(library.IndexFlatL2(points.dim), points.dim, cells)
    finder.nprobe = max(8, cells // 32)
    step = max(1, len(points) // (256 * cells))
    finder.train(np.concatenate([points[part][::step].copy() for part in blocks(points.cloud.rows, width=points.cloud.dim)]))
    return finder


def imported_faiss() -> types.ModuleType:
    """The library, or a word on how to do without."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError("an approximate index needs faiss, which is not installed: pip install faiss-cpu, or say index: exact") from error
    module: types.ModuleType = faiss
    return module


def squared_distances(cloud: Doubles | Cloud, point: Rows, targets: Doubles | Cloud, target: Rows) -> Doubles:
    """(pairs,) squared distances from `point[i]` of one to `target[i]` of the other, in float64."""
    import torch

    dim = targets.dim if isinstance(targets, Cloud) else targets.shape[1]
    parts = list(blocks(point, width=PAIR_WIDTH * dim))

    def measured(part: slice) -> Doubles:
        return squared_length(cloud[point[part]] - targets[target[part]])

    workers = min(len(parts), torch.get_num_threads())
    if workers < 2:
        return np.concatenate([np.empty(0), *map(measured, parts)])
    with ThreadPoolExecutor(workers) as threads:  # NumPy lets go of the interpreter's lock
        return np.concatenate(list(threads.map(measured, parts)))


def chunks(length: int) -> list[slice]:
    """Slices of CHUNK points that run over so many."""
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def up(values: torch.Tensor) -> torch.Tensor:
    """Doubles as floats that are larger, by TINY and a rounding."""
    import torch

    return torch.nextafter((values + TINY).float(), torch.tensor(torch.inf, device=values.device))


def kth_smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    """(b,) the k-th smallest of each row of (b, m); by NumPy on the CPU, where torch takes a hundred times as long."""
    import torch

    if values.device.type != "cpu":
        return values.kthvalue(k, dim=1).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1, axis=1)[:, k - 1].copy())


def true_at(mask: torch.Tensor) -> torch.Tensor:
    """Flat positions where a mask is true, ascending; by NumPy on the CPU, where torch takes longer."""
    import torch

    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.view(-1).nonzero().view(-1)
