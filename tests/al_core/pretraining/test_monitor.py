"""What embeddings look like: hand-worked cases, and the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from al_core.pretraining.monitor import Health, health


def test_points_on_the_axes_are_as_different_as_can_be() -> None:
    """+-e_i in d dimensions: every dimension has variance 1 / d, and all singular values are alike."""
    d = 6
    x = torch.cat([torch.eye(d), -torch.eye(d)]) * torch.linspace(1, 9, 2 * d)[:, None]
    seen = health(x)
    assert seen.spread == pytest.approx(1.0)
    assert health(torch.cat([torch.eye(d), -torch.eye(d)])).rank == pytest.approx(d)
    assert not seen.collapsed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_no_numbers_have_collapsed(value: float) -> None:
    x = torch.eye(6)
    x[3, 2] = value
    seen = health(x)
    assert math.isnan(seen.rank)
    assert seen.collapsed


def test_one_point_repeated_has_collapsed() -> None:
    x = torch.full((10, 4), 3.0)
    assert health(x).spread == pytest.approx(0, abs=1e-12)
    assert health(x).collapsed
    assert health(torch.zeros(10, 4)).collapsed


def test_points_on_a_line_have_collapsed_although_they_differ() -> None:
    x = torch.linspace(-1, 1, 20)[:, None] * torch.ones(5)
    seen = health(x)
    assert seen.rank == pytest.approx(1)
    assert seen.collapsed


def test_a_head_that_makes_the_same_of_all_has_collapsed_although_the_embeddings_have_not() -> None:
    assert not health(torch.eye(6)).collapsed
    assert health(torch.eye(6), torch.eye(6)).head_spread == pytest.approx(health(torch.eye(6)).spread)
    assert health(torch.eye(6), torch.ones(6, 3) + 1e-4 * torch.eye(6)[:, :3]).collapsed


def test_numbers_that_are_none_count_as_collapsed() -> None:
    assert Health(math.nan, 3.0).collapsed
    assert Health(0.5, math.nan).collapsed
    assert Health(0.5, 3.0, math.nan).collapsed


def test_rank_is_exp_of_the_entropy_of_singular_values() -> None:
    x = np.random.default_rng(0).normal(size=(30, 5)) * [5, 3, 1, 0.1, 0.01] + 7
    values = np.sqrt(np.linalg.eigvalsh(np.cov(x.T, bias=True)).clip(0) * len(x))
    shares = values / values.sum()
    assert health(torch.from_numpy(x)).rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


def test_neighbours_vote_for_the_label() -> None:
    """Two bundles of directions; of the second, one image carries the other's label, and one none."""
    angles = torch.tensor([0.0, 0.05, 0.1, 0.15, 1.5, 1.54, 1.6, 1.65])
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, -1])
    assert health(x, labels=labels).probe == 1.0
    labels[4] = 0  # k is 1, as class 1 has one other; 4 and 5 are nearest to each other and differ, 6 has 5
    assert health(x, labels=labels).probe == pytest.approx(5 / 7)


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, 0, -1], [0, 1, 2]])
def test_without_two_classes_and_two_of_one_there_is_no_probe(labels: list[int]) -> None:
    assert health(torch.eye(3), labels=np.array(labels)).probe is None


def test_without_labels_there_is_no_probe() -> None:
    assert health(torch.eye(3)).probe is None
