from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tasks.errors import SourceError
from tasks.sources import Entry, Files, Source, open_source, png_bytes


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def listing(source: Source) -> dict[str, tuple[str | None, str | None]]:
    return {entry.uri: (entry.label, entry.split) for entry in source.entries}


def opened(text: str | Path, base: Path = Path()) -> Source:
    return open_source(str(text), base, Path("not-needed"))


def message(text: str | Path, scratch: Path = Path("not-needed")) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(str(text), Path(), scratch)
    return str(caught.value)


# ---- folders


def test_folder_of_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dress/b.jpg", "dress/a.JPG", "hat/2019/may/x.png", "root.webp", "hat/0a1b", "hat/raw.heic")
    touch(tmp_path, ".hidden.jpg", ".git/x.jpg", "hat/.DS_Store", "hat/notes.txt", "Thumbs.db", "README.md")
    source = opened(tmp_path)
    assert listing(source) == {
        "dress/a.JPG": ("dress", None),
        "dress/b.jpg": ("dress", None),
        "hat/0a1b": ("hat", None),
        "hat/2019/may/x.png": ("hat", None),
        "hat/raw.heic": ("hat", None),
        "root.webp": (None, None),
    }
    assert [entry.uri for entry in source.entries] == sorted(listing(source))
    assert source.passed_over == 3
    assert source.reader.read("dress/b.jpg", 100) == b"dress/b.jpg"
    assert source.reader.size("dress/b.jpg") == 11


def test_folder_of_splits(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/dress/a.jpg",
        "Test/hat/deep/b.jpg",
        "val/hat/c.jpg",
        "valid/d.jpg",
        "validation/hat/e.jpg",
        "unlabeled/x/y/f.jpg",
        "train/g.jpg",
        "h.jpg",
    )
    assert listing(opened(tmp_path)) == {
        "train/dress/a.jpg": ("dress", "train"),
        "train/g.jpg": (None, "train"),
        "Test/hat/deep/b.jpg": ("hat", "test"),
        "val/hat/c.jpg": ("hat", "validation"),
        "valid/d.jpg": (None, "validation"),
        "validation/hat/e.jpg": ("hat", "validation"),
        "unlabeled/x/y/f.jpg": (None, "train"),
        "h.jpg": (None, None),
    }


def test_unlabeled_folder_beside_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dress/a.jpg", "unlabeled/b.jpg")
    assert listing(opened(tmp_path)) == {"dress/a.jpg": ("dress", None), "unlabeled/b.jpg": (None, "train")}


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/dress/a.jpg", "test/dress/b.jpg", "extra/c.jpg", "annotations/notes.txt")
    assert message(tmp_path) == (
        f"source '{tmp_path}' has split folders (test, train) beside other folders of images (\"extra\"), which could be classes or splits; "
        "move those into a split, or give a list: uri,label,split"
    )


def test_links(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/hats/a.jpg", "elsewhere/b.jpg", "root/dress/c.jpg")
    root = tmp_path / "root"
    (root / "hat").symlink_to(tmp_path / "elsewhere/hats")
    (root / "dress/b.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (root / "dress/gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "dress/self.jpg").symlink_to(root / "dress/self.jpg")
    assert list(listing(opened(root))) == ["dress/b.jpg", "dress/c.jpg", "dress/gone.jpg", "dress/self.jpg", "hat/a.jpg"]
    (tmp_path / "elsewhere/hats/back").symlink_to(root)
    assert message(root) == f'"{root}/hat/back" is a link to a folder that it lies in; remove the link'


def test_names_of_folders_cannot_drive_the_terminal(tmp_path: Path) -> None:
    touch(tmp_path, "train/dress/a.jpg", "\x1b[31mevil/c.jpg")
    assert 'beside other folders of images ("\\x1b[31mevil"), which' in message(tmp_path)
    (tmp_path / "\x1b[31mevil" / "loop").symlink_to(tmp_path)
    assert message(tmp_path) == f'"{tmp_path}/\\x1b[31mevil/loop" is a link to a folder that it lies in; remove the link'


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    assert message(tmp_path) == f"source '{tmp_path}' is empty: no image files in it; put images in it, or name another with ingest.source"
    touch(tmp_path, "a.txt", "b.csv.gz")
    assert "no image files in it (2 files of other kinds)" in message(tmp_path)
    assert message(tmp_path / "no").startswith(f"source '{tmp_path}/no' does not exist (looked at {tmp_path}/no); ingest.source takes a folder,")
    assert message("").startswith("source '' does not exist")
    assert message(tmp_path / "a.txt") == f"source '{tmp_path}/a.txt' is a file, expected a folder or a list named .csv or .jsonl"


def test_relative_source_is_relative_to_base(tmp_path: Path) -> None:
    touch(tmp_path, "photos/dress/a.jpg")
    assert listing(opened("../photos", tmp_path / "photos")) == {"dress/a.jpg": ("dress", None)}


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system keeps names in UTF-8")
    source = opened(tmp_path)
    assert source.entries == []
    assert source.unlisted == [("caf\\xe9.jpg", "its name is not valid Unicode; rename it")]


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large.jpg").write_bytes(b"12345")
    reader = Files(tmp_path)
    with pytest.raises(OSError, match="not a regular file"):
        reader.read("pipe.jpg", 100)
    with pytest.raises(OSError):
        reader.read("folder", 100)
    with pytest.raises(OSError, match="5 bytes"):
        reader.read("large.jpg", 4)
    assert reader.read("large.jpg", 5) == b"12345"
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301


# ---- lists


def test_csv_list(tmp_path: Path) -> None:
    touch(tmp_path, "images/b.jpg", "images/a, b.jpg")
    path = tmp_path / "list.csv"
    absolute = tmp_path / "images/a, b.jpg"
    path.write_bytes(f'\ufeffuri,split,label\r\nimages/b.jpg,,\r\n\r\n"{absolute}",val,"T-shirt ""top"""\r\nimages/gone.jpg,test,Ärmel\r\n'.encode())
    source = opened(path)
    assert listing(source) == {str(absolute): ('T-shirt "top"', "validation"), "images/b.jpg": (None, None), "images/gone.jpg": ("Ärmel", "test")}
    assert source.has_test
    assert source.reader.read("images/b.jpg", 100) == b"images/b.jpg"
    assert source.reader.read(str(absolute), 100) == b"images/a, b.jpg"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_list_of_every_spreadsheet(tmp_path: Path, separator: str, end: str) -> None:
    rows = [["uri", "label", "split"], ["a;b,\tc.jpg", "dress", "test"], ["d.jpg", "", ""]]
    path = tmp_path / "list.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator=end).writerows(rows)
    assert listing(opened(path)) == {"a;b,\tc.jpg": ("dress", "test"), "d.jpg": (None, None)}
    path.write_text(separator.join(["uri", "label"]) + f"\na.jpg{separator}x{separator}y\n")
    assert f"line 2: 3 fields, expected 2 (uri{separator}label); put a field with {separator!r} in double quotes" in message(path)


@pytest.mark.parametrize("uri", ["./a.png", "b//c.png", "b/./c.png", "b/", "//photos/a.png", "/photos//a.png", "."])
def test_a_file_has_one_name_in_a_list(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"uri,label\na.png,dress\nb/c.png,hat\n/photos/a.png,hat\n{uri},hat\n")
    assert message(path) == (
        f"list {path} has 1 wrong line; mend them:\n"
        f"  line 5: uri {uri!r} has an empty part or '.' between its slashes; write it without, so that each file has one name"
    )


def test_jsonl_list(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    rows = [{"uri": "b.jpg", "label": "dress"}, {"uri": "a.jpg", "label": None, "split": "train"}, {"uri": "c d.jpg"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", "utf-8")
    source = opened(path)
    assert listing(source) == {"a.jpg": (None, "train"), "b.jpg": ("dress", None), "c d.jpg": (None, None)}
    assert not source.has_test


def test_lines_that_are_wrong_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("uri,label,split\na.jpg,dress,train\nb.jpg,dress,tset\nc.jpg,dress\n../d.jpg,,\ns3://bucket/e.jpg,,\na.jpg,hat,\n,hat,\nf.jpg, hat,\n")
    assert message(path) == (
        f"list {path} has 7 wrong lines; mend them:\n"
        "  line 3: split is 'tset', expected train, validation or test\n"
        "  line 4: 2 fields, expected 3 (uri,label,split); put a field with ',' in double quotes\n"
        "  line 5: uri '../d.jpg' leads out of the list's folder; put the list above the images, or write absolute paths\n"
        "  line 6: uri 's3://bucket/e.jpg' has the scheme 's3'; lists take paths in this version\n"
        "  line 7: uri 'a.jpg' is on line 2 already; list each file once\n"
        "  line 8: uri is empty\n"
        "  line 9: label ' hat' begins or ends with white space"
    )
    path.write_text("uri,split\n" + "".join(f"{row}.jpg,no\n" for row in range(12)))
    assert message(path).endswith("line 11: split is 'no', expected train, validation or test\n  and 2 more")


def test_json_lines_that_are_wrong_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        '{"uri": "a.jpg", "label": 3}\n[]\n{"uri": "b.jpg", "lable": "x"}\n{"uri"\n{"uri": "\\ud800.jpg"}\n{"uri": "a\\u0000.jpg"}\n{"label": "hat"}\n'
    )
    assert message(path) == (
        f"list {path} has 7 wrong lines; mend them:\n"
        "  line 1: label is 3, expected text\n"
        '  line 2: is list, expected an object such as {"uri": "a.jpg", "label": "dress"}\n'
        "  line 3: unknown column 'lable'; did you mean 'label'?\n"
        "  line 4: not JSON (Expecting ':' delimiter: line 1 column 7 (char 6))\n"
        "  line 5: uri '\\ud800.jpg' is not valid Unicode\n"
        "  line 6: uri 'a\\x00.jpg' holds a NUL character\n"
        "  line 7: uri is empty"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a.jpg,dress\n", "list {path} begins with 'a.jpg,dress', expected a header with uri and, if you have them, label and split"),
        (b"", "list {path} begins with '', expected a header"),
        (b"uri,lable\na.jpg,x\n", "list {path}, line 1: unknown column 'lable'; did you mean 'label'?"),
        (b"uri,weight\na.jpg,x\n", "list {path}, line 1: unknown column 'weight'; known are uri, label, split"),
        (b"uri,label,label\na.jpg,x,y\n", "list {path}, line 1: a column is named twice"),
        (b"uri,label\na.jpg,x\nb.jpg,\xe4rmel\n", "list {path} is not UTF-8 (line 3, byte 0xe4); save it as UTF-8"),
        (b'uri,label\na.jpg,"x" y\n', "list {path}, line 2: not CSV ("),
        (b"uri,label\n", "source '{path}' is empty: no image files in it"),
    ],
)
def test_lists_that_are_wrong_as_a_whole(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    assert message(path).startswith(expected.format(path=path))


# ---- schemes


def test_schemes() -> None:
    assert message("s3://bucket/photos") == (
        "source 's3://bucket/photos': S3 is not read directly in this version; copy it into a folder (`aws s3 sync s3://bucket/photos DIR`) and name that"
    )
    assert message("ftp://host/x") == (
        "source 'ftp://host/x' has the unknown scheme 'ftp'; ingest.source takes a folder, a .csv or .jsonl list, torchvision://NAME or example://digits"
    )
    assert message("example://letters") == "source 'example://letters' is unknown; the example is example://digits"


# ---- sources that come as arrays


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (3, 5, 3), (300, 400, 3)])
def test_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(png_bytes(pixels)))
    image.load()
    assert (image.format, image.mode) == ("PNG", "L" if len(shape) == 2 else "RGB")
    assert np.array_equal(np.asarray(image), pixels)


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = open_source("example://digits", Path(), tmp_path / "a")
    digits = load_digits()
    assert [entry.uri for entry in source.entries] == sorted(f"digits/{label}/{row:04}.png" for row, label in enumerate(digits.target))
    assert {entry.split for entry in source.entries} == {None}
    for entry in source.entries[::97]:
        row = int(entry.uri[-8:-4])
        assert entry.label == str(digits.target[row])
        seen = np.asarray(Image.open(io.BytesIO(source.reader.read(entry.uri, 1000))))
        assert np.array_equal(seen, np.floor(digits.images[row] * 255 / 16 + 0.5))


def test_digits_are_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """The ids of the example's images are the hashes of these files: a change here changes them for everyone."""
    source = open_source("example://digits", Path(), tmp_path)
    every = hashlib.sha256(b"".join(source.reader.read(entry.uri, 1000) for entry in source.entries))
    assert every.hexdigest() == "380c1b4a184aa18b1815b9f873ad565413e60d0133f798adfafc08b608afe7bb"


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_set(folder: Path, pack: bool) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """A tiny data set in the format of MNIST: 3 train and 2 test images."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    sets = {
        "train": (rng.integers(0, 256, (3, 28, 28), dtype=np.uint8), np.array([0, 7, 9], np.uint8)),
        "t10k": (rng.integers(0, 256, (2, 28, 28), dtype=np.uint8), np.array([0, 1], np.uint8)),
    }
    for part, arrays in sets.items():
        for kind, array in zip(("images-idx3-ubyte", "labels-idx1-ubyte"), arrays, strict=True):
            data = idx(array)
            (folder / f"{part}-{kind}{'.gz' * pack}").write_bytes(gzip.compress(data) if pack else data)
    return {"train": sets["train"], "test": sets["t10k"]}


@pytest.mark.parametrize(
    ("name", "folder", "pack", "labels"),
    [
        ("MNIST", "mnist", True, {"train": ["0", "7", "9"], "test": ["0", "1"]}),
        ("FashionMNIST", "FashionMNIST/raw", False, {"train": ["T-shirt/top", "Sneaker", "Ankle boot"], "test": ["T-shirt/top", "Trouser"]}),
    ],
)
def test_torchvision_idx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, pack: bool, labels: dict[str, list[str]]) -> None:
    monkeypatch.setenv("RONDO_DATA", str(tmp_path))
    sets = idx_set(tmp_path / folder, pack)
    source = open_source(f"torchvision://{name}", Path(), tmp_path / "scratch")
    expected = [Entry(f"{name.lower()}/{split}/{row:05}.png", label, split) for split in ("test", "train") for row, label in enumerate(labels[split])]
    assert source.entries == expected
    for entry in source.entries:
        row = int(entry.uri[-9:-4])
        assert entry.split is not None
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.reader.read(entry.uri, 10_000)))), sets[entry.split][0][row])


def test_torchvision_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the published layout with two images each; only the checksums of the published ones are replaced."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    batches = {name: rng.integers(0, 256, (2, 3072), dtype=np.uint8) for name in ("data_batch_1", "test_batch")}
    sums = {name: write(name, {"data": data, "labels": [1, 0]}) for name, data in batches.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": write("batches.meta", {"label_names": ["airplane", "automobile"]})})
    monkeypatch.setenv("RONDO_DATA", str(tmp_path))
    source = open_source("torchvision://CIFAR10", Path(), tmp_path / "scratch")
    assert listing(source) == {
        f"cifar10/{split}/{row:05}.png": (label, split) for split in ("test", "train") for row, label in enumerate(("automobile", "airplane"))
    }
    seen = np.asarray(Image.open(io.BytesIO(source.reader.read("cifar10/train/00001.png", 10_000))))
    assert np.array_equal(seen, batches["data_batch_1"][1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_torchvision_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RONDO_DATA", raising=False)
    how = (
        "download it once, `python -c \"import torchvision; torchvision.datasets.MNIST('DIR', download=True)\"`, "
        "and set the environment variable RONDO_DATA to DIR; ingest itself never downloads"
    )
    assert message("torchvision://MNIST") == f"source 'torchvision://MNIST': RONDO_DATA is not set, so there is nowhere to look; {how}"
    monkeypatch.setenv("RONDO_DATA", str(tmp_path))
    assert message("torchvision://MNIST") == f"source 'torchvision://MNIST': its files are not in RONDO_DATA ({tmp_path}); {how}"
    assert "its files are not in RONDO_DATA" in message("torchvision://CIFAR10")
    assert message("torchvision://mnist") == (
        "source 'torchvision://mnist' is unknown; this version reads MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100; did you mean torchvision://MNIST?"
    )


def test_torchvision_with_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RONDO_DATA", str(tmp_path))
    idx_set(tmp_path / "mnist", pack=True)
    file = tmp_path / "mnist/train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert "train-images-idx3-ubyte.gz cannot be unpacked (" in message("torchvision://MNIST", tmp_path / "a")
    file.write_bytes(gzip.compress(gzip.decompress(whole)[:-5]))
    assert message("torchvision://MNIST", tmp_path / "b").startswith("source 'torchvision://MNIST': torchvision cannot read its files (")


@pytest.mark.slow
def test_published_mnist(tmp_path: Path) -> None:
    if not (Path(os.environ.get("RONDO_DATA", "none")) / "mnist").is_dir():
        pytest.skip("RONDO_DATA does not name a folder with mnist/")
    source = open_source("torchvision://MNIST", Path(), tmp_path)
    splits = [entry.split for entry in source.entries]
    assert (splits.count("train"), splits.count("test")) == (60_000, 10_000)
    assert [entry.label for entry in source.entries if entry.split == "train"][:10] == list("5041921314")  # as in every tutorial
