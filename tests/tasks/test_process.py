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
from tests.conftest import alive


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


ORPHAN = """
import os, signal, subprocess, sys, time
child = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), open('said', 'w').write('goodbye'), sys.exit())); "
child += "open('ready', 'w').close(); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
while not os.path.exists("ready"):
    time.sleep(0.02)
print("x", flush=True)
time.sleep(60)
"""


def test_what_outlives_the_leader_of_its_group_is_given_time_to_end(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run([sys.executable, "-c", ORPHAN], tmp_path, stop)  # the leader dies of SIGTERM at once, its child tidies up first
    assert (tmp_path / "said").read_text() == "goodbye"


def test_what_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    process.end_group(child, patience=0.3)
    assert child.returncode == -signal.SIGKILL
