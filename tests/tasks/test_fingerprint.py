"""Two runs have the same fingerprint only if they depend on the same."""

from __future__ import annotations

from tasks.fingerprint import fingerprint


def test_a_fingerprint_tells_where_parts_end() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("ab", b"c") == fingerprint("ab", "c")
