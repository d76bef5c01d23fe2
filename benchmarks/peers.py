"""Public packages that benchmarks run beside Rondo; whoever runs a benchmark brings them."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any


@functools.cache
def peer(module: str) -> Any:
    """A peer's module, or None with a word, said once."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        sys.stderr.write(f"{module} is skipped: {error}\n")
        return None
