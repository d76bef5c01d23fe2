"""The table of `rondo reproduce`."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from tasks.reproduce import Comparison, Row, render


def shown(*rows: Row) -> list[str]:
    """The lines as a terminal of 80 columns has them."""
    screen = Console(file=StringIO(), width=80)
    screen.print(render(Comparison("r002", list(rows))))
    assert isinstance(screen.file, StringIO)
    return screen.file.getvalue().splitlines()


def test_no_verdict_is_cut_at_80_columns() -> None:
    one, other = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210.dir"
    lines = shown(
        Row("import-labels", "output", "./selection.parquet", one, one),
        Row("import-labels", "output", "./predictions.parquet", one, other),
        Row("import-labels", "input", "../../pools/p001/encoder.safetensors", other, "missing"),
        Row("import-labels", "input", "../../pools/p001/manifest.parquet", one, one),
    )
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [
        ["import-labels", "selection.parquet", "01234567", "01234567", "identical"],
        ["import-labels", "predictions.parquet", "01234567", "fedcba98", "output differs"],
        ["import-labels", "../../pools/p001/enco", "fedcba98", "missing", "input differs"],
        ["", "der.safetensors", "", "", ""],
    ]
    assert lines[-1] == "1 of 2 outputs are identical"
