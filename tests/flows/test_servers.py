from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from flows import servers, tracking
from tasks.errors import WorkspaceError
from tasks.workspace import Workspace
from tests.conftest import alive

SERVE = """
import sys
from pathlib import Path
from flows.servers import serve
from tasks.workspace import Workspace
serve(Workspace(Path(sys.argv[1])), lambda line: print(line, flush=True))
"""


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def listening(url: str) -> bool:
    port = int(url.rsplit(":", 1)[1])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    children: dict[int, list[int]] = {}
    for child, above in zip(map(int, listed[::2]), map(int, listed[1::2]), strict=True):
        children.setdefault(above, []).append(child)
    found = list(children.get(pid, []))
    for each in found:
        found += children.get(each, [])
    return found


def test_the_locked_prefect_and_mlflow_servers_start_serve_and_end(
    finished: Workspace, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished.private.mkdir(exist_ok=True)
    shutil.copy(empty_database, finished.private / "mlflow.db")
    environment = {key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell lets what it runs in the background ignore Ctrl-C, tests included
    child = subprocess.Popen([sys.executable, "-c", SERVE, str(finished.root)], stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=heed)
    assert child.stdout is not None
    try:
        lines = [child.stdout.readline().strip() for _ in range(3)]
        assert lines[2] == "Ctrl-C ends both", lines
        prefect, mlflow = (line.split()[1] for line in lines[:2])
        assert page(f"{prefect}/api/health") == "true"
        assert "<title>Prefect" in page(prefect)
        assert page(f"{mlflow}/health") == "OK"
        assert "MLflow" in page(mlflow)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)  # a round over HTTP, artifacts through the server
        assert tracking.track(finished, "r001").endswith(f"of experiment 'workspace' in {mlflow}")
        assert tracking.track(finished, "r001").endswith("it was there already")
        assert list((finished.private / "mlartifacts").rglob("model.pt2"))
        family = descendants(child.pid)
        assert len(family) >= 2
    finally:
        child.send_signal(signal.SIGINT)
        code = child.wait(60)
    assert code == 0
    time.sleep(0.5)
    assert not [pid for pid in family if alive(pid)]
    assert not listening(prefect)
    assert not listening(mlflow)


def test_servers_of_others_are_named_and_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:hunter2@prefect.example.org/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    said: list[str] = []
    servers.serve(Workspace(tmp_path), said.append)
    assert said == [
        "Prefect http://***@prefect.example.org  (not ours: named by the environment)",
        "MLflow  https://mlflow.example.org  (not ours: named by the environment)",
    ]


def test_a_database_in_the_environment_is_served_by_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/mlflow.db")
    assert "sqlite:////elsewhere/mlflow.db" in servers.mlflow_server(Workspace(tmp_path)).command


def test_a_server_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    broken = servers.Server("Prefect", "", "http://127.0.0.1:9/", [sys.executable, "-c", "print('Body() got min_items'); raise SystemExit(3)"])
    log = tmp_path / "log"
    with servers.started(broken, log) as child, pytest.raises(WorkspaceError) as caught:
        servers.wait_until_ready(broken, log, child)
    assert str(caught.value) == "the Prefect server ended with 3; `rondo doctor` may know why:\nBody() got min_items"


def test_a_server_that_never_answers_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PATIENCE", 0.3)
    mute = servers.Server("MLflow", "", "http://127.0.0.1:9/health", [sys.executable, "-c", "import time; time.sleep(60)"])
    with servers.started(mute, tmp_path / "log") as child, pytest.raises(WorkspaceError, match=r"did not answer at http://127.0.0.1:9/health within 0\.3 s"):
        servers.wait_until_ready(mute, tmp_path / "log", child)
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_ctrl_c_but_for_those_that_nohup_ignores(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with pytest.raises(KeyboardInterrupt), servers.signals_end_us():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with servers.signals_end_us():
            os.kill(os.getpid(), number)
            time.sleep(0.05)
    finally:
        signal.signal(number, before)


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert servers.free_port(port) > port
