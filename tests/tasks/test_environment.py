"""What a stage notes of its machine, and how nearly it can be run again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tasks import environment
from tasks.params import Params


def params(**content: object) -> Params:
    return Params.check(content, "test")


@pytest.mark.parametrize(
    ("stage", "content", "expected"),
    [
        ("acquire", {"acquire": {"method": {"name": "margin"}}}, "bitwise"),
        ("acquire", {"acquire": {"method": {"name": "robust-coreset"}}}, "statistical"),
        ("acquire", {"acquire": {"method": {"name": "diffusion", "index": "hnsw"}}}, "statistical"),
        ("acquire", {"acquire": {"method": {"name": "diffusion", "index": "ivf"}}}, "bitwise"),
        ("embed", {"acquire": {"method": {"name": "robust-coreset"}}, "pretrain": {"compile": True}}, "bitwise"),
        ("pretrain", {"pretrain": {"compile": True}}, "statistical"),
        ("pretrain", {}, "bitwise"),
    ],
)
def test_what_a_clock_or_a_race_has_a_say_in_is_statistical(stage: str, content: dict[str, object], expected: str) -> None:
    assert environment.level(stage, params(**content)) == expected


def test_the_machine_is_described_and_two_descriptions_of_it_agree() -> None:
    here = environment.describe()
    assert here["libraries"]["torch"].startswith(torch.__version__.split("+")[0])
    assert here["threads"] >= 1
    assert environment.differences(here, environment.describe()) == []
    assert environment.differences(here | {"processor": "another"}, here) == [f"processor: {here['processor']} then, another now"]


def test_describing_a_machine_does_not_import_torch() -> None:
    script = "import sys; from tasks import environment; environment.describe(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_a_gpu_no_cuda_was_used() -> None:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        assert environment.cuda() is None


@pytest.mark.gpu
def test_cuda_is_noted_where_it_was_used() -> None:
    torch.zeros(1, device="cuda")
    assert str(torch.version.cuda) in (environment.cuda() or "")
