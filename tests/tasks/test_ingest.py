from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks import reading
from tasks.artifacts import IngestReport, Known, Manifest, Quarantine, Shards, StartLabels, Table
from tasks.errors import ArtifactError, SourceError
from tasks.images import Images
from tasks.ingest import Ingested
from tasks.pack import Pack
from tasks.params import Ingest, Params
from tasks.reading import CHUNK_BYTES, CHUNK_FILES, UnfitError, chunked, examine, read_all
from tasks.sources import Files
from tasks.stage import execute, find

REPOSITORY = Path(__file__).parents[2]


def picture(number: int, size: tuple[int, int] = (12, 9), kind: str = "PNG") -> bytes:
    """An image of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make(folder: Path, source: Path | str, previous: Path | None = None, **knobs: object) -> Ingested:
    """A pool in `folder` by the stage as DVC runs it, loaded back from its files."""
    folder.mkdir(parents=True, exist_ok=True)
    ingest = Ingest.model_validate({"source": str(source), "workers": 1, "test": 0.0, **knobs})
    before = None if previous is None else os.path.relpath(previous, folder)
    params = Params(ingest=ingest, round=folder.name, pool=".", previous=before, here=".")
    (folder / "params.yaml").write_text(params.dump(), "utf-8")
    with contextlib.chdir(folder):
        execute("ingest", Path())
    return load(folder)


def load(folder: Path) -> Ingested:
    return Ingested(
        Manifest.load(folder / "manifest.parquet"),
        Shards.load(folder / "shards"),
        Known.load(folder / "known.parquet"),
        StartLabels.load(folder / "labels.parquet"),
        Quarantine.load(folder / "quarantine.parquet"),
        IngestReport.load(folder / "ingest.json"),
        Pack.load(folder / "pack"),
    )


def outputs(folder: Path) -> dict[str, str]:
    """Hashes of the stage's outputs; what it notes of its environment is none."""
    others = ("params.yaml", "environment.json")
    return {path.relative_to(folder).as_posix(): name_of(path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in others}


def rows(table: Table) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = table.table.to_pylist()
    return listed


def by_uri(pool: Ingested, column: str) -> dict[str, Any]:
    return {row["uri"]: row[column] for row in rows(pool.manifest)}


def by_id(pool: Ingested, data: bytes) -> dict[str, Any]:
    return next(row for row in rows(pool.manifest) if row["id"] == name_of(data))


def labels_of(table: Known | StartLabels) -> dict[str, str]:
    return {row["id"]: row["label"] for row in rows(table)}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The uris that are read from now on, in this process."""
    read: list[str] = []
    real = Files.read

    def counted(self: Files, uri: str, most: int) -> bytes:
        read.append(uri)
        return real(self, uri, most)

    monkeypatch.setattr(Files, "read", counted)
    return read


# ---- what is found


def test_pool_holds_the_files_byte_for_byte(tmp_path: Path) -> None:
    files = {
        "dress/b.jpg": picture(1, kind="JPEG"),
        "dress/a.png": picture(2, (30, 7)),
        "hat/c.gif": picture(3, kind="GIF"),
        "hat/d.png": picture(4, kind="BMP"),
    }
    pool = make(tmp_path / "pools/p001", write(tmp_path / "photos", files))
    frame = pool.manifest.frame
    assert frame["id"].tolist() == sorted(map(name_of, files.values()))
    assert by_uri(pool, "id") == {uri: name_of(data) for uri, data in files.items()}
    assert by_uri(pool, "format") == {"dress/a.png": "PNG", "dress/b.jpg": "JPEG", "hat/c.gif": "GIF", "hat/d.png": "BMP"}
    assert (by_uri(pool, "width")["dress/a.png"], by_uri(pool, "height")["dress/a.png"]) == (30, 7)
    assert set(frame["split"]) == {"train"}
    images = Images(pool.manifest, pool.shards.path)
    assert [images.bytes_of(row) for row in range(4)] == [files[uri] for uri in frame["uri"]]
    assert [image.size for image in images] == list(zip(frame["width"], frame["height"], strict=True))
    assert labels_of(pool.known) == {name_of(data): uri.split("/")[0] for uri, data in files.items()}
    assert pool.report == IngestReport(
        found=4,
        reused=0,
        images=4,
        duplicates=0,
        quarantined={},
        splits={"train": 4},
        known={"dress": 2, "hat": 2},
        conflicts=0,
        leaks=0,
        gone=0,
        bytes=sum(map(len, files.values())),
    )
    assert len(pool.quarantine) == 0


def test_width_and_height_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    pool = make(tmp_path / "p001", write(tmp_path / "photos", {"a.jpg": buffer.getvalue()}))
    assert (by_uri(pool, "width"), by_uri(pool, "height")) == ({"a.jpg": 20}, {"a.jpg": 40})
    assert Images(pool.manifest, pool.shards.path)[0].size == (20, 40)


def test_copies_conflicts_and_leaks(tmp_path: Path) -> None:
    """Worked by hand: which split and label each set of copies ends with."""
    same, torn, leak, deep, plain, half = (picture(i) for i in range(6))
    source = write(
        tmp_path / "photos",
        {
            "train/dress/1.png": same,  # three copies, one label
            "train/dress/2.png": same,
            "train/dress/0.png": same,
            "train/dress/3.png": torn,  # two labels
            "train/hat/3.png": torn,
            "train/hat/4.png": leak,  # train and test: test
            "test/hat/4.png": leak,
            "train/hat/5.png": deep,  # train and validation: validation; and two labels
            "val/dress/5.png": deep,
            "test/dress/6.png": plain,
            "train/7.png": half,  # one copy has no label: no conflict
            "train/hat/7.png": half,
        },
    )
    pool = make(tmp_path / "p001", source)
    rows = pool.manifest.frame.set_index("id")
    assert {
        name: rows.loc[name_of(data), "split"]
        for name, data in (("same", same), ("torn", torn), ("leak", leak), ("deep", deep), ("plain", plain), ("half", half))
    } == {
        "same": "train",
        "torn": "train",
        "leak": "test",
        "deep": "validation",
        "plain": "test",
        "half": "train",
    }
    assert by_id(pool, same)["uris"] == ["train/dress/0.png", "train/dress/1.png", "train/dress/2.png"]
    assert by_id(pool, same)["uri"] == "train/dress/0.png"
    assert by_id(pool, leak)["uris"] == ["test/hat/4.png", "train/hat/4.png"]
    known = {name_of(same): "dress", name_of(leak): "hat", name_of(plain): "dress", name_of(half): "hat"}
    assert labels_of(pool.known) == known == labels_of(pool.labels)
    report = pool.report
    assert (report.found, report.images, report.duplicates, report.conflicts, report.leaks) == (12, 6, 6, 2, 2)
    assert (report.splits, report.known) == ({"train": 3, "validation": 1, "test": 2}, {"dress": 2, "hat": 2})


def test_start_labels(tmp_path: Path) -> None:
    files = {"train/dress/a.png": picture(1), "val/hat/b.png": picture(2), "test/dress/c.png": picture(3), "train/d.png": picture(4)}
    source = write(tmp_path / "photos", files)
    keep, ignore = make(tmp_path / "keep/p001", source, labels="keep"), make(tmp_path / "ignore/p001", source, labels="ignore")
    names = {uri: name_of(data) for uri, data in files.items()}
    assert labels_of(keep.labels) == {names["train/dress/a.png"]: "dress", names["val/hat/b.png"]: "hat", names["test/dress/c.png"]: "dress"}
    assert labels_of(ignore.labels) == {names["val/hat/b.png"]: "hat", names["test/dress/c.png"]: "dress"}
    assert labels_of(ignore.known) == labels_of(keep.known) == labels_of(keep.labels)
    assert set(zip(keep.labels.frame["round"], keep.labels.frame["annotator"], keep.labels.frame["arm"], strict=True)) == {("p001", "source", "source")}


def test_share_for_testing_is_by_id_and_stays(tmp_path: Path) -> None:
    files = {f"{'dress' if i % 2 else 'unlabeled'}/{i:03}.png": picture(i) for i in range(60)}
    first = make(tmp_path / "p001", write(tmp_path / "photos", files), test=0.3)
    expected = {uri: "test" if uri.startswith("dress") and int(name_of(data)[:8], 16) < 0.3 * 2**32 else "train" for uri, data in files.items()}
    assert by_uri(first, "split") == expected
    assert 0 < list(expected.values()).count("test") < 30
    write(tmp_path / "photos", {f"dress/{i:03}.png": picture(i) for i in range(100, 120)})
    second = make(tmp_path / "p002", tmp_path / "photos", tmp_path / "p001", test=0.3)
    assert {uri: split for uri, split in by_uri(second, "split").items() if uri in expected} == expected


def test_what_was_for_training_is_never_tested_on(tmp_path: Path) -> None:
    """Images without a label are bought in rounds, and later filed under their classes; or the share is raised over those trained on."""
    chosen = [i for i in range(200) if int(name_of(picture(i))[:8], 16) < 0.3 * 2**32]
    old = chosen[: len(chosen) // 2]
    photos = write(tmp_path / "photos", {f"unlabeled/{i:03}.png": picture(i) for i in old})
    first = make(tmp_path / "p001", photos, test=0.3)
    assert first.report.splits == {"train": len(old)}
    shutil.rmtree(photos)
    write(photos, {f"dress/{i:03}.png": picture(i) for i in chosen})
    second = make(tmp_path / "p002", photos, tmp_path / "p001", test=0.3)
    assert by_uri(second, "split") == {f"dress/{i:03}.png": "train" if i in old else "test" for i in chosen}
    third = make(tmp_path / "p003", photos, tmp_path / "p002", test=1.0)
    assert by_uri(third, "split") == by_uri(second, "split")
    assert make(tmp_path / "elsewhere/p001", photos, test=0.3).report.splits == {"test": len(chosen)}  # where nothing was trained on


def test_share_for_testing_is_not_used_where_the_source_has_a_test_split(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {"train/dress/a.png": picture(1), "test/dress/b.png": picture(2)})
    assert make(tmp_path / "p001", source, test=1.0).report.splits == {"train": 1, "test": 1}


def test_lists(tmp_path: Path) -> None:
    write(tmp_path, {"images/a.png": picture(1), "images/b.png": picture(2)})
    (tmp_path / "list.csv").write_text("uri,label,split\nimages/a.png,dress,test\nimages/b.png,,\nimages/no.png,dress,train\n")
    pool = make(tmp_path / "p001", tmp_path / "list.csv")
    assert by_uri(pool, "split") == {"images/a.png": "test", "images/b.png": "train"}
    assert labels_of(pool.known) == {name_of(picture(1)): "dress"}
    assert pool.quarantine.frame.to_dict("records") == [{"uri": "images/no.png", "reason": "vanished", "detail": "listed, but no such file when it was read"}]


# ---- bad input


def large_png(side: int) -> bytes:
    """A valid black and white PNG of side x side pixels, made row by row."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    packed = b"".join(squeeze.compress(row * 100) for _ in range(side // 100)) + squeeze.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)


def test_bad_files_go_to_quarantine_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg, png = picture(1, (200, 150), "JPEG"), picture(2, (200, 150))
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 0xFF
    source = write(
        tmp_path / "photos",
        {
            "hat/bomb.png": large_png(50_000),
            "hat/cut.jpg": jpeg[: len(jpeg) * 2 // 3],
            "hat/cut.png": png[: len(png) // 2],
            "hat/damaged.png": bytes(damaged),
            "hat/empty.jpg": b"",
            "hat/float.tif": encoded_float(),
            "hat/gone.jpg": jpeg,
            "hat/good.jpg": jpeg,
            "hat/LICENSE": b"Permission is hereby granted",
            "hat/named_wrongly.gif": png,
            "hat/page.eps": b"never listed",
            "hat/photo.heic": b"\0\0\0\x18ftypheic",
            "hat/program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
            "hat/text.jpg": b"this is text\n",
            "hat/wide.png": picture(3, (2001, 1000)),
        },
    )
    os.mkfifo(source / "hat/pipe.jpg")
    (source / "hat/link.jpg").symlink_to(source / "nowhere.jpg")
    real = Files.read

    def vanishing(self: Files, uri: str, most: int) -> bytes:
        if uri == "hat/gone.jpg":
            (source / uri).unlink()
        return real(self, uri, most)

    monkeypatch.setattr(Files, "read", vanishing)
    pool = make(tmp_path / "p001", source, max_pixels=2_000_000)
    table = {row["uri"].removeprefix("hat/"): (row["reason"], row["detail"]) for row in rows(pool.quarantine)}
    gone = ("vanished", "listed, but no such file when it was read")
    assert table == {
        "LICENSE": ("not-an-image", "no image format known here; it begins with b'Permissi'"),
        "bomb.png": ("too-large", "50000 x 50000 pixels; ingest.max_pixels is 2000000"),
        "cut.jpg": ("truncated", table["cut.jpg"][1]),
        "cut.png": ("truncated", "image file is truncated"),
        "damaged.png": ("unreadable", table["damaged.png"][1]),
        "empty.jpg": ("empty", "0 bytes"),
        "float.tif": ("unreadable", "32-bit pixels (mode F) have no agreed range; convert the image to 8 or 16 bits"),
        "gone.jpg": gone,
        "link.jpg": gone,
        "photo.heic": ("not-an-image", "no image format known here; it begins with b'\\x00\\x00\\x00\\x18ftyp'"),
        "pipe.jpg": ("unreadable", "not a regular file"),
        "program.jpg": ("not-an-image", "no image format known here; it begins with b'%!PS-Ado'"),
        "text.jpg": ("not-an-image", "no image format known here; it begins with b'this is '"),
        "wide.png": ("too-large", "2001 x 1000 pixels; ingest.max_pixels is 2000000"),
    }
    assert table["cut.jpg"][1].startswith("image file is truncated (")
    assert by_uri(pool, "format") == {"hat/good.jpg": "JPEG", "hat/named_wrongly.gif": "PNG"}
    assert pool.report.quarantined == {"too-large": 2, "truncated": 2, "unreadable": 3, "empty": 1, "vanished": 2, "not-an-image": 4}
    assert pool.report.found == 16 == pool.report.images + pool.report.duplicates + sum(pool.report.quarantined.values())


def encoded_float() -> bytes:
    buffer = io.BytesIO()
    Image.new("F", (3, 3)).save(buffer, "TIFF")
    return buffer.getvalue()


def test_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(large_png(50_000))
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from tasks.reading import examine, UnfitError\n"
        "data = Path(sys.argv[1]).read_bytes()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    examine(data, 50_000_000)\nexcept UnfitError as unfit:\n    print(unfit.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "bomb.png"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    reason, kilobytes = done.stdout.split()
    assert reason == "too-large"
    assert int(kilobytes) < 20_000  # one bit a pixel would be 312,500


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
def test_no_cut_file_passes_whose_pixels_are_incomplete(kind: str) -> None:
    whole = picture(5, (40, 30), kind)
    full = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB"))
    reasons = set()
    for length in range(0, len(whole), 7):
        try:
            examine(whole[:length], 10**6)
        except UnfitError as unfit:
            reasons.add(unfit.reason)
            assert "0x7" not in unfit.detail  # an address would differ from run to run
        else:  # only what follows the pixels is missing
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(whole[:length])).convert("RGB")), full)
    assert {"empty", "truncated"} <= reasons <= {"empty", "truncated", "not-an-image", "unreadable"}


def test_file_larger_than_its_pixels_can_be_is_not_read(tmp_path: Path) -> None:
    with (write(tmp_path / "photos", {"good.png": picture(1)}) / "huge.jpg").open("wb") as file:
        file.truncate(2**36)
    pool = make(tmp_path / "p001", tmp_path / "photos")
    assert pool.quarantine.frame["detail"].tolist() == [f"{2**36} bytes; 50000000 pixels (ingest.max_pixels) cannot need as many"]


def riff_head(side: int) -> bytes:
    """The beginning of a WebP with that canvas."""
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + 2 * (side - 1).to_bytes(3, "little")


def tiff_head(side: int) -> bytes:
    """A grey TIFF of side x side pixels, of which only the header is there."""
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: side * side}
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()) + bytes(4)


@pytest.mark.parametrize("data", [riff_head(16_384), tiff_head(20_000)], ids=["WebP", "TIFF"])
def test_what_pillow_itself_finds_too_large_is_called_so(data: bytes) -> None:
    with pytest.raises(UnfitError) as caught:
        examine(data, 10**9)
    assert caught.value.reason == "too-large"
    assert "exceeds limit of 178956970 pixels" in caught.value.detail


def test_too_little_memory_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(image: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(reading, "to_rgb", starved)
    with pytest.raises(SourceError) as caught:
        make(tmp_path / "p001", write(tmp_path / "photos", {"\x1b[31mgood.png": picture(1)}))
    assert str(caught.value) == (
        '"\\x1b[31mgood.png": not enough memory to decode it; lower ingest.workers or ingest.max_pixels, or move the file away, and run again'
    )
    assert outputs(tmp_path / "p001") == {}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT])
def test_a_machine_that_fails_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fail_with(code, monkeypatch)
    with pytest.raises(SourceError) as caught:
        make(tmp_path / "p001", write(tmp_path / "photos", {"a.png": picture(1)}))
    assert str(caught.value).startswith(
        f'"a.png" cannot be read now ({os.strerror(code)}): this machine\'s disk, network or limits are at fault; mend that and'
    )
    assert outputs(tmp_path / "p001") == {}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_file_that_may_not_be_read_goes_to_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    source = write(tmp_path / "photos", {"a.png": picture(1), "b.png": picture(2)})
    make(tmp_path / "p001", source)
    write(source, {"c.png": picture(3)})
    fail_with(code, monkeypatch)
    pool = make(tmp_path / "p002", source, tmp_path / "p001")
    assert pool.quarantine.frame.to_dict("records") == [{"uri": "c.png", "reason": "unreadable", "detail": os.strerror(code)}]


def fail_with(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, reading any file fails so."""

    def failing(self: Files, uri: str, most: int) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Files, "read", failing)


def test_file_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {"\x1b[31mevil.png": b"text"})
    with pytest.raises(SourceError) as caught:
        make(tmp_path / "p001", source)
    assert str(caught.value).endswith(":\n  \"\\x1b[31mevil.png\": not-an-image (no image format known here; it begins with b'text')")


def test_nothing_readable(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {f"{i}.jpg": b"text" for i in range(7)})
    with pytest.raises(SourceError) as caught:
        make(tmp_path / "p001", source)
    assert str(caught.value) == f"none of the 7 files of '{source}' is a readable image:\n" + "\n".join(
        f"  \"{i}.jpg\": not-an-image (no image format known here; it begins with b'text')" for i in range(5)
    )
    assert outputs(tmp_path / "p001") == {}
    with pytest.raises(SourceError, match="is empty: no image files in it"):
        make(tmp_path / "p002", write(tmp_path / "empty", {"notes.txt": b""}))
    assert outputs(tmp_path / "p002") == {}


# ---- the same bytes, always


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """200 images of three classes with copies and a few bad files."""
    files = {f"{'abc'[i % 3]}/{i:03}.png": picture(i, (8 + i % 5, 8)) for i in range(200)}
    files |= {f"c/copy{i}.png": picture(i, (8, 8)) for i in range(0, 200, 50)} | {"a/cut.png": picture(0)[:-40], "b/text.png": b"text"}
    return write(tmp_path / "photos", files)


def test_processes_do_not_change_a_byte(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(tmp_path / "one/p001", many, workers=1, shard_megabytes=1)
    elsewhere = shutil.copytree(many, tmp_path / "elsewhere/with another name")
    monkeypatch.setattr(reading, "ALONE", 1)
    monkeypatch.setattr(reading, "CHUNK_FILES", 3)
    read = count_reads(monkeypatch)
    for workers in (2, 3):
        make(tmp_path / f"{workers}/p001", elsewhere, workers=workers, shard_megabytes=1)
        assert outputs(tmp_path / f"{workers}/p001") == outputs(tmp_path / "one/p001")
    assert read == []  # other processes did
    assert one.report.quarantined == {"not-an-image": 1, "truncated": 1}
    assert sorted(outputs(tmp_path / "one/p001")) == [
        "ingest.json",
        "known.parquet",
        "labels.parquet",
        "manifest.parquet",
        "pack/pack.json",
        "quarantine.parquet",
        "shards/p001-00000.tar",
    ]
    make(tmp_path / "one/p001", many, workers=1, shard_megabytes=1)  # again in place
    assert outputs(tmp_path / "one/p001") == outputs(tmp_path / "2/p001")


def test_shards_are_plain_tars_in_order_of_uri(tmp_path: Path) -> None:
    files = {f"{i}.png": picture(i, (300, 300)) for i in range(9)}  # 270 kB each: three a shard
    pool = make(tmp_path / "p001", write(tmp_path / "photos", files), shard_megabytes=1)
    ordered = sorted(rows(pool.manifest), key=lambda row: row["uri"])
    assert [row["shard"] for row in ordered] == [f"p001-0000{i // 3}.tar" for i in range(9)]
    for number, shard in enumerate(sorted(pool.shards.path.iterdir())):
        assert shard.stat().st_size <= 10**6 + tarfile.RECORDSIZE
        assert shard.stat().st_size % tarfile.RECORDSIZE == 0
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert [member.name for member in members] == [f"{name_of(files[f'{3 * number + i}.png'])}.png" for i in range(3)]
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}
            for member, row in zip(members, ordered[3 * number : 3 * number + 3], strict=True):
                assert (member.offset_data, member.size) == (row["offset"], row["length"])
                assert tar.extractfile(member).read() == files[row["uri"]]  # type: ignore[union-attr]


def test_chunks_are_bounded(tmp_path: Path) -> None:
    sizes = {"a": CHUNK_BYTES + 1, "b": 10, "c": CHUNK_BYTES - 10, "d": 1} | {f"e{i:03}": 1 for i in range(2 * CHUNK_FILES)}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    chunks = list(chunked(Files(tmp_path), [*sizes, "missing"]))
    assert [uri for chunk in chunks for uri in chunk] == [*sizes, "missing"]
    assert [len(chunk) for chunk in chunks] == [1, 2, CHUNK_FILES, CHUNK_FILES, 2]


# ---- a second pool


def test_second_pool_reads_only_what_is_new(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path / "p001", many)
    before = outputs(tmp_path / "p001")
    original = (many / "a/000.png").read_bytes()
    (many / "a/000.png").write_bytes(bytes(len(original)))  # no image any more, same size: never looked at
    write(many, {"d/new.png": picture(1000), "b/001.png": picture(1001, (50, 50)), "c/copy of old.png": picture(5, (8, 8)), "c/moved.png": picture(8, (11, 8))})
    (many / "c/008.png").unlink()  # renamed to c/moved.png
    (many / "c/011.png").unlink()  # gone for good
    read = count_reads(monkeypatch)
    second = make(tmp_path / "p002", many, tmp_path / "p001")

    assert read == ["a/cut.png", "b/001.png", "b/text.png", "c/copy of old.png", "c/moved.png", "d/new.png"]  # what is bad is looked at again
    assert second.report.reused == 206 - 2 - 3 == second.report.found - len(read)
    ids = by_uri(second, "id")
    assert ids["a/000.png"] == name_of(original)
    assert ids["b/001.png"] == name_of(picture(1001, (50, 50)))
    assert ids["c/moved.png"] == name_of(picture(8, (11, 8)))
    assert by_id(second, picture(5, (8, 8)))["uris"] == ["c/005.png", "c/copy of old.png"]
    assert second.report.gone == 2  # c/011.png, and what b/001.png was
    assert first.report.images == second.report.images == 200  # two gone, two new
    assert (first.report.duplicates, second.report.duplicates) == (4, 5)

    assert outputs(tmp_path / "p001") == before
    shards = sorted(path.name for path in second.shards.path.iterdir())
    assert shards == ["p001-00000.tar", "p002-00000.tar"]
    assert (tmp_path / "p001/shards/p001-00000.tar").samefile(tmp_path / "p002/shards/p001-00000.tar")
    with tarfile.open(tmp_path / "p002/shards/p002-00000.tar") as tar:
        assert len(tar.getmembers()) == 2  # renamed and copied files are not stored again
    images = Images(second.manifest, second.shards.path)
    for row, name in enumerate(second.manifest.ids):
        assert name_of(images.bytes_of(row)) == name


def test_third_pool_of_an_unchanged_source(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/cut.png", "b/text.png"):
        (many / name).unlink()
    first = make(tmp_path / "p001", many)
    read = count_reads(monkeypatch)
    make(tmp_path / "p002", many, tmp_path / "p001")
    third = make(tmp_path / "p003", many, tmp_path / "p002")
    assert read == []
    assert third.manifest.table.equals(first.manifest.table)
    assert third.report.reused == third.report.found == 204
    assert [path.name for path in third.shards.path.iterdir()] == ["p001-00000.tar"]


def test_second_pool_copies_where_it_cannot_link(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "p001", many)
    cached = tmp_path / "cached.tar"
    shard = tmp_path / "p001/shards/p001-00000.tar"
    shard.rename(cached)
    shard.symlink_to(cached)  # as DVC may have put it there

    def refuse(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    make(tmp_path / "p002", many, tmp_path / "p001")
    copied = tmp_path / "p002/shards/p001-00000.tar"
    assert not copied.is_symlink()
    assert copied.read_bytes() == cached.read_bytes()


def test_another_source_is_read_in_full(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same uris and sizes in another folder may be other images."""
    make(tmp_path / "p001", many)
    other = shutil.copytree(many, tmp_path / "other")
    read = count_reads(monkeypatch)
    second = make(tmp_path / "p002", other, tmp_path / "p001")
    assert len(read) == second.report.found
    assert [path.name for path in second.shards.path.iterdir()] == ["p001-00000.tar"]  # known bytes are stored once all the same


def test_lower_limit_holds_for_images_of_the_pool_before(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {"a.png": picture(1, (20, 20)), "b.png": picture(2, (10, 10))})
    make(tmp_path / "p001", source)
    second = make(tmp_path / "p002", source, tmp_path / "p001", max_pixels=100)
    assert by_uri(second, "width") == {"b.png": 10}
    assert second.quarantine.frame["reason"].tolist() == ["too-large"]


def test_shards_that_nothing_needs_are_not_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {f"{i}.png": picture(i, (500, 500)) for i in range(4)})  # 750 kB each: one a shard
    make(tmp_path / "p001", source, shard_megabytes=1)
    (source / "2.png").unlink()
    second = make(tmp_path / "p002", source, tmp_path / "p001", shard_megabytes=1)
    assert sorted(path.name for path in second.shards.path.iterdir()) == ["p001-00000.tar", "p001-00001.tar", "p001-00003.tar"]


def test_pool_before_that_is_incomplete(tmp_path: Path, many: Path) -> None:
    make(tmp_path / "p001", many)
    shard = tmp_path / "p001/shards/p001-00000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:30_000])
    with pytest.raises(
        ArtifactError,
        match=r"p001/shards/p001-00000\.tar is too short \(30000 bytes\), the manifest expects at least \d+ bytes; restore it with `dvc checkout`",
    ):
        make(tmp_path / "p002", many, tmp_path / "p001")
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"p001/shards/p001-00000\.tar is missing, the manifest expects"):
        make(tmp_path / "p002", many, tmp_path / "p001")
    (tmp_path / "p001/manifest.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"p001/manifest\.parquet is missing; run the stage that writes it"):
        make(tmp_path / "p002", many, tmp_path / "p001")
    assert outputs(tmp_path / "p002") == {}


def test_pool_that_names_itself_is_the_first(tmp_path: Path, many: Path) -> None:
    first = make(tmp_path / "p001", many)
    again = make(tmp_path / "p001", many, tmp_path / "p001")
    assert again.report == first.report
    assert again.report.reused == 0


# ---- processes


DEADLY = "\x1b[31mdeadly.png"


@dataclass(frozen=True)
class Deadly(Files):
    """Kills the process that reads the file named DEADLY."""

    def read(self, uri: str, most: int) -> bytes:
        if uri == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(uri, most)


def test_killed_reader_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ALONE", 1)
    write(tmp_path, {"a.png": picture(1), DEADLY: picture(2)})
    with pytest.raises(
        SourceError, match=r'a reading process was killed, perhaps for lack of memory, with 2 files under way \("a\.png", "\\x1b\[31mdeadly\.png"\); lower'
    ):
        list(read_all(Deadly(tmp_path), ["a.png", DEADLY], 10**6, 2))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_readers_die_with_their_parent(tmp_path: Path) -> None:
    write(tmp_path, {f"{i:04}.png": picture(i % 7) for i in range(3000)})
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tasks.reading import read_all\n"
        "from tasks.sources import Files\n"
        "if __name__ == '__main__':\n"
        "    for result in read_all(Files(Path(sys.argv[1])), [f'{i % 3000:04}.png' for i in range(10**6)], 10**6, 2):\n"
        "        print('.', flush=True)\n"
    )
    script = tmp_path / "read.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script, tmp_path], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()  # reading has begun
    started = children(parent.pid)
    assert len(started) >= 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


# ---- whole sources


def test_digits_end_to_end(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    pool = make(tmp_path / "p001", "example://digits", test=0.2, labels="ignore")
    digits = load_digits()
    assert pool.report.found == pool.report.images + pool.report.duplicates == 1797
    assert pool.report.known == {str(digit): int((digits.target == digit).sum()) for digit in range(10)}
    assert pool.report.splits["test"] == len(pool.labels) == 408
    images = Images(pool.manifest, pool.shards.path)
    for row, uri in enumerate(pool.manifest.frame["uri"]):
        assert np.array_equal(np.asarray(images[row])[:, :, 1], np.floor(digits.images[int(uri[-8:-4])] * 255 / 16 + 0.5))
    again = make(tmp_path / "p002", "example://digits", tmp_path / "p001", test=0.2, labels="ignore")
    assert again.report.reused == 1797
    assert again.manifest.table.equals(pool.manifest.table)


def test_photos_end_to_end(tmp_path: Path) -> None:
    root = Path(os.environ.get("RONDO_DATA", "none")) / "clothing"
    if not root.is_dir():
        pytest.skip("RONDO_DATA does not name a folder with clothing/")
    pool = make(tmp_path / "p001", root, workers=2)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    assert sorted(uri for uris in pool.manifest.frame["uris"] for uri in uris) == files
    splits = {split: len(list(root.glob(f"{split}/*/*.jpg"))) for split in ("train", "validation", "test")}
    assert pool.report.splits == splits
    images = Images(pool.manifest, pool.shards.path)
    frame = pool.manifest.frame
    for row in range(0, len(images), 50):
        assert images.bytes_of(row) == (root / frame["uri"][row]).read_bytes()
        assert np.array_equal(np.asarray(images[row]), np.asarray(Image.open(root / frame["uri"][row]).convert("RGB")))


def test_what_dvc_is_told() -> None:
    entry = find("ingest").dvc()
    assert entry["params"] == ["ingest", "code", "round", "previous"]
    assert "deps" not in entry
