"""A package that adds an acquisition method to Rondo: this file, and the entry point `longest = rondo_example:Longest` in group `rondo.methods`."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from al_core import Pool, Selection
from al_core.registry import method


@method(
    "longest",
    family="example",
    needs=("embeddings",),
    direction="length of the embedding; longest first",
    complexity="O(n d)",
    memory="O(n d)",
    source="this file",
    when="to see how a method is added",
)
@dataclass(frozen=True)
class Longest:
    """The rows with the longest embeddings."""

    order: Literal[1, 2] = field(default=2, metadata={"meaning": "of the norm"})
    scale: float = field(default=1.0, metadata={"meaning": "factor on the score, above 0"})

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale}; expected a number above 0")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        length = np.linalg.norm(pool.embeddings[pool.available].astype(np.float64), ord=self.order, axis=1) * self.scale
        picks = np.argsort(-length, kind="stable")[:budget]
        return Selection(pool.available[picks], length[picks])
