"""The Prefect and MLflow pages of a workspace, served on this machine alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from flows.addresses import redact, responds
from flows.tracking import SETTINGS, tracking_uri
from tasks.errors import WorkspaceError
from tasks.process import die_with_parent, end_group
from tasks.workspace import Workspace

HOST = "127.0.0.1"  # loopback: neither server asks who comes
PATIENCE = 120.0  # seconds until a server must answer; its first start makes its database


@dataclass(frozen=True)
class Server:
    """One of the two: where its page is, and how it is started where it is ours to start."""

    name: str
    page: str
    health: str = ""  # address that answers when the server is ready
    command: Sequence[str] = ()  # empty: somebody else runs it
    environment: dict[str, str] = field(default_factory=dict)


def serve(workspace: Workspace, say: Callable[[str], None]) -> None:
    """Start what is not running elsewhere, say where to look, and stay until Ctrl-C, SIGTERM or SIGHUP; then end what was started.

    Raises:
        WorkspaceError: a server ended by itself or did not answer in time; its last words are in the message.
    """
    workspace.private.mkdir(exist_ok=True)
    servers = [prefect_server(), mlflow_server(workspace)]
    with signals_end_us(), contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        logs = [(server, workspace.private / f"{server.name.lower()}-server.log") for server in servers if server.command]
        running = [(server, log, stack.enter_context(started(server, log))) for server, log in logs]
        for server, log, child in running:
            wait_until_ready(server, log, child)
        for server in servers:
            say(f"{server.name:8}{server.page}" + ("" if server.command else "  (not ours: named by the environment)"))
        if running:
            say("Ctrl-C ends both" if len(running) == 2 else "Ctrl-C ends it")
        while running:
            for server, log, child in running:
                require_alive(server, log, child)
            time.sleep(0.5)


def prefect_server() -> Server:
    """PREFECT_API_URL's, or one of our own on the database in PREFECT_HOME."""
    elsewhere = os.environ.get("PREFECT_API_URL")
    if elsewhere:
        return Server("Prefect", redact(elsewhere.rstrip("/").removesuffix("/api")))
    port = free_port(4200)
    page = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    return Server("Prefect", page, f"{page}/api/health", command, {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"})


def mlflow_server(workspace: Workspace) -> Server:
    """MLFLOW_TRACKING_URI's where that is a server, or one of our own on the database that rounds are tracked in."""
    uri = tracking_uri(workspace)
    if urlsplit(uri).scheme in ("http", "https"):
        return Server("MLflow", redact(uri))
    port = free_port(5000)
    page = f"http://{HOST}:{port}"
    artifacts = (workspace.private / "mlartifacts").absolute()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts)]
    return Server("MLflow", page, f"{page}/health", command, {**SETTINGS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})


@contextlib.contextmanager
def started(server: Server, log: Path) -> Iterator[subprocess.Popen[str]]:
    """The server as a child in a group of its own, for a block; its output goes to the log."""
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            server.command,
            cwd=log.parent,
            env={**os.environ, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        yield child
    finally:
        end_group(child)


def wait_until_ready(server: Server, log: Path, child: subprocess.Popen[str]) -> None:
    """Return when it answers."""
    end = time.monotonic() + PATIENCE
    while not responds(server.health):
        require_alive(server, log, child)
        if time.monotonic() > end:
            raise WorkspaceError(f"the {server.name} server did not answer at {server.health} within {PATIENCE:g} s:\n{last_words(log)}")
        time.sleep(0.2)


def require_alive(server: Server, log: Path, child: subprocess.Popen[str]) -> None:
    """Raise with its last words if it has ended."""
    if child.poll() is not None:
        raise WorkspaceError(f"the {server.name} server ended with {child.returncode}; `rondo doctor` may know why:\n{last_words(log)}")


def last_words(log: Path) -> str:
    """The end of a server's log."""
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:])


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on.

    Raises:
        WorkspaceError: a hundred are taken.
    """
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise WorkspaceError(f"no port between {first} and {first + 99} is free on {HOST}; end a server that you no longer need")


@contextlib.contextmanager
def signals_end_us() -> Iterator[None]:
    """SIGTERM and SIGHUP (the terminal was closed) do what Ctrl-C does, so that the servers are ended too; what nohup ignores stays ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal as Ctrl-C."""
    raise KeyboardInterrupt
