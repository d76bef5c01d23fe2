import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from al_core.loading import Bytes, Decoded, Held, Square, in_order, load, pixels, resized, shuffled, unit
from tests.conftest import alive

N = 13


class Noise:
    """Images of several sizes, every pixel drawn from the row."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int, /) -> Image.Image:
        height, width = 9 + row, 20 - row
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Broken(Noise):
    def __getitem__(self, row: int, /) -> Image.Image:
        if row == 4:
            raise KeyError("row 4 is gone")
        return super().__getitem__(row)


class Grey(Noise):
    def __getitem__(self, row: int, /) -> Image.Image:
        return super().__getitem__(row).convert("L")


def noisy(image: Image.Image) -> Tensor:
    """Depends on the image and on both global generators."""
    return pixels(image).double().mean() + torch.rand(2).double() + float(np.random.random_sample())  # noqa: NPY002


def views(workers: int, *, seed: int = 0, size: int = 4) -> Tensor:
    return torch.cat(list(load(Noise(), shuffled(range(N), size, 2, seed=5, drop_last=False), noisy, seed=seed, workers=workers)))


def test_the_bytes_do_not_depend_on_the_number_of_workers() -> None:
    alone = views(0)
    assert alone.shape == (2 * N, 2)
    assert torch.equal(alone, views(1))
    assert torch.equal(alone, views(2))


def test_an_image_is_drawn_for_by_seed_epoch_and_row_alone() -> None:
    assert torch.equal(views(0), views(0, size=7)), "the same order in other batches gives the same views"
    assert not torch.equal(views(0), views(0, seed=1))
    first, second = (next(load(Noise(), [[(epoch, 3), (epoch, 2)]], noisy, seed=0, workers=0)) for epoch in (1, 2))
    alone = next(load(Noise(), [[(1, 2)]], noisy, seed=0, workers=0))
    assert torch.equal(first[1:], alone)
    assert not torch.equal(first, second)


def test_the_global_generators_stay_as_they_were() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.random_sample(9)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    views(0), views(1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.random_sample(9))  # noqa: NPY002


def test_in_order_gives_every_row_once() -> None:
    assert list(in_order([7, 5, 3], 2)) == [[(0, 7), (0, 5)], [(0, 3)]]


def test_shuffled_gives_every_row_once_an_epoch() -> None:
    batches = list(shuffled(range(10), 4, 2, seed=0, drop_last=False))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    orders = [[row for batch in batches[part] for _, row in batch] for part in (slice(0, 3), slice(3, 6))]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    assert [epoch for batch in batches for epoch, _ in batch] == [1] * 10 + [2] * 10


def test_shuffled_can_drop_what_does_not_fill_a_batch() -> None:
    batches = list(shuffled(range(10), 4, 3, seed=0, drop_last=True))
    assert [len(batch) for batch in batches] == [4] * 6
    assert len(list(shuffled(range(8), 4, 1, seed=0, drop_last=True))) == 2


def test_square_averages_where_it_shrinks() -> None:
    image = Noise()[12]  # 21 x 8
    truth = torch.nn.functional.interpolate(pixels(image).float()[None], size=(5, 5), mode="bilinear", antialias=True)[0]
    assert (Square(5)(image).float() - truth).abs().max() <= 1  # rounding, once along each side


def test_unit_is_0_to_1() -> None:
    batch = unit(torch.tensor([[0, 51, 255]], dtype=torch.uint8), torch.device("cpu"))
    assert torch.equal(batch, torch.tensor([[0.0, 0.2, 1.0]]))


def test_grey_images_are_refused() -> None:
    with pytest.raises(ValueError, match="an image has mode 'L', expected 'RGB'; convert it where it is read"):
        next(load(Grey(), in_order(range(N), 4), Square(8), seed=0, workers=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_reading_arrives_as_it_was_raised(workers: int) -> None:
    batches = load(Broken(), in_order(range(N), 4), Square(8), seed=0, workers=workers)
    assert len(next(batches)) == 4
    with pytest.raises(KeyError) as caught:
        next(batches)
    assert caught.value.args == ("row 4 is gone",)
    assert "in __getitem__" in caught.value.__notes__[0]


def test_images_held_in_memory_are_those_resized_at_every_use() -> None:
    held, read = resized(Noise(), 8, workers=1), resized(Noise(), 8, workers=0, limit=8 * 8 * 3 * N - 1)
    assert isinstance(held, Held)
    assert not isinstance(read, Held)
    assert len(held) == len(read) == N
    assert all(held[row].tobytes() == read[row].tobytes() for row in range(N))
    assert held[4].tobytes() == pixels(Noise()[4].resize((8, 8), Image.Resampling.BILINEAR)).permute(1, 2, 0).numpy().tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)


class Counting(Held):
    """Notes in which process and order rows are taken."""

    def take(self, rows: Sequence[int], /) -> Bytes:
        TAKEN.append((os.getpid(), list(rows)))
        if 11 in rows:
            raise KeyError("row 11 is gone")
        return super().take(rows)

    def __getitem__(self, row: int, /) -> Image.Image:
        raise AssertionError("decoded pixels are copied")


TAKEN: list[tuple[int, list[int]]] = []


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pixels_that_lie_ready_are_copied_by_this_process_with_any_number_of_workers(workers: int) -> None:
    TAKEN.clear()
    order = [3, 5, 3, 0, 9, 8, 7]
    batches = list(load(Counting(PIXELS), in_order(order, 3), Square(6), seed=0, workers=workers))
    assert [tuple(batch.shape) for batch in batches] == [(3, 3, 6, 6), (3, 3, 6, 6), (1, 3, 6, 6)]
    assert torch.cat(batches).numpy().tobytes() == PIXELS[order].transpose(0, 3, 1, 2).tobytes()
    assert list(TAKEN) == [(os.getpid(), rows) for rows in ([3, 5, 3], [0, 9, 8], [7])]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pixels_that_lie_ready_at_another_size_are_resized(workers: int) -> None:
    held = Held(PIXELS)
    assert isinstance(held, Decoded)
    batches = torch.cat(list(load(held, in_order(range(N), 4), Square(4), seed=0, workers=workers)))
    truth = np.stack([np.asarray(Image.fromarray(each).resize((4, 4), Image.Resampling.BILINEAR)) for each in PIXELS])
    assert batches.numpy().tobytes() == truth.transpose(0, 3, 1, 2).tobytes()


def test_an_error_of_copying_arrives_as_it_was_raised_after_the_batches_before_it() -> None:
    batches = load(Counting(PIXELS), in_order(range(N), 4), Square(6), seed=0, workers=0)
    assert len(next(batches)) == len(next(batches)) == 4
    with pytest.raises(KeyError, match="row 11 is gone"):
        next(batches)


def test_a_batch_is_the_callers_own() -> None:
    held = Held(PIXELS.copy())
    next(load(held, in_order(range(N), 4), Square(6), seed=0, workers=0)).zero_()
    assert np.array_equal(held.array, PIXELS)


@pytest.mark.parametrize("size", [6, 4])
def test_networks_see_the_same_layout_however_a_batch_was_loaded(size: int) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        for workers in (0, 1):
            batch = unit(next(load(Held(PIXELS), in_order(range(N), 4), Square(size), seed=0, workers=workers)), torch.device("cpu"), layout)
            assert batch.is_contiguous(memory_format=layout)


class Asked(Noise):
    """Images in files that can be asked for ahead."""

    def __init__(self) -> None:
        self.log: list[object] = []

    def expect(self, rows: Sequence[int], /) -> None:
        self.log.append(list(rows))

    def __getitem__(self, row: int, /) -> Image.Image:
        self.log.append(row)
        return super().__getitem__(row)


def test_files_are_asked_for_a_batch_ahead_of_reading() -> None:
    images = Asked()
    list(load(images, [[(0, 3), (0, 1)], [(0, 2)]], Square(6), seed=0, workers=0))
    assert images.log == [[3, 1], 3, 1, [2], 2]


def test_pixels_that_lie_ready_are_not_held_where_they_are_too_many() -> None:
    decoded = Held(PIXELS)
    assert resized(decoded, 6, workers=0, limit=PIXELS.size - 1) is decoded
    held = resized(decoded, 6, workers=0)
    assert isinstance(held, Held)
    assert np.array_equal(held.array, PIXELS)


ORPHANS = """
import multiprocessing, os, signal, time
from al_core.loading import in_order, load

class Slow:
    def __len__(self):
        return 8
    def __getitem__(self, row):
        time.sleep(60 if row > 1 else 0)
        import PIL.Image
        return PIL.Image.new("RGB", (4, 4))

def view(image):
    import torch
    return torch.zeros(1)

batches = load(Slow(), in_order(range(8), 1), view, seed=0, workers=2)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's own watch ends workers between images")
def test_workers_die_with_their_parent_at_once() -> None:
    run = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, check=False, timeout=200)
    assert run.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_what_threads_of_the_parent_do_at_its_end_is_none_of_the_loaders() -> None:
    """As Prefect does: work that only the parent's own threads can do, which fails in a fork."""
    script = """
import os, threading
import numpy as np
from al_core.loading import Resized, Square, Held, in_order, load

mine = os.getpid()

def last() -> None:
    if os.getpid() != mine:
        raise RuntimeError("not in a fork")

threading._register_atexit(last)
images = Resized(Held(np.zeros((6, 4, 4, 3), np.uint8)), 5)
print(sum(len(batch) for batch in load(images, in_order(range(6), 2), Square(5), seed=0, workers=2)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "6\n"), run.stderr
