"""A training's state on disk: what comes back, and what a kill, other inputs and damage do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tasks.checkpoint import Checkpoint
from tasks.errors import ArtifactError


def trained(seed: int) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return layer, optimizer


def state_of(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"part": 7, "done": [[1, 0.1, None], [2, 1e-300, 0.5]], "layer": layer.state_dict(), "optimizer": optimizer.state_dict()}


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    layer, optimizer = trained(0)
    Checkpoint(tmp_path / "run", "a").save(state_of(layer, optimizer))
    back = Checkpoint(tmp_path / "run", "a").load()
    assert back is not None
    assert (back["part"], back["done"]) == (7, [[1, 0.1, None], [2, 1e-300, 0.5]])
    other, another = trained(1)
    other.load_state_dict(back["layer"])
    another.load_state_dict(back["optimizer"])
    for one, two in ((layer, optimizer), (other, another)):
        one(torch.ones(1, 3)).square().sum().backward()
        two.step()
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_tensors_that_share_memory_are_kept(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    Checkpoint(tmp_path / "run", "a").save({"x": x, "part": x[2:4], "turned": x.view(2, 3).T})
    back = Checkpoint(tmp_path / "run", "a").load()
    assert back is not None
    assert back["part"].tolist() == [2, 3]
    assert back["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_state_of_other_inputs_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoint(tmp_path / "run", "a").save({"part": 7})
    assert Checkpoint(tmp_path / "run", "b").load() is None
    assert capsys.readouterr().err == "run is of other params or images; the training starts from the beginning\n"
    assert Checkpoint(tmp_path / "run", "a").load() == {"part": 7}


def test_a_state_says_all_environments_that_it_is_from(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run", "a", here=[{"threads": 1}]).save({"part": 1})
    Checkpoint(tmp_path / "run", "b", here=[{"threads": 9}]).load()
    second = Checkpoint(tmp_path / "run", "a", here=[{"threads": 2}, {"threads": 1}])
    assert second.earlier == []
    second.load()
    assert second.earlier == [{"threads": 1}]
    second.save({"part": 2})
    assert second.earlier == [{"threads": 1}], "what this run has done is none of it"
    third = Checkpoint(tmp_path / "run", "a")
    third.load()
    assert third.earlier == [{"threads": 1}, {"threads": 2}]


def test_a_save_that_is_cut_off_leaves_the_state_before(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "run", "a")
    kept.save({"part": 1})
    with patch("os.fsync", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        kept.save({"part": 2})
    assert kept.load() == {"part": 1}


def test_a_damaged_file_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Checkpoint(path, "a").save({"x": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=rf"{re.escape(str(path))} is damaged \(.+\); delete it, and the training starts from the beginning"):
        Checkpoint(path, "a").load()
