"""The pack: what it holds, that it is shared from pool to pool, and when stages read it."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from al_core.loading import Decoded, Square, Stored, in_order, load
from tasks import reading
from tasks.errors import ArtifactError
from tasks.images import Images
from tasks.ingest import Ingested
from tasks.pack import Pack, RawImages, images_for
from tests.tasks.test_ingest import make, outputs, picture, write

RAW, JPEG = {"size": 8, "format": "raw"}, {"size": 8, "format": "jpeg"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "photos", {f"hat/{i:03}.png": picture(i, (8 + i % 5, 12)) for i in range(60)})


def squares(pool: Ingested) -> npt.NDArray[np.uint8]:
    """(n, 8, 8, 3) by Pillow, from the images themselves."""
    images = Images(pool.manifest, pool.shards.path)
    return np.stack([np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)) for image in images])


def test_raw_packs_hold_the_pixels_in_order_of_id(tmp_path: Path, source: Path) -> None:
    pool = make(tmp_path / "p001", source, cache=RAW)
    assert sorted(path.name for path in pool.pack.path.iterdir()) == ["index.parquet", "p001-00000.npy", "pack.json"]
    assert (pool.pack.path / "pack.json").read_text() == '{"format": "raw", "size": 8}\n'
    assert np.array_equal(np.load(pool.pack.path / "p001-00000.npy", mmap_mode="r"), squares(pool))
    images = pool.pack.images(pool.manifest)
    assert isinstance(images, RawImages)
    assert isinstance(images, Decoded)
    assert isinstance(images, Stored)
    assert np.array_equal(images.take([7, 8, 9, 3]), squares(pool)[[7, 8, 9, 3]])
    assert np.array_equal(np.asarray(images[5]), squares(pool)[5])
    some = pickle.loads(pickle.dumps(images.only([9, 2])))  # noqa: S301
    assert (len(images), len(some)) == (60, 2)
    assert np.array_equal(some.take([1, 0]), squares(pool)[[2, 9]])


def test_jpeg_packs_are_tars_of_small_images(tmp_path: Path, source: Path) -> None:
    pool = make(tmp_path / "p001", source, cache=JPEG)
    truth = squares(pool)
    with tarfile.open(pool.pack.path / "p001-00000.tar") as tar:
        assert tar.getnames() == [f"{image_id}.jpg" for image_id in pool.manifest.ids]
        files = [tar.extractfile(member).read() for member in tar.getmembers()]  # type: ignore[union-attr]
    buffer = io.BytesIO()
    Image.fromarray(truth[4]).save(buffer, "JPEG", quality=90)
    assert files[4] == buffer.getvalue()
    images = pool.pack.images(pool.manifest)
    assert isinstance(images, Images)
    assert [images.bytes_of(row) for row in range(60)] == files


def test_images_are_upright_in_the_pack(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    left_red = Image.new("RGB", (40, 20), "blue")
    left_red.paste("red", (0, 0, 20, 20))
    buffer = io.BytesIO()
    left_red.save(buffer, "PNG", exif=exif)
    pool = make(tmp_path / "p001", write(tmp_path / "photos", {"a.png": buffer.getvalue()}), cache=RAW)
    assert pool.pack.images(pool.manifest)[0].getpixel((7, 4)) == (255, 0, 0)


def test_without_a_cache_there_is_only_a_note(tmp_path: Path, source: Path) -> None:
    pool = make(tmp_path / "p001", source)
    assert [path.name for path in pool.pack.path.iterdir()] == ["pack.json"]
    assert pool.pack.cache is None


def test_processes_do_not_change_a_byte(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cache in (RAW, JPEG):
        make(tmp_path / "one/p001", source, cache=cache)
        with monkeypatch.context() as patch:
            patch.setattr(reading, "ALONE", 1)
            patch.setattr(reading, "CHUNK_BYTES", 1000)
            make(tmp_path / "two/p001", source, workers=2, cache=cache)
        assert outputs(tmp_path / "two/p001") == outputs(tmp_path / "one/p001")


# ---- from pool to pool


@pytest.mark.parametrize("cache", [RAW, JPEG], ids=["raw", "jpeg"])
def test_the_next_pool_shares_the_pack_and_adds_new_images(tmp_path: Path, source: Path, cache: dict[str, object]) -> None:
    first = make(tmp_path / "p001", source, cache=cache)
    write(source, {"hat/new1.png": picture(100), "hat/new2.png": picture(101)})
    (source / "hat/007.png").unlink()
    second = make(tmp_path / "p002", source, tmp_path / "p001", cache=cache)
    index = second.pack.index.frame
    suffix = "npy" if cache == RAW else "tar"
    assert index["shard"].value_counts().to_dict() == {f"p001-00000.{suffix}": 59, f"p002-00000.{suffix}": 2}
    assert (first.pack.path / f"p001-00000.{suffix}").samefile(second.pack.path / f"p001-00000.{suffix}")
    assert index["id"].tolist() == second.manifest.ids.tolist()
    alone = make(tmp_path / "alone/p001", source, cache=cache)
    ours, theirs = second.pack.images(second.manifest), alone.pack.images(alone.manifest)
    assert all(ours[row].tobytes() == theirs[row].tobytes() for row in range(61))


def test_a_pack_of_another_kind_is_made_from_the_shards(tmp_path: Path, source: Path) -> None:
    make(tmp_path / "p001", source, cache=JPEG)
    second = make(tmp_path / "p002", source, tmp_path / "p001", cache=RAW)
    assert second.report.reused == 60  # the source's files were not read
    assert sorted(path.name for path in second.pack.path.iterdir()) == ["index.parquet", "p002-00000.npy", "pack.json"]
    assert np.array_equal(np.load(second.pack.path / "p002-00000.npy"), squares(second))


def test_large_packs_are_split(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {f"{i}.png": picture(i) for i in range(5)})
    pool = make(tmp_path / "p001", source, cache={"size": 400, "format": "raw"}, shard_megabytes=1)  # 480 kB each: two a shard
    assert [len(np.load(pool.pack.path / f"p001-{i:05}.npy", mmap_mode="r")) for i in range(3)] == [2, 2, 1]
    images = pool.pack.images(pool.manifest)
    assert isinstance(images, RawImages)
    taken = images.take([4, 0, 1, 2, 3])
    assert [taken[i].tobytes() for i in range(5)] == [images[row].tobytes() for row in (4, 0, 1, 2, 3)]


def test_a_pack_before_that_is_incomplete(tmp_path: Path, source: Path) -> None:
    make(tmp_path / "p001", source, cache=RAW)
    (tmp_path / "p001/pack/p001-00000.npy").unlink()
    with pytest.raises(ArtifactError, match=r"p001/pack/p001-00000\.npy is missing, the manifest expects at least 11648 bytes; restore it with `dvc checkout`"):
        make(tmp_path / "p002", source, tmp_path / "p001", cache=RAW)


# ---- what stages read


def test_stages_read_the_pack_where_it_is_large_enough(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = make(tmp_path / "p001", source, cache=RAW)
    capsys.readouterr()
    for size in (6, 8):
        assert isinstance(images_for("embed", size, pool.manifest, pool.shards, pool.pack), RawImages)
    assert capsys.readouterr().err == ""
    images = images_for("embed", 9, pool.manifest, pool.shards, pool.pack)
    assert isinstance(images, Images)
    assert images.folder == pool.shards.path
    assert capsys.readouterr().err == "embed: the pack's images have 8 px and 9 are needed: the images are read out of shards/ instead\n"
    without = make(tmp_path / "without/p001", source)
    assert isinstance(images_for("embed", 9, without.manifest, without.shards, without.pack), Images)
    assert "embed" not in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_raw_pack_gives_the_bytes_of_the_images_themselves(tmp_path: Path, source: Path, workers: int) -> None:
    pool = make(tmp_path / "p001", source, cache=RAW)
    read = [Images(pool.manifest, pool.shards.path), pool.pack.images(pool.manifest)]
    batches = [list(load(images, in_order(range(60), 16), Square(8), seed=0, workers=workers)) for images in read]
    assert [batch.numpy().tobytes() for batch in batches[0]] == [batch.numpy().tobytes() for batch in batches[1]]


def test_another_manifest_a_damaged_note_and_a_short_shard(tmp_path: Path, source: Path) -> None:
    pool = make(tmp_path / "p001", source, cache=RAW)
    (source / "hat/000.png").unlink()
    other = make(tmp_path / "p002", source)
    with pytest.raises(ArtifactError) as caught:
        pool.pack.images(other.manifest)
    assert str(caught.value) == f"{pool.pack.path} was made for another manifest (60 rows, expected 59); restore it with `dvc checkout`"
    shard = pool.pack.path / "p001-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-5])
    images = pool.pack.images(pool.manifest)
    assert isinstance(images, RawImages)
    with pytest.raises(ArtifactError) as caught:
        images.take([0, 58, 59])
    place = f"row 58 (byte {128 + 58 * 192} of {shard})"
    assert str(caught.value) == f"{place}: the shard is too short, got 379 bytes of 384; restore it with `dvc checkout`"
    (pool.pack.path / "pack.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"pack\.json does not describe a pack \("):
        _ = pool.pack.cache
    with pytest.raises(ArtifactError, match=r"nowhere/pack is missing; run the stage that writes it"):
        Pack.load(tmp_path / "nowhere/pack")


def test_what_is_expected_is_only_a_hint(tmp_path: Path, source: Path) -> None:
    pool = make(tmp_path / "p001", source)
    images = Images(pool.manifest, pool.shards.path)
    images.expect([3, 59, 0])
    Images(pool.manifest, tmp_path / "nowhere").expect([3])
    assert hashlib.sha256(images.bytes_of(3)).hexdigest() == pool.manifest.ids[3]
