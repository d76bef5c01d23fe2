import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from al_core.encoders import MEAN, STD, Encoder, build, deterministic, n_parameters
from al_core.seeds import drawing


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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet9", "did you mean resnet50 or resnet34 or resnet18?"),
        ("vit_small_patch16_224", "did you mean timm/vit_small_patch16_224 or timm/deit_small_patch16_224 or timm/vit_small_patch8_224?"),
        ("timm/resnet17", "did you mean timm/resnet18 or "),
        ("ours", "they are small, bayesian-cnn, torchvision's (resnet50, ...) and timm's (timm/resnet50, ...)"),
    ],
)
def test_an_unknown_name_says_which_are_near(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown encoder") as caught:
        build(name, 0)
    assert str(caught.value).startswith(f"unknown encoder {name!r}; {hint}")


def test_a_name_of_torchvision_gives_its_network_up_to_the_last_layer() -> None:
    from torchvision.models import mobilenet_v3_small

    encoder, published = build("mobilenet_v3_small", 0).eval(), mobilenet_v3_small().eval()
    published.load_state_dict(encoder.body.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    normalised = torch.stack([(images[:, channel] - MEAN[channel]) / STD[channel] for channel in range(3)], dim=1)
    before_last = published.classifier[:3](published.avgpool(published.features(normalised)).flatten(1))
    torch.testing.assert_close(encoder(images), before_last)
    assert encoder.dim == published.classifier[3].in_features


def test_a_name_of_timm_gives_its_pooled_features_of_channels_as_its_weights_expect() -> None:
    import timm

    encoder = build("timm/vit_tiny_patch16_224", 0, image_size=64).eval()
    published: Any = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    published.load_state_dict(encoder.body.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(encoder(images), published.forward_features((images - 0.5) / 0.5)[:, 0])


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_the_cifar_stem_keeps_all_places_of_a_small_image(name: str) -> None:
    encoder = build(name, 0, image_size=32, stem="cifar").eval()
    assert outputs(encoder, 32) == [(1, 64, 32, 32), (1, 128, 16, 16), (1, 256, 8, 8), (1, 512, 4, 4)]
    assert n_parameters(build(name, 0)) - n_parameters(encoder) == (7 * 7 - 3 * 3) * 3 * 64


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("small", 16, [(1, 16, 16, 16), (1, 32, 8, 8), (1, 64, 4, 4), (1, 128, 2, 2)]),
        ("bayesian-cnn", 28, [(1, 32, 25, 25), (1, 32, 22, 22)]),
        ("resnet18", 224, [(1, 64, 56, 56), (1, 128, 28, 28), (1, 256, 14, 14), (1, 512, 7, 7)]),
        ("mobilenet_v3_small", 64, [(1, 16, 16, 16), (1, 24, 8, 8), (1, 48, 4, 4), (1, 576, 2, 2)]),
        ("shufflenet_v2_x0_5", 64, [(1, 24, 16, 16), (1, 48, 8, 8), (1, 96, 4, 4), (1, 1024, 2, 2)]),
        ("regnet_y_400mf", 64, [(1, 48, 16, 16), (1, 104, 8, 8), (1, 208, 4, 4), (1, 440, 2, 2)]),
        ("swin_t", 64, [(1, 16, 16, 96), (1, 8, 8, 192), (1, 4, 4, 384), (1, 2, 2, 768)]),
        ("timm/vit_tiny_patch16_224", 64, [(1, 1 + 4 * 4, 192)] * 4),
    ],
)
def test_stages_are_the_maps_that_the_network_makes_on_its_way(name: str, size: int, expected: list[tuple[int, ...]]) -> None:
    assert outputs(build(name, 0, image_size=size), size) == expected


def test_stages_of_a_vit_are_every_third_of_twelve_blocks() -> None:
    assert build("timm/vit_tiny_patch16_224", 0).stages == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")


def outputs(encoder: Encoder, size: int) -> list[tuple[int, ...]]:
    """Shapes that the stages give for one image, in the order in which they run."""
    seen: list[tuple[int, ...]] = []
    for name in encoder.stages:
        encoder.body.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(tuple(output.shape)))
    with torch.inference_mode():
        encoder.eval()(torch.rand(1, 3, size, size))
    return seen


def test_the_bayesian_cnn_is_the_papers() -> None:
    encoder = build("bayesian-cnn", 0, image_size=28)
    dense = 32 * 11 * 11 * 128 + 128  # 28 px, less 3 for each convolution, halved
    assert n_parameters(encoder) == (3 * 4 * 4 * 32 + 32) + (32 * 4 * 4 * 32 + 32) + dense
    assert [module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)] == [0.25, 0.5]
    images = torch.rand(3, 3, 28, 28)
    assert not torch.equal(encoder(images), encoder(images)), "dropout draws anew for each pass"
    assert encoder.eval()(images).shape == (3, 128)


def test_building_leaves_the_network_as_it_was_made() -> None:
    encoder = build("resnet18", 0)
    assert all(module.training for module in encoder.modules())
    assert all(tensor.device.type == "cpu" for tensor in encoder.state_dict().values())
    assert not any(module._forward_hooks for module in encoder.modules())


@pytest.mark.parametrize(
    ("name", "size", "stem", "message"),
    [
        ("vit_b_16", 30, "standard", "encoder 'vit_b_16' does not take images of 30 px: Input shape indivisible by patch size!"),
        ("bayesian-cnn", 7, "standard", "encoder 'bayesian-cnn' does not take images of 7 px: it needs 8 px at least"),
        ("resnet18", 32, "tall", "unknown stem 'tall'; the stems are standard, cifar"),
        (
            "small",
            32,
            "cifar",
            "stem 'cifar' replaces the first convolution and the max-pooling of a ResNet; encoder 'small' has no such pair: use stem 'standard'",
        ),
    ],
)
def test_what_a_network_cannot_be(name: str, size: int, stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(name, 0, image_size=size, stem=stem)


def test_a_size_that_is_too_small_for_the_layers_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"^encoder 'inception_v3' does not take images of 32 px: Calculated padded input size"):
        build("inception_v3", 0, image_size=32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_b_32",
        "swin_v2_t",
        "convnext_tiny",
        "densenet121",
        "mobilenet_v2",
        "vgg11_bn",
        "alexnet",
        "googlenet",
        "inception_v3",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "squeezenet1_1",
        "mnasnet0_5",
        "regnet_x_400mf",
        "maxvit_t",
    ],
)
def test_every_family_of_torchvision_has_encoders(name: str) -> None:
    encoder = build(name, 0).eval()
    assert len(encoder.stages) == 4
    with torch.inference_mode():
        assert encoder(torch.rand(1, 3, 224, 224)).shape == (1, encoder.dim)


def test_deterministic_puts_the_switches_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), deterministic(threads + 1):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == threads + 1
        raise RuntimeError("inside")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


def test_what_does_not_come_again_is_refused() -> None:
    """Writing values to places of which some may be equal is one of few things that torch computes in no fixed order on a CPU, too."""
    message = "^torch computes put_ on this device in no fixed order, so that what is made would not come again: take another encoder"
    with pytest.raises(ValueError, match=message), deterministic():
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([2.0, 3.0]))


def with_random_weights(encoder: Encoder) -> Encoder:
    """In evaluation, with all weights drawn anew, those of positions too, so that where tokens stand counts."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=0.05)
    return encoder.eval()


@pytest.mark.parametrize(
    ("name", "size"),
    [*(("vit_tiny_patch16_224", size) for size in (32, 48, 64, 96)), ("deit_tiny_distilled_patch16_224", 32), ("deit3_small_patch16_224", 96)],
)
def test_a_vit_takes_other_sizes_as_timms_does(name: str, size: int) -> None:
    """timm resamples where tokens stand with torch's bicubic interpolation, which has no deterministic gradient on CUDA."""
    import timm

    encoder = with_random_weights(build(f"timm/{name}", 0, image_size=64))
    timms = timm.create_model(name, num_classes=0, img_size=64, dynamic_img_size=True).eval()
    timms.load_state_dict(encoder.body.state_dict())
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = encoder(images), timms((images - encoder.mean) / encoder.std)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for embeddings in (ours, theirs):
        embeddings.square().sum().backward()
    torch.testing.assert_close(encoder.body.pos_embed.grad, timms.pos_embed.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 96), ("alexnet", 224), ("vgg11", 96)])
def test_vgg_and_alexnet_pool_as_torchvisions_do(name: str, size: int) -> None:
    from torchvision import models

    encoder = build(name, 0, image_size=size).eval()
    theirs = models.get_model(name, weights=None).eval()
    theirs.classifier[-1] = nn.Identity()
    theirs.load_state_dict(encoder.body.state_dict())
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder(images), theirs((images - encoder.mean) / encoder.std), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "made_for", "size"), [("vgg11", 96, 96), ("alexnet", 96, 96), ("timm/vit_tiny_patch16_224", 64, 32), ("resnet18", 64, 64), ("small", 8, 8)]
)
def test_a_gpu_gives_gradients_that_come_again(name: str, made_for: int, size: int, gpu: str) -> None:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(gpu)

    def gradients() -> list[torch.Tensor]:
        encoder = build(name, 0, image_size=made_for).to(gpu)
        with deterministic(), drawing(0, torch.device(gpu)):
            encoder.train()(images).square().sum().backward()
        return [each.grad.cpu() for each in encoder.parameters() if each.grad is not None]

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


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
