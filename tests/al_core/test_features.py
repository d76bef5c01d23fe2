from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed
from PIL import Image

from al_core.encoders import Encoder, build
from al_core.features import features
from al_core.processes import Processes
from tests.al_core.test_processes import in_a_group

N = 11


class Noise:
    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int, /) -> Image.Image:
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (10, 12, 3), dtype=np.uint8))


def embed(encoder: Encoder, workers: int = 0, batch_size: int = 4, **more: Any) -> list[npt.NDArray[np.float32]]:
    return list(features(Noise(), encoder, image_size=8, batch_size=batch_size, workers=workers, device=torch.device("cpu"), **more))


def trained() -> Encoder:
    """With batch norm statistics that are not the initial ones."""
    encoder = build("small", 0)
    encoder.train()(torch.rand(64, 3, 8, 8))
    return encoder


def test_rows_in_order() -> None:
    encoder = trained()
    batches = embed(encoder)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    pixels = np.stack([np.asarray(Noise()[row].resize((8, 8), Image.Resampling.BILINEAR)) for row in range(N)])  # (N, 8, 8, 3)
    with torch.no_grad():
        expected = encoder.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    result = np.concatenate(batches)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_bytes_do_not_depend_on_the_number_of_workers() -> None:
    encoder = trained()
    alone, two = np.concatenate(embed(encoder)), np.concatenate(embed(encoder, workers=2))
    assert alone.tobytes() == two.tobytes()


def test_the_bytes_do_not_depend_on_the_number_of_threads() -> None:
    encoder, before = trained(), torch.get_num_threads()
    torch.set_num_threads(before + 2)
    more = np.concatenate(embed(encoder))
    torch.set_num_threads(before)
    assert more.tobytes() == np.concatenate(embed(encoder)).tobytes()


def test_another_batch_size_changes_rounding_at_most() -> None:
    encoder = trained()
    np.testing.assert_allclose(np.concatenate(embed(encoder)), np.concatenate(embed(encoder, batch_size=1)), rtol=1e-5, atol=1e-6)


def test_the_encoder_is_only_looked_through() -> None:
    encoder = trained()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    embed(encoder.train())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_a_broken_encoder_is_refused() -> None:
    encoder = trained()
    with torch.no_grad():
        next(encoder.parameters())[0] = torch.nan
    with pytest.raises(ValueError, match="the encoder's output is not finite within rows 0 to 3; pretrain again, with a lower learning rate"):
        embed(encoder)


def test_rows_that_are_done_can_be_left_out() -> None:
    encoder = trained()
    whole = embed(encoder)
    for start, batches in ((0, whole), (4, whole[1:]), (8, whole[2:]), (N, [])):
        assert [batch.tobytes() for batch in embed(encoder, start=start)] == [batch.tobytes() for batch in batches]
    with pytest.raises(ValueError) as caught:
        embed(encoder, start=3)
    assert str(caught.value) == "start is 3, within a batch of 4; give a multiple of it"


def test_bfloat16_rounds_to_8_bits() -> None:
    encoder = trained()
    exact, rounded = (np.concatenate(embed(encoder, precision=precision)) for precision in ("float32", "bfloat16"))
    assert rounded.dtype == np.float32
    error = np.linalg.norm(rounded - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert (error > 2**-16).all()
    assert (error < 2**-5).all()  # a rounding of 2**-9 in each of four layers


def write_embeddings(rank: int, group: torch.distributed.ProcessGroup, folder: Path) -> None:
    encoder = build("small", 0)
    encoder.load_state_dict(torch.load(folder / "encoder.pt"))
    for name, size, start in CASES:
        batches = embed(encoder, batch_size=size, start=start, processes=Processes(group))
        assert not (rank and batches)
        if rank == 0:
            np.save(folder / f"{name}.npy", np.concatenate(batches))


CASES = [("whole", 4, 0), ("more processes than batches", N, 0), ("resumed", 2, 4)]  # what, batch size, start


def test_two_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    encoder = trained()
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    in_a_group(write_embeddings, 2, tmp_path, tmp_path)
    for name, size, start in CASES:
        assert np.load(tmp_path / f"{name}.npy").tobytes() == np.concatenate(embed(encoder, batch_size=size, start=start)).tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_gives_the_same_bytes_twice_and_nearly_those_of_the_cpu(precision: str, gpu: str) -> None:
    """The CPU sums in another order; of float32 a GPU's convolutions may keep 10 bits of each factor (TF32)."""
    encoder = trained()
    cpu = np.concatenate(embed(encoder))
    first, again = (
        np.concatenate(list(features(Noise(), encoder, image_size=8, batch_size=4, workers=0, device=torch.device(gpu), precision=precision)))  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first.tobytes() == again.tobytes()
    assert (np.linalg.norm(first - cpu, axis=1) < 2**-5 * np.linalg.norm(cpu, axis=1)).all()
