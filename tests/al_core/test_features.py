import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from al_core.encoders import Encoder, build
from al_core.features import features

N = 11


class Noise:
    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int, /) -> Image.Image:
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (10, 12, 3), dtype=np.uint8))


def embed(encoder: Encoder, workers: int = 0, batch_size: int = 4) -> list[npt.NDArray[np.float32]]:
    return list(features(Noise(), encoder, image_size=8, batch_size=batch_size, workers=workers, device=torch.device("cpu")))


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
