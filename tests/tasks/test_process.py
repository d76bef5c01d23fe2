"""Child processes: their output, their errors, and that none outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import process


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: object, seconds: float = 10.0) -> bool:
    assert callable(condition)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_output_is_returned_and_streamed_line_by_line(tmp_path: Path) -> None:
    lines: list[str] = []
    text = process.run([sys.executable, "-c", "import sys; print('a'); sys.stdout.flush(); print('b', file=sys.stderr)"], tmp_path, lines.append)
    assert text == "a\nb\n"
    assert lines == ["a", "b"]


def test_failure_carries_code_and_output(tmp_path: Path) -> None:
    with pytest.raises(process.ChildError, match=r"(?s)ended with 3.*why") as caught:
        process.run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path)
    assert caught.value.code == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_parent_takes_child_and_grandchild_along(tmp_path: Path) -> None:
    # the chain of a round: rondo -> dvc -> shell -> stage, the stage asking for it itself
    stage = (
        "import os, time; from tasks.process import die_with_supervisor; die_with_supervisor(); open('stage.pid', 'w').write(str(os.getpid())); time.sleep(60)"
    )
    (tmp_path / "stage.py").write_text(stage)
    middle = f"import subprocess, os; open('dvc.pid', 'w').write(str(os.getpid())); subprocess.run('{sys.executable} stage.py', shell=True)"
    (tmp_path / "dvc.py").write_text(middle)
    outer = f"from pathlib import Path; from tasks import process; process.run([{sys.executable!r}, 'dvc.py'], Path('.'))"
    rondo = subprocess.Popen([sys.executable, "-c", outer], cwd=tmp_path)
    files = [tmp_path / "dvc.pid", tmp_path / "stage.pid"]
    assert wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    assert all(alive(pid) for pid in pids)
    os.kill(rondo.pid, signal.SIGKILL)
    rondo.wait()
    assert wait_for(lambda: not any(alive(pid) for pid in pids))


def test_an_exception_while_reading_ends_the_group(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    code = "import os, sys, time; open('pid', 'w').write(str(os.getpid())); print('x', flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        process.run([sys.executable, "-c", code], tmp_path, stop)
    assert wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))
