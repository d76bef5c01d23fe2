"""Diffusion of labels over a graph of neighbours: rows that no label reaches first, then rows where labels of two classes balance.

A reconstruction after Kushnir & Venturi 2020, whose body could not be read: the constants and the choice among close variants are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from al_core.bounds import Doubles
from al_core.fingerprints import distinct
from al_core.neighbors import Index, neighbors
from al_core.pool import Floats, Pool, Rows, blocks
from al_core.progress import counted
from al_core.registry import method
from al_core.selection import Scores, Selection

if TYPE_CHECKING:
    import torch

    Edges = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # a graph's listed, chance, start, other, back_chance

UNREACHED = 1e-8  # share of a walker's chance to meet a label at or below which a row counts as reached by none
CLASSES = 32  # columns diffused at a time: classes, and before them all classes together
FLOOR = 1e-12  # of the median scale: the least scale of a node, where neighbours nearly coincide
SCATTERED = 2**17  # nodes from which on it pays to lay neighbours side by side
LINE = 16  # float32 values in a line of a cache, of which a node gets whole ones


@method(
    "diffusion",
    family="graph",
    needs=("embeddings", "labels"),
    direction="least certainty of a class, 0 to 1: 0 where no label reaches, else as `score` says; lowest first",
    complexity="O(n^2 d) for an exact graph: 1M x 512 takes hours of 2 cores, so say index: hnsw or ivf there; then O(steps n neighbors classes)",
    memory="O(n (neighbors + 32 classes)): about 1 GB for 1M rows with 15 neighbours, 2 GB with 50; with faiss 4 bytes a coordinate beside",
    source="diffusion-AL (reconstructed), after Kushnir & Venturi 2020; self-tuned weights after Zelnik-Manor & Perona 2004",
    when="with few labels and an embedding whose clusters follow the classes; published figures could not be read, so compare it first",
)
@dataclass(frozen=True)
class Diffusion:
    """diffusion-AL (reconstructed): rows that labels do not reach over a graph of neighbours, then rows where labels of two classes balance.

    The graph joins each row with its nearest ones, labelled rows included; coincident rows are one node. Labels are absorbing: a walker that starts at
    a row and moves along the edges, by weight, for so many steps ends at a label of class c with chance F_c. Rows with no chance to end at any come
    first, those with more and closer neighbours before others; then the rows with the least certainty. A pick keeps its neighbours out of the
    batch, until only neighbours are left.
    """

    neighbors: int = field(default=15, metadata={"meaning": "nearest rows that a row is joined with"})
    scale_neighbor: int = field(default=7, metadata={"meaning": "the distance to this neighbour is the scale of distances around a row"})
    steps: int = field(default=10, metadata={"meaning": "steps of the diffusion; more reach farther"})
    score: Literal["margin", "one-vs-rest"] = field(
        default="margin", metadata={"meaning": "margin: highest F_c minus second; one-vs-rest: least |2 F_c - sum of F| of the classes"}
    )
    normalize: bool = field(default=False, metadata={"meaning": "compare directions: every embedding is scaled to length 1 first"})
    index: Index = field(default="exact", metadata={"meaning": "how neighbours are found; ivf and hnsw are approximate and need faiss"})

    def __post_init__(self) -> None:
        for name, value in (("neighbors", self.neighbors), ("scale_neighbor", self.scale_neighbor), ("steps", self.steps)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.scale_neighbor > self.neighbors:
            raise ValueError(f"scale_neighbor is {self.scale_neighbor} but neighbors is {self.neighbors}; expected at most as many")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        graph, open_at, known_at = self.nodes(pool)
        reach, certainty = diffused(graph, known_at, pool.labels, self.steps, self.score, pool.device)
        unreached = (reach <= UNREACHED)[open_at]
        score = np.where(unreached, 0.0, certainty[open_at])
        picks = spread(graph, open_at, np.lexsort((-graph.degree[open_at], score, ~unreached)), budget)
        component = graph.components()
        number = len(np.unique(component))
        return Selection(
            pool.available[picks],
            score[picks],
            {
                "phase": "exploration" if unreached.any() else "refinement",
                "unreached": float(unreached.mean()),
                "unreached_picks": int(unreached[picks].sum()),
                "components": number,
                "components_without_labels": number - len(np.unique(component[known_at])),
            },
        )

    def nodes(self, pool: Pool) -> tuple[Graph, Rows, Rows]:
        """The graph, and the nodes of the available and of the labelled rows."""
        rows = pool.looked_at
        first, node = distinct(pool.embeddings, rows)
        open_at, known_at = node[np.searchsorted(rows, pool.available)], node[np.searchsorted(rows, pool.labeled)]
        rows = rows[first]
        del first, node
        graph, place = self.graph(pool.embeddings, rows, pool.device)
        return graph, place[open_at], place[known_at]

    def graph(self, x: Floats, rows: Rows, device: str) -> tuple[Graph, Rows]:
        """The graph of distinct rows, and (rows,) the node of each."""
        k = min(self.neighbors, len(rows) - 1)
        if not k:
            return Graph(np.zeros((1, 1), dtype=np.int32), np.ones((1, 1))), np.zeros(1, dtype=np.int64)  # a lone node is its own neighbour
        found, square = neighbors(x, rows, k, unit=self.normalize, device=device, index=self.index)
        place = np.arange(len(rows))
        if len(rows) >= SCATTERED:
            place = layout(found)
            order = np.argsort(place)
            found, square = place[found[order]], square[order]
        weigh(found, square, min(self.scale_neighbor, k))
        listed = found.astype(np.int32)
        del found
        return Graph(listed, square), place


def layout(found: Rows) -> Rows:
    """(n,) places in memory, near each other for neighbours: each node's lie side by side where no node before it lists them (breadth first).

    Args:
        found: (n, k) the neighbours of each node.
    """
    place = np.full(len(found), -1, dtype=np.int64)
    placed = 0
    for first in range(len(found)):
        front = np.array([first] if place[first] < 0 else [], dtype=np.int64)
        while len(front):
            place[front] = np.arange(placed, placed + len(front))
            placed += len(front)
            near = found[front].ravel()
            near, seen = np.unique(near[place[near] < 0], return_index=True)
            front = near[np.argsort(seen)]
    return place


def weigh(found: Rows, square: Doubles, scale_neighbor: int) -> None:
    """Turn squared distances into self-tuned weights exp(-d_ij^2 / (s_i s_j)), s_i the distance to a certain neighbour.

    Where all weights of a node would be 0, that of its nearest neighbour is 1, at both ends. What has no weight is no edge: the node itself takes its
    place.

    Args:
        found: (n, k) nearest others of each node, nearest first; changed in place.
        square: (n, k) squared distances to them, changed in place.
        scale_neighbor: which neighbour's distance is the scale, from 1.
    """
    scale = np.sqrt(square[:, scale_neighbor - 1])
    scale = np.maximum(scale, max(FLOOR * float(np.median(scale)), np.sqrt(np.finfo(np.float64).tiny)))
    for part in blocks(found):
        square[part] = np.exp(-square[part] / (scale[part, None] * scale[found[part]]))  # of a product, which is the same seen from either end
    alone = np.flatnonzero(~square.any(axis=1))
    nearest = found[alone, 0]
    square[alone, 0] = 1.0
    which, back = np.nonzero(found[nearest] == alone[:, None])
    square[nearest[which], back] = 1.0
    node, column = np.nonzero(square == 0)
    found[node, column] = node


class Graph:
    """Weighted undirected edges: those that a node lists, as many for each, and at the far end those that are listed at one end alone.

    Args:
        listed: (n, k) distinct others of each node, or the node itself where it has fewer: with weight 0, or 1 if it has none.
        weight: (n, k) above or equal to 0, alike for both where two list each other; changed.

    Attributes:
        chance: (n, k) float32, of a walker at the node to take each edge next.
        start: (n + 1,) where each node's edges begin in the next two.
        other: (one-sided edges,) int32 nodes that list the node and that it does not list.
        back_chance: (one-sided edges,) float32, of a walker to go to them.
        degree: (n,) sum of the weights of a node's edges.
    """

    def __init__(self, listed: npt.NDArray[np.int32], weight: Doubles) -> None:
        self.listed = listed
        self.start, self.other, back = backward(listed, weight)
        self.degree: Doubles = weight.sum(axis=1)
        for part in blocks(weight):
            edges, some, begin = self.backward(part)
            self.degree[some] += np.add.reduceat(back[edges], begin) if len(some) else 0.0
            weight[part] /= self.degree[part, None]
            back[edges] /= np.repeat(self.degree[part], np.diff(self.start[part.start : part.stop + 1]))
        self.chance, self.back_chance = weight.astype(np.float32), back.astype(np.float32)

    def __len__(self) -> int:
        return len(self.listed)

    def backward(self, part: slice) -> tuple[slice, Rows, Rows]:
        """The one-sided edges to some nodes: where they lie, which nodes have any, and where those of each begin among them."""
        start = self.start[part.start : part.stop + 1]
        some = np.flatnonzero(np.diff(start))
        return slice(start[0], start[-1]), part.start + some, start[some] - start[0]

    def neighbors(self, node: int) -> npt.NDArray[np.int32]:
        """Nodes that share an edge with it."""
        near = np.concatenate([self.listed[node], self.other[self.start[node] : self.start[node + 1]]])
        others: npt.NDArray[np.int32] = near[near != node]
        return others

    def edges(self, device: str) -> Edges:
        """What a step needs, on the device."""
        import torch

        number = np.int32 if self.listed.size < 2**31 else np.int64
        whole = (array.astype(number, copy=False) for array in (self.listed, self.other, self.start))
        listed, other, start = (torch.from_numpy(array).to(device) for array in whole)
        return listed, torch.from_numpy(self.chance).to(device), start, other, torch.from_numpy(self.back_chance).to(device)

    def components(self) -> npt.NDArray[np.int32]:
        """(n,) the lowest node of each node's connected component."""
        lowest = np.arange(len(self), dtype=np.int32)
        while True:
            lower = lowest.copy()
            for part in blocks(self.chance):
                lower[part] = np.minimum(lower[part], lowest[self.listed[part]].min(axis=1, initial=len(self)))
                edges, some, begin = self.backward(part)
                if len(some):
                    lower[some] = np.minimum(lower[some], np.minimum.reduceat(lowest[self.other[edges]], begin))
            lower = lower[lower]
            if np.array_equal(lower, lowest):
                return lowest
            lowest = lower


def backward(listed: npt.NDArray[np.int32], weight: Doubles) -> tuple[Rows, npt.NDArray[np.int32], Doubles]:
    """Edges that are listed at one end alone, seen from the other: where those of each node begin, the nodes at the far end, and weights."""
    n, k = listed.shape
    one_sided, number = np.empty((n, k), dtype=bool), np.zeros(n, dtype=np.int32)
    for part in blocks(weight, width=k * k):
        one_sided[part] = not_listed_back(listed, part)
        np.add.at(number, listed[part][one_sided[part]], 1)
    start = np.concatenate([[0], np.cumsum(number)])
    other, back_weight = np.empty(start[-1], dtype=np.int32), np.empty(start[-1])
    free = start[:-1].copy()
    for part in blocks(weight, width=64 * k):
        at, column = np.nonzero(one_sided[part])
        target = listed[part][at, column]
        order = np.argsort(target, kind="stable")
        targets, first, times = np.unique(target[order], return_index=True, return_counts=True)
        place = np.repeat(free[targets] - first, times) + np.arange(len(order))
        free[targets] += times
        other[place], back_weight[place] = part.start + at[order], weight[part][at, column][order]
    return start, other, back_weight


def not_listed_back(listed: npt.NDArray[np.int32], part: slice) -> npt.NDArray[np.bool_]:
    """(part, k) whether the node that a node lists does not list it."""
    back = listed[listed[part]] == np.arange(part.start, part.stop, dtype=np.int32)[:, None, None]  # (part, k, k)
    one_sided: npt.NDArray[np.bool_] = ~back.any(axis=2)
    return one_sided


def diffused(graph: Graph, known: Rows, labels: Rows, steps: int, score: str, device: str) -> tuple[Doubles, Scores]:
    """How labels spread: F <- A F so many times, F of labelled nodes kept at their class.

    Args:
        graph: of the nodes.
        known: (labelled,) nodes with a label; several of a node share it.
        labels: (labelled,) their classes.
        steps: of the diffusion.
        score: "margin" or "one-vs-rest".
        device: where it runs.

    Returns:
        (n,) chance to meet a label, and (n,) certainty.
    """
    import torch

    edges = graph.edges(device)
    holds = np.column_stack([np.ones(len(labels), dtype=bool), labels[:, None] == np.unique(labels)])  # the first column: any class
    reach = torch.zeros(len(graph), device=device)
    top, second, least = torch.zeros_like(reach), torch.zeros_like(reach), torch.full_like(reach, torch.inf)
    for start in range(0, holds.shape[1] if len(labels) else 0, CLASSES):
        chance = walked(edges, known, holds[:, start : start + CLASSES].astype(np.float64), steps)  # (n, classes)
        if start == 0:
            reach, chance = chance[:, 0].clone(), chance[:, 1:]
        best = torch.topk(torch.column_stack([chance, top, second]), 2, dim=1).values
        top, second = best[:, 0], best[:, 1]
        least = torch.minimum(least, (2 * chance - reach[:, None]).abs().amin(dim=1))
    certainty = top - second if score == "margin" else least.nan_to_num(posinf=0.0)
    return reach.double().cpu().numpy(), certainty.double().cpu().numpy()


def walked(edges: Edges, known: Rows, value: Doubles, steps: int) -> torch.Tensor:
    """Expected value that a walker meets within so many steps, 0 where it meets no known node; of a node known several times, the mean.

    In float32: a sum over neighbours waits for memory, and rounding of some 1e-6 of a chance decides nothing that matters.

    Args:
        edges: of a graph.
        known: (labelled,) nodes where a walker stops.
        value: (labelled, columns) of them.
        steps: at most.

    Returns:
        (n, columns).
    """
    import torch

    listed, chance = edges[:2]
    nodes, which, times = np.unique(known, return_inverse=True, return_counts=True)
    fixed = np.zeros((len(nodes), -(-value.shape[1] // LINE) * LINE))
    np.add.at(fixed[:, : value.shape[1]], which, value)
    absorbing, held = torch.from_numpy(nodes).to(listed.device), torch.from_numpy(fixed / times[:, None]).to(chance)
    met = torch.zeros((len(listed), fixed.shape[1]), device=listed.device)
    met[absorbing] = held
    for _ in counted(range(steps), "steps", steps):
        met = stepped(edges, met)
        met[absorbing] = held
    return met[:, : value.shape[1]]


def stepped(edges: Edges, met: torch.Tensor) -> torch.Tensor:
    """(n, columns) A times what stands at each node: of its neighbours, the mean by the chance to go there."""
    from torch.nn.functional import embedding_bag

    listed, chance, start, other, back_chance = edges
    there = embedding_bag(listed, met, per_sample_weights=chance, mode="sum")
    return there.add_(embedding_bag(other, met, start, per_sample_weights=back_chance, mode="sum", include_last_offset=True))


def spread(graph: Graph, at: Rows, order: Rows, budget: int) -> Rows:
    """Positions in `at` of the first rows in an order that share neither node nor edge; once no such row is left, of the rest again.

    Args:
        graph: of the nodes.
        at: (rows,) the node of each row.
        order: (rows,) positions, best first.
        budget: picks.
    """
    left = np.bincount(at, minlength=len(graph))  # rows of each node that are not picked
    kept_out = np.zeros(len(graph), dtype=np.int64)  # the turn in which a node was last kept out
    picks: list[int] = []
    turn = 0
    while len(picks) < budget:
        turn, free, seen, passed = turn + 1, len(order), 0, []
        while free and len(picks) < budget:
            position = int(order[seen])
            seen += 1
            node = int(at[position])
            if kept_out[node] == turn:
                passed.append(position)
                continue
            picks.append(position)
            out = np.append(graph.neighbors(node), node)
            out = out[kept_out[out] != turn]
            kept_out[out] = turn
            free -= int(left[out].sum())
            left[node] -= 1
        order = np.concatenate([np.array(passed, dtype=np.int64), order[seen:]])
    return np.array(picks, dtype=np.int64)
