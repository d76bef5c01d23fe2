"""Two runs have the same fingerprint only if they depend on the same."""

from __future__ import annotations

import hashlib

from tasks.fingerprint import fingerprint


def test_a_fingerprint_tells_where_parts_end() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("ab", b"c") == fingerprint("ab", "c")


def test_it_is_the_sha256_of_lengths_and_bytes() -> None:
    assert fingerprint("ü", b"") == hashlib.sha256(bytes(7) + b"\x02\xc3\xbc" + bytes(8)).hexdigest()
