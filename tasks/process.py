"""Child processes that never outlive us, in groups of their own so that a signal reaches all of their descendants."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.errors import RondoError

SUPERVISOR = "RONDO_SUPERVISOR"  # environment: pid@node of the process that must be alive for its children to go on

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class ChildError(RondoError):
    """A child process ended with an error; `output` is all that it said."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        super().__init__(f"`{' '.join(command)}` ended with {code}:\n{output.rstrip()}")
        self.code, self.output = code, output


def die_with_parent() -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends, whatever ends it."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_supervisor() -> None:
    """End this process, with its whole group, when the `run` above it is gone: between them stand DVC and a shell, which do not pass a death on."""
    pid, _, node = os.environ.get(SUPERVISOR, "").partition("@")
    if pid and node == platform.node():  # a wrapped command may run on another machine, whose processes are none of ours
        threading.Thread(target=_watch, args=(int(pid),), name="supervisor", daemon=True).start()


def _watch(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        try:
            select.select([os.pidfd_open(pid)], [], [])
        except (AttributeError, OSError) as error:  # neither macOS nor every container has it
            if isinstance(error, ProcessLookupError):
                raise
            while True:
                with contextlib.suppress(PermissionError):
                    os.kill(pid, 0)
                time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run(command: Sequence[str], folder: Path, on_line: Callable[[str], None] | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a command in a session of its own and return what it printed, both streams together.

    Args:
        command: program and arguments.
        folder: its working directory.
        on_line: called with each line as it comes.
        environment: added to ours.

    Raises:
        ChildError: it ended with anything but 0. On any exception here, its whole group is ended first.
    """
    child = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, SUPERVISOR: f"{os.getpid()}@{platform.node()}", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    lines = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line)
            if on_line:
                on_line(line.rstrip("\n"))
        child.wait()
    except BaseException:
        end_group(child)
        raise
    if child.returncode:
        raise ChildError(command, child.returncode, "".join(lines))
    return "".join(lines)


def end_group(child: subprocess.Popen[str], patience: float = 10.0) -> None:
    """Ask the child's group to end, and kill what is left of it after `patience` seconds; its leader may end before the others do."""
    deadline = time.monotonic() + patience
    with contextlib.suppress(ProcessLookupError):  # none is left
        os.killpg(child.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            child.poll()  # else the leader stays in the group as a zombie
            os.killpg(child.pid, 0)
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(patience)
