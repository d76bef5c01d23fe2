"""Whether two runs depend on the same: what an earlier one has left behind is gone on from only then."""

from __future__ import annotations

import hashlib


def fingerprint(*parts: str | bytes) -> str:
    """sha256 of what a run depends on, part by part: the same bytes cut in other places give another one."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()
