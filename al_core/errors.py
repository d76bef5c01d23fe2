"""What errors of others say."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Of an error's text; its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
