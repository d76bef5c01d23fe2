"""Lines about long work."""

from __future__ import annotations

import pytest

from tasks.progress import Told, line, progress


def test_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), 3, "ingest: files", every=0)) == [0, 1, 2]
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("ingest: files 1 of 3 (33%), ")
    assert second.startswith("ingest: files 2 of 3 (66%), ")
    assert last.startswith("ingest: files 3 of 3, ")
    assert list(progress(range(1000), 1000, "x")) == list(range(1000))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_progress_tells_rate_and_time_left() -> None:
    assert line("ingest: files", 1200, 20_000, 2.0) == "ingest: files 1,200 of 20,000 (6%), 600/s, 31 s left"
    assert line("epochs", 1, 100, 50.0) == "epochs 1 of 100 (1%), 0.02/s, 1 h 22 min left"
    assert line("ingest: files", 20_000, 20_000, 200.0) == "ingest: files 20,000 of 20,000, 100/s, took 3 min 20 s"
    assert line("ingest: files", 0, 0, 0.0) == "ingest: files 0 of 0"


def test_what_is_told_from_elsewhere_is_printed_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tasks.progress.time.monotonic", lambda: now[0])
    told = Told("acquire: badge")
    for done in range(5):  # one a second
        told("picks", done, 8)
        now[0] += 1
    told("picks", 8, 8)
    told("rows", 0, 10)
    told("rows", 10, 10)  # at once: not worth a line
    told("picks", 1, 8)  # anew: what came before does not count
    now[0] += 2
    told("picks", 3, 8)
    now[0] += 2
    told("picks", 4, 8, "loss 0.5000")
    assert capsys.readouterr().err.splitlines() == [
        "acquire: badge: picks 2 of 8 (25%), 1/s, 6 s left",
        "acquire: badge: picks 4 of 8 (50%), 1/s, 4 s left",
        "acquire: badge: picks 8 of 8, 1.6/s, took 5 s",
        "acquire: badge: picks 3 of 8 (37%), 1.5/s, 3 s left",
        "acquire: badge: picks 4 of 8 (50%), 1/s, 4 s left, loss 0.5000",
    ]
