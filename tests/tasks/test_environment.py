"""What a stage notes of its machine, and how nearly it can be run again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tasks import environment
from tasks.environment import Elsewhere
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


HERE = {"processor": "A", "threads": 4, "cuda": None, "libraries": {"torch": "2.9"}}


def test_a_gpu_that_only_the_processes_of_the_group_used_was_used() -> None:
    children = [HERE | {"cuda": "12.8, cuDNN 9"}] * 2
    assert environment.joined(HERE, Elsewhere(processes=children)) == children[0]
    assert environment.joined(HERE, Elsewhere()) == HERE


def test_of_other_environments_the_record_says_what_is_different_there() -> None:
    with_gpu = HERE | {"cuda": "12.8, cuDNN 9"}
    children, earlier = [with_gpu, with_gpu | {"threads": 1}], [with_gpu | {"processor": "B", "libraries": {"torch": "2.8"}}, with_gpu]
    joined = environment.joined(HERE, Elsewhere(children, earlier))
    assert joined == with_gpu | {"others": [{"processor": "B", "libraries": {"torch": "2.8"}}, {"threads": 1}]}
    assert environment.differences(with_gpu, joined) == [
        "others.1.libraries.torch: 2.8 then, absent now",
        "others.1.processor: B then, absent now",
        "others.2.threads: 1 then, absent now",
    ]


@pytest.mark.parametrize(
    ("elsewhere", "mixed"),
    [
        (Elsewhere(), False),
        (Elsewhere(earlier=[HERE]), False),
        (Elsewhere(earlier=[HERE, HERE | {"threads": 2}]), True),
        (Elsewhere(processes=[HERE | {"threads": 2}], earlier=[HERE | {"threads": 2}]), False),
    ],
)
def test_what_was_gone_on_with_in_another_environment_is_mixed(elsewhere: Elsewhere, mixed: bool) -> None:
    assert elsewhere.mixed(HERE) == mixed


@pytest.mark.cuda
@pytest.mark.gpu
def test_cuda_is_noted_where_it_was_used() -> None:
    torch.zeros(1, device="cuda")
    assert str(torch.version.cuda) in (environment.cuda() or "")
