import subprocess
import sys

import pytest
import torch

from al_core.encoders import MEAN, STD, build, deterministic, n_parameters


def test_small_gives_one_vector_an_image_at_every_size() -> None:
    encoder = build("small", 0).eval()
    for size in (8, 16, 33):
        assert encoder(torch.rand(5, 3, size, size)).shape == (5, encoder.dim)


def test_small_has_the_weights_of_four_convolutions_and_batch_norms() -> None:
    by_hand = 9 * (3 * 16 + 16 * 32 + 32 * 64 + 64 * 128) + 2 * (16 + 32 + 64 + 128)
    assert n_parameters(build("small", 0)) == by_hand


def test_resnet18_is_the_published_network_without_its_classifier() -> None:
    encoder = build("resnet18", 0).eval()
    assert n_parameters(encoder) == 11_689_512 - (512 * 1000 + 1000)
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.dim) == (2, 512)


def test_channels_are_normalised_inside() -> None:
    encoder = build("small", 0).eval()
    images = torch.rand(2, 3, 8, 8)
    normalised = torch.stack([(images[:, channel] - MEAN[channel]) / STD[channel] for channel in range(3)], dim=1)
    torch.testing.assert_close(encoder(images), encoder.body(normalised))


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("small", 7).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "building drew from the global generator"
    again, other = build("small", 7).state_dict(), build("small", 8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["body.0.weight"], other["body.0.weight"])
    assert "mean" not in first, "constants are no weights"


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown encoder 'resnet9'; the encoders are small, resnet18"):
        build("resnet9", 0)  # type: ignore[arg-type]


def test_deterministic_puts_the_switches_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), deterministic(threads + 1):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == threads + 1
        raise RuntimeError("inside")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


def test_torch_and_numpy_are_enough() -> None:
    script = """
import sys
for absent in ("lightly", "torchvision", "sklearn", "PIL", "timm", "faiss"):
    sys.modules[absent] = None
import torch
from al_core import encoders, features, finetune, linear, loading, metrics, pretraining
print(encoders.build("small", 0).eval()(torch.rand(2, 3, 8, 8)).shape[1])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "128\n"), run.stderr
