"""A small labelling programme on real digits, run once and copied for each test that needs one.

What stages need beyond torch and NumPy is imported where it is used, so that tests of al_core run where there is nothing else.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from tasks import rounds
    from tasks.params import Params
    from tasks.workspace import Round, Workspace

CLASSES = ["three", "two", "zero"]
NUMBERS = {"zero": 0, "two": 2, "three": 3}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--stand-in` runs what compares a GPU with the CPU where there is no GPU, on something that fails where a GPU would."""
    parser.addoption("--stand-in", action="store_true", help="run tests that take a GPU on tests/stand_in.py instead")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests for a GPU skip where there is none. On a stand-in those about CUDA itself do, and all others: torch takes it for the device to use."""
    for item in items:
        gpu, cuda = (item.get_closest_marker(name) is not None for name in ("gpu", "cuda"))
        if config.option.stand_in and not gpu:
            item.add_marker(pytest.mark.skip(reason="not for --stand-in"))
        elif gpu and not torch.cuda.is_available() and (cuda or not config.option.stand_in):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def stand_in(pytestconfig: pytest.Config) -> Iterator[ModuleType | None]:
    """The module of the stand-in, where it takes a GPU's place."""
    if not pytestconfig.option.stand_in:
        yield None
        return
    stand_in = pytest.importorskip("tests.stand_in", reason="this torch lets no device be written in Python", exc_type=ImportError)
    with stand_in.registered():
        yield stand_in


@pytest.fixture
def gpu(stand_in: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """torch's name of a device that is not the CPU; whatever asked it for deterministic algorithms got them."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as stages are started
    if stand_in is None:
        yield "cuda"
        return
    stand_in.noted.clear()
    yield stand_in.NAME
    assert not stand_in.noted, "CUDA has no deterministic algorithm for these"


def write_digits(folder: Path, per_class: int) -> Path:
    """Class folders of 8 x 8 grey PNG files out of scikit-learn's digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for name, number in NUMBERS.items():
        (folder / name).mkdir(parents=True)
        for index in np.flatnonzero(digits.target == number)[:per_class]:
            Image.fromarray((digits.images[index] * 15).astype(np.uint8)).save(folder / name / f"{index:04}.png")
    return folder


def params_for(source: Path, **changes: object) -> Params:
    """Params of a programme that takes seconds: no pretraining, tiny images, 12 labels a round, answered by the oracle."""
    from tasks.params import Params

    content: dict[str, object] = {
        "classes": CLASSES,
        "programme": {"budget": 24},
        "ingest": {"source": str(source), "labels": "ignore", "workers": 1},
        "pretrain": {"method": "none", "image_size": 8},
        "embed": {"workers": 0},
        "retrain": {"workers": 0},
        "acquire": {"budget": 12, "control": 0.25},
        "import-labels": {"labeller": "oracle"},
    }
    return Params.check(content | changes, "test")


def nothing(_: Round) -> None:
    """In place of report and tracking."""


def advance(workspace: Workspace, max_rounds: int | None = None) -> rounds.State:
    """The cycle without Prefect."""
    from tasks import rounds

    return rounds.advance(workspace, rounds.run_stage, nothing, max_rounds)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("source") / "digits", 30)


@pytest.fixture(scope="session")
def finished_once(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a pool and two closed rounds, its DVC remote beside it. Not to be changed: take `finished`."""
    from tasks import dvc, git, rounds
    from tasks.workspace import init

    root = tmp_path_factory.mktemp("finished") / "workspace"
    workspace = init(root, params_for(digits_folder))
    dvc.dvc(root, "remote", "add", "--quiet", "--default", "beside", "../remote")
    git.commit(root, [".dvc/config"], "Add a remote")
    assert advance(workspace).name == rounds.BUDGET_SPENT
    return root


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Workspace:
    """A workspace with a pool and two closed rounds, of the test's own."""
    from tasks.workspace import Workspace

    shutil.copytree(finished_once.parent, tmp_path / "finished", symlinks=True)
    return Workspace(tmp_path / "finished" / "workspace")


@pytest.fixture
def begun(digits_folder: Path, tmp_path: Path) -> Callable[..., Workspace]:
    """Makes a workspace with changed params, nothing run yet."""
    from tasks.workspace import init

    def make(**changes: object) -> Workspace:
        return init(tmp_path / "workspace", params_for(digits_folder, **changes))

    return make


@pytest.fixture
def with_pool(finished: Workspace) -> Callable[..., Workspace]:
    """A workspace whose pool is made and whose rounds have not begun, with changed params."""
    from tasks import git
    from tasks.params import render

    def make(**changes: object) -> Workspace:
        base = git.git(finished.root, "rev-list", "-1", "pool-p001")
        git.git(finished.root, "reset", "--hard", "--quiet", base)
        for tag in git.tags(finished.root, "round-*"):
            git.git(finished.root, "tag", "--delete", tag)
        shutil.rmtree(finished.root / "rounds")
        source = finished.params.ingest.source
        (finished.root / "params.yaml").write_text(render(params_for(Path(source), **changes)), "utf-8")
        git.commit(finished.root, ["params.yaml"], "Change params")
        return finished

    return make


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie, which only waits for init."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def run_rondo(*arguments: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line as a user calls it."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
