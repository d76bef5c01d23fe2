from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, UnidentifiedImageError

from tasks.artifacts import Manifest
from tasks.errors import ArtifactError
from tasks.images import FORMATS, Images, open_image, to_rgb

Array = npt.NDArray[np.uint8]
rng = np.random.default_rng(0)
PIXELS: Array = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Array:
    image = to_rgb(open_image(data))
    assert image.mode == "RGB"
    return np.asarray(image)


def pool(folder: Path, shards: dict[str, Sequence[bytes]]) -> Manifest:
    """Files behind one another in each shard, eleven bytes apart."""
    rows: list[dict[str, object]] = []
    for name, files in shards.items():
        content = b""
        for data in files:
            content += b"x" * 11
            row = {
                "id": hashlib.sha256(data).hexdigest(),
                "uri": f"{len(rows)}",
                "uris": [f"{len(rows)}"],
                "split": "train",
                "width": 1,
                "height": 1,
                "format": "PNG",
            }
            rows.append({**row, "shard": name, "offset": len(content), "length": len(data)})
            content += data
        (folder / name).write_bytes(content)
    return Manifest.of(rows)


ORDER = sorted(range(4), key=lambda i: hashlib.sha256(encoded(Image.fromarray(PIXELS + i))).hexdigest())  # as rows of a manifest
FILES = [encoded(Image.fromarray(PIXELS + i)) for i in ORDER]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(pool(tmp_path, {"b.tar": FILES[:3], "a.tar": FILES[3:]}), tmp_path)


def test_rows_are_the_manifests(images: Images) -> None:
    assert len(images) == 4
    for row, image in enumerate(images):  # ends by IndexError
        assert np.array_equal(np.asarray(image), PIXELS + ORDER[row])
        assert images.bytes_of(row) == FILES[row]
    assert images.bytes_of(-1) == FILES[3]
    with pytest.raises(IndexError):
        images[4]


def test_some_rows(tmp_path: Path) -> None:
    manifest = pool(tmp_path, {"b.tar": FILES[:3], "a.tar": FILES[3:]})
    some = Images(manifest, tmp_path, [3, 1, 1])
    assert [some.bytes_of(row) for row in range(len(some))] == [FILES[3], FILES[1], FILES[1]]
    assert [some[1:].bytes_of(row) for row in range(2)] == [FILES[1], FILES[1]]
    assert len(Images(manifest, tmp_path, [])) == 0
    again = pickle.loads(pickle.dumps(some))  # noqa: S301
    assert np.array_equal(np.asarray(again[0]), PIXELS + ORDER[3])


def test_files_of_one_length_are_read_at_once(tmp_path: Path) -> None:
    files = [bytes([i] * 5) for i in range(6)]
    (tmp_path / "a.tar").write_bytes(b"head" + b"".join(files[:4]))
    (tmp_path / "b.tar").write_bytes(b"".join(files[4:]))
    row = {"uri": "", "uris": [""], "split": "train", "width": 1, "height": 1, "format": "PNG", "length": 5}
    places = [("a.tar", 4 + 5 * i) for i in range(4)] + [("b.tar", 0), ("b.tar", 5)]
    images = Images(
        Manifest.of([{**row, "id": f"{i:064}", "shard": shard, "offset": offset} for i, (shard, offset) in enumerate(places)]), tmp_path, hashed=False
    )
    with patch.object(os, "preadv", wraps=os.preadv) as read:
        for rows in ([0, 1, 2, 3, 4, 5], [3, 2, 2, 5, 4], []):
            out = np.empty((len(rows), 5), np.uint8)
            images.fill(rows, out)
            assert [each.tobytes() for each in out] == [files[row] for row in rows]
    assert [len(call.args[1][0]) for call in read.call_args_list] == [20, 10, 5, 5, 5, 5, 5]


def test_missing_shard(images: Images, tmp_path: Path) -> None:
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ArtifactError) as caught:
        images[3]
    assert str(caught.value) == f"row 3 (byte 11 of {tmp_path}/a.tar): the shard is missing; restore it with `dvc checkout` or `dvc pull`"


def test_short_shard(images: Images, tmp_path: Path) -> None:
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[:-5])
    assert images.bytes_of(1) == FILES[1]
    with pytest.raises(ArtifactError) as caught:
        images[2]
    start, length = len(content) - len(FILES[2]), len(FILES[2])
    assert (
        str(caught.value)
        == f"row 2 (byte {start} of {tmp_path}/b.tar): the shard is too short, got {length - 5} bytes of {length}; restore it with `dvc checkout`"
    )


def test_damaged_shard(images: Images, tmp_path: Path) -> None:
    content = bytearray((tmp_path / "b.tar").read_bytes())
    content[11:40] = bytes(29)
    (tmp_path / "b.tar").write_bytes(content)
    changed = "the shard has changed, the sha256 of the image is not its id; restore it with `dvc checkout`"
    for read in (images.bytes_of, images.__getitem__):
        with pytest.raises(ArtifactError) as caught:
            read(0)
        assert str(caught.value) == f"row 0 (byte 11 of {tmp_path}/b.tar): {changed}"
    assert images.bytes_of(1) == FILES[1]


def test_files_of_a_pack_are_not_their_ids_hashes(tmp_path: Path) -> None:
    manifest = pool(tmp_path, {"b.tar": FILES})
    content = bytearray((tmp_path / "b.tar").read_bytes())
    content[11:15] = b"text"
    (tmp_path / "b.tar").write_bytes(content)
    images = Images(manifest, tmp_path, hashed=False)
    assert images.bytes_of(0) == b"text" + FILES[0][4:]
    with pytest.raises(ArtifactError, match=r"row 0 \(byte 11 of .*b\.tar\) does not decode \(no image format known here"):
        images[0]


# ---- to RGB


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [  # what the standard says of the stored first row and first column: (top, left), (top, right), (bottom, right), ...
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
        (9, lambda a: a),
    ],
)
def test_exif_orientation(orientation: int, upright: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert callable(upright)
    assert np.array_equal(decoded(encoded(Image.fromarray(PIXELS), exif=exif)), upright(PIXELS))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken", b"Exif\0\0no header at all"])
def test_exif_that_cannot_be_read_says_nothing(exif: bytes) -> None:
    data = encoded(Image.fromarray(PIXELS), "JPEG", quality=95, exif=exif)
    assert decoded(data).shape == PIXELS.shape


def test_transparent_pixels_show_white() -> None:
    red = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 51]]], dtype=np.uint8)
    expected = [[[255, 0, 0], [255, 255, 255], [255, 204, 204]]]  # 51/255 is a fifth: 255 * 4/5 = 204
    assert decoded(encoded(Image.fromarray(red, "RGBA"))).tolist() == expected
    grey = np.array([[[0, 255], [0, 0], [0, 51]]], dtype=np.uint8)
    assert decoded(encoded(Image.fromarray(grey, "LA"))).tolist() == [[[0] * 3, [255] * 3, [204] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    assert decoded(encoded(palette, transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_16_bit_grey_keeps_its_upper_bits() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        assert decoded(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 0, 1, 128, 255], kind


def test_32_bit_pixels_are_refused() -> None:
    for mode in ("F", "I"):
        with pytest.raises(ValueError, match=rf"32-bit pixels \(mode {mode}\) have no agreed range; convert the image to 8 or 16 bits"):
            decoded(encoded(Image.new(mode, (2, 2)), "TIFF"))


def test_other_modes() -> None:
    assert decoded(encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF")).tolist() == [[[255, 0, 0]]]
    assert decoded(encoded(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]
    assert decoded(encoded(Image.new("L", (1, 1), 7))).tolist() == [[[7, 7, 7]]]


def test_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    assert decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", FORMATS)
def test_type_is_found_by_content(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this build of Pillow does not write {kind}")
    image = open_image(encoded(Image.fromarray(PIXELS), kind))
    assert (image.format, image.size) == (kind, (7, 5))


@pytest.mark.parametrize("data", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(UnidentifiedImageError) as caught:
        open_image(data)
    assert str(caught.value) == f"no image format known here; it begins with {data[:8]!r}"
