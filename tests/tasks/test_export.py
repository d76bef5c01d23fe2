import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageChops

from tasks.answers import read, validate
from tasks.artifacts import Answers, Manifest, PreviousLabels, Selection, Shards
from tasks.contact_sheet import contact_sheet, face
from tasks.errors import ArtifactError, ParamsError
from tasks.export import address, export
from tasks.params import Export, Params
from tasks.stage import Run, find

CLASSES = ["dress", "t-shirt & <b>", 'say "x"', "it's", "платье", "=1+1"]
HEAD = 15 + 2 * 8  # pixels of the contact sheet's title
ODD_URIS = ["train/a.png", "=cmd|' /C calc'!A0.png", "a b#1?.png", "платье/ü,;\"'.png", "line\nbreak.png", "'=q.png", "@x.jpg", "-1.png"]


def picture(color: tuple[int, int, int], size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, format)
    return data.getvalue()


def pool(files: Mapping[str, tuple[bytes, str]], root: Path) -> tuple[Manifest, Shards]:
    """A manifest and one tar of these files, by uri: bytes and format."""
    by_id = {hashlib.sha256(data).hexdigest(): (uri, data, format) for uri, (data, format) in files.items()}
    assert len(by_id) == len(files), "the test's images must differ"
    (root / "shards").mkdir(parents=True)
    rows = []
    with tarfile.open(root / "shards" / "000000.tar", "w") as tar:
        for image, (uri, data, format) in sorted(by_id.items()):
            info = tarfile.TarInfo(image)
            info.size = len(data)
            place = {"shard": "000000.tar", "offset": tar.offset + tarfile.BLOCKSIZE, "length": len(data), "width": 8, "height": 6}
            rows.append({"id": image, "uri": uri, "uris": [uri], "split": "train", "format": format, **place})
            tar.addfile(info, io.BytesIO(data))
    return Manifest.of(rows), Shards(root / "shards")


def select(ids: Iterable[str], *, control: int = 0, predictions: list[str | None] | None = None) -> Selection:
    """Picks in this order, the last `control` of them in the control arm."""
    ids = list(ids)
    rows = []
    for rank, image in enumerate(ids):
        label = predictions[rank] if predictions else None
        arm = "control" if rank >= len(ids) - control else "acquired"
        score = None if arm == "control" else 0.125 + rank
        confidence = None if label is None else 0.75
        rows.append({"rank": rank, "id": image, "score": score, "arm": arm, "reason": "because", "prediction": label, "confidence": confidence})
    return Selection.of(rows)


def run_in(scratch: Path, classes: list[str] | None = None) -> Run:
    scratch.mkdir(parents=True)
    return Run("r002", 7, scratch, Params(classes=CLASSES if classes is None else classes, round="r002", model="../r001/model.safetensors"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Manifest, Shards, list[str]]:
    """A pool with every odd uri, and its ids in the order of ODD_URIS."""
    colors = [(20 * row, 255 - 20 * row, 40) for row in range(len(ODD_URIS))]
    kinds = ["JPEG" if uri.endswith("jpg") else "PNG" for uri in ODD_URIS]
    manifest, shards = pool({uri: (picture(color, format=kind), kind) for uri, color, kind in zip(ODD_URIS, colors, kinds, strict=True)}, tmp_path / "pool")
    by_uri = dict(zip(manifest.table["uri"].to_pylist(), manifest.table["id"].to_pylist(), strict=True))
    return manifest, shards, [by_uri[uri] for uri in ODD_URIS]


def test_tasks_for_label_studio(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    picks = select([ids[2], ids[0], ids[1], ids[3]], control=1, predictions=["dress", "retired class", None, "dress"])
    batch = export(picks, manifest, shards, Export(url_prefix="https://host/bucket/", suggestions=True), run_in(tmp_path / "s"))
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["dress"]}}
    assert json.loads((batch.path / "tasks.json").read_text("utf-8")) == [
        {
            "data": {"image": "https://host/bucket/a%20b%231%3F.png", "image_id": ids[2], "uri": "a b#1?.png", "al_round": "r002", "al_rank": 0},
            "predictions": [{"model_version": "r001", "score": 0.75, "result": [result]}],
        },
        {"data": {"image": "https://host/bucket/train/a.png", "image_id": ids[0], "uri": "train/a.png", "al_round": "r002", "al_rank": 1}, "predictions": []},
        {
            "data": {
                "image": "https://host/bucket/%3Dcmd%7C%27%20/C%20calc%27%21A0.png",
                "image_id": ids[1],
                "uri": ODD_URIS[1],
                "al_round": "r002",
                "al_rank": 2,
            },
            "predictions": [],
        },
        {
            "data": {
                "image": "https://host/bucket/%D0%BF%D0%BB%D0%B0%D1%82%D1%8C%D0%B5/%C3%BC%2C%3B%22%27.png",
                "image_id": ids[3],
                "uri": ODD_URIS[3],
                "al_round": "r002",
                "al_rank": 3,
            },
            "predictions": [{"model_version": "r001", "score": 0.75, "result": [result]}],
        },
    ]


@pytest.mark.parametrize(
    ("prefix", "uri", "expected"),
    [
        ("", "train/a b.png", "train/a b.png"),
        ("", "https://host/a%20b.png", "https://host/a%20b.png"),
        ("s3://bucket/", "a b.png", "s3://bucket/a b.png"),
        ("/data/local-files/?d=", "a b&c.png", "/data/local-files/?d=a%20b%26c.png"),
    ],
)
def test_addresses(prefix: str, uri: str, expected: str) -> None:
    assert address(prefix, uri) == expected


def test_labelling_is_blind(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    """Whichever arm the picks are in, and with whichever score, the batch is the same to the byte; and it has suggestions, which are for both."""
    manifest, shards, ids = odd
    batches = []
    for control in (0, 3, 8):
        picks = select(ids, control=control, predictions=["dress", None, *["dress"] * 6])
        batches.append(files_of(export(picks, manifest, shards, Export(suggestions=True), run_in(tmp_path / f"{control}")).path))
    assert batches[0] == batches[1] == batches[2]
    rows = list(csv.DictReader(io.StringIO(batches[1]["batch.csv"].decode("utf-8-sig"), newline="")))
    assert [(row["prediction"], row["score"]) for row in rows] == [("dress", "0.7500"), ("", ""), *[("dress", "0.7500")] * 6]
    assert [bool(task["predictions"]) for task in json.loads(batches[1]["tasks.json"])] == [True, False] + [True] * 6


def test_nothing_is_suggested_unless_asked_for(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    files = files_of(export(select(ids, predictions=["dress"] * 8), manifest, shards, Export(), run_in(tmp_path / "s")).path)
    assert b"dress" not in files["batch.csv"]
    assert all(task["predictions"] == [] for task in json.loads(files["tasks.json"]))


def test_labeling_config_holds_any_class(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    batch = export(select(ids[:1]), manifest, shards, Export(), run_in(tmp_path / "s"))
    view = ElementTree.fromstring((batch.path / "labeling_config.xml").read_text("utf-8"))
    image, choices = view
    assert (image.tag, image.get("name"), image.get("value")) == ("Image", "image", "$image")
    assert (choices.tag, choices.get("name"), choices.get("toName"), choices.get("choice"), choices.get("showInline")) == (
        "Choices",
        "label",
        "image",
        "single",
        "true",
    )
    assert [choice.get("value") for choice in choices] == CLASSES


def test_many_classes_become_a_list_to_choose_from(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    names = [f"class {number}" for number in range(21)]
    batch = export(select(ids[:1]), manifest, shards, Export(), run_in(tmp_path / "s", names))
    choices = ElementTree.fromstring((batch.path / "labeling_config.xml").read_text("utf-8"))[1]
    assert (choices.get("layout"), choices.get("showInline"), len(choices)) == ("select", None, 21)


def test_batch_csv_begins_no_cell_like_a_formula(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    batch = export(select(ids, predictions=["=1+1"] * 8), manifest, shards, Export(suggestions=True), run_in(tmp_path / "s"))
    content = (batch.path / "batch.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfimage_id,uri,al_round,al_rank,prediction,score,label\n")
    header, *rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    assert not [cell for row in rows for cell in row if cell.lstrip().startswith(("=", "+", "-", "@"))]
    assert [row[1] for row in rows] == [ODD_URIS[0], f"'{ODD_URIS[1]}", *ODD_URIS[2:5], "''=q.png", "'@x.jpg", "'-1.png"]
    assert [row[:1] + row[2:] for row in rows] == [[image, "r002", str(rank), "'=1+1", "0.7500", ""] for rank, image in enumerate(ids)]
    assert header[-1] == "label"


def test_a_filled_in_batch_csv_comes_back_whole(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    picks = select(ids, predictions=["=1+1"] * 8)
    batch = export(picks, manifest, shards, Export(suggestions=True), run_in(tmp_path / "s"))
    table = list(csv.reader(io.StringIO((batch.path / "batch.csv").read_text("utf-8-sig"), newline="")))
    labels = ["dress", "'=1+1", "=1+1", "__skip__", "платье", 'say "x"', "it's", ""]  # the second as copied from the prediction beside it
    answers = tmp_path / "answers"
    answers.mkdir()
    with (answers / "batch.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows([table[0], *([*row[:-1], label] for row, label in zip(table[1:], labels, strict=True))])
    checked = validate(read(Answers(answers)), picks, manifest, PreviousLabels.of([]), CLASSES)
    assert [checked.labels.get(image) for image in ids] == ["dress", "=1+1", "=1+1", None, "платье", 'say "x"', "it's", None]
    assert (checked.skipped, checked.unanswered) == ((ids[3],), (ids[7],))
    assert [(reject.answer.ref, reject.reason) for reject in checked.rejects] == [(ids[7], "no-answer")]


def test_an_untouched_batch_csv_and_tasks_json_hold_no_answer(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    picks = select(ids, predictions=["dress"] * 8)
    batch = export(picks, manifest, shards, Export(suggestions=True), run_in(tmp_path / "s"))
    answers = tmp_path / "answers"
    answers.mkdir()
    for name in ("batch.csv", "tasks.json", "README.txt"):
        (answers / name).write_bytes((batch.path / name).read_bytes())
    checked = validate(read(Answers(answers)), picks, manifest, PreviousLabels.of([]), CLASSES)
    assert (checked.summary(), len(checked.unanswered)) == ("0 of 8 answered", 8)
    assert {reject.reason for reject in checked.rejects} == {"no-answer"}


def test_images_are_the_files_of_the_source(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    batch = export(select(ids), manifest, shards, Export(), run_in(tmp_path / "s"))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (batch.path / "images").iterdir()}
    kinds = ["jpg" if uri.endswith("jpg") else "png" for uri in ODD_URIS]
    assert found == {f"{image}.{kind}": image for image, kind in zip(ids, kinds, strict=True)}


def test_images_can_be_left_out(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    batch = export(select(ids), manifest, shards, Export(images=False), run_in(tmp_path / "s"))
    assert sorted(files_of(batch.path)) == ["README.txt", "batch.csv", "contact_sheet.png", "labeling_config.xml", "tasks.json"]
    assert "images/" not in (batch.path / "README.txt").read_text("utf-8")


def test_the_readme_says_where_answers_go(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    batch = export(select(ids), manifest, shards, Export(), run_in(tmp_path / "s"))
    text = (batch.path / "README.txt").read_text("utf-8")
    assert "into answers/r002/ of the workspace" in text
    assert f"The classes: {', '.join(CLASSES)}\n" in text
    assert "write __skip__ as its label" in text


def test_the_same_picks_give_the_same_bytes(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    first = export(select(ids, control=2, predictions=["dress"] * 8), manifest, shards, Export(suggestions=True), run_in(tmp_path / "one"))
    os.utime(shards.path / "000000.tar", (1, 1))
    second = export(select(ids, control=2, predictions=["dress"] * 8), manifest, shards, Export(suggestions=True), run_in(tmp_path / "elsewhere" / "two"))
    assert len(files_of(first.path)) == 13
    assert files_of(first.path) == files_of(second.path)
    assert not [name for name, data in files_of(first.path).items() if str(tmp_path).encode() in data]


def test_a_pick_that_the_pool_does_not_have(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    with pytest.raises(ArtifactError, match=r"selection\.parquet names 1 images that the pool does not have, first 000.*; run acquire again"):
        export(select([ids[0], "0" * 64]), manifest, shards, Export(), run_in(tmp_path / "s"))


def test_without_classes_nobody_can_be_asked(odd: tuple[Manifest, Shards, list[str]], tmp_path: Path) -> None:
    manifest, shards, ids = odd
    with pytest.raises(ParamsError, match=r"classes is empty; list the answers people may give in params\.yaml"):
        export(select(ids), manifest, shards, Export(), run_in(tmp_path / "s", []))


def test_what_the_stage_reads_and_writes() -> None:
    entry = find("export").dvc()
    assert entry["deps"] == ["${here}/selection.parquet", "${pool}/manifest.parquet", "${pool}/shards"]
    assert entry["params"] == ["export", "code", "round", "classes", "model"]
    assert entry["outs"] == ["${here}/batch"]


# ---- the contact sheet ---------------------------------------------------------------------------------------------------


def test_tiles_lie_in_the_order_given() -> None:
    colors = [(10 * row, 0, 255 - 10 * row) for row in range(7)]
    sheet = contact_sheet([(Image.new("RGB", (5, 5), color), str(row)) for row, color in enumerate(colors)], 3, "title")
    step_x, step_y = 96 + 8, 96 + 8 + 16
    assert sheet.size == (3 * step_x + 8, HEAD + 3 * step_y + 8)
    assert [sheet.getpixel((8 + 48 + row % 3 * step_x, HEAD + 8 + 48 + row // 3 * step_y)) for row in range(7)] == colors


def test_proportions_are_kept() -> None:
    sheet = contact_sheet([(Image.new("RGB", (400, 100), (255, 0, 0)), "")], 1, "")
    red = (np.asarray(sheet) == (255, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (HEAD + 8 + 36, HEAD + 8 + 59, 8, 8 + 95)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_any_mode_and_any_size(mode: str) -> None:
    for size in ((1, 1), (1, 3000), (3000, 1), (500, 500)):
        assert contact_sheet([(Image.new(mode, size), "x")], 10, "").size == (8 + 104, HEAD + 8 + 104 + 16)


def test_captions_are_drawn_below_their_tiles() -> None:
    tile = Image.new("RGB", (10, 10))
    box = ImageChops.difference(*(contact_sheet([(tile, caption)], 1, "") for caption in ("12", "13"))).getbbox()
    assert box is not None
    assert box[1] >= HEAD + 8 + 96


def test_an_empty_sheet_still_says_its_title() -> None:
    assert len(contact_sheet([], 10, "nothing picked").getcolors(100_000) or []) > 1


def test_letters_are_there_for_other_scripts() -> None:
    boxes = [face(12).getmask(letter).getbbox() for letter in "жΩé→…"]
    missing = face(12).getmask("\U0010fffd")
    assert all(boxes)
    assert all(bytes(face(12).getmask(letter)) != bytes(missing) for letter in "жΩé→…")


def test_the_sheet_is_bounded_and_says_so(tmp_path: Path) -> None:
    colors = [(row % 16 * 16, row // 16 * 16, 99) for row in range(230)]
    manifest, shards = pool({f"{row}.png": (picture(color), "PNG") for row, color in enumerate(colors)}, tmp_path / "pool")
    by_uri = dict(zip(manifest.table["uri"].to_pylist(), manifest.table["id"].to_pylist(), strict=True))
    ids = [by_uri[f"{row}.png"] for row in range(230)]
    many = Image.open(export(select(ids), manifest, shards, Export(columns=20), run_in(tmp_path / "a")).path / "contact_sheet.png")
    some = Image.open(export(select(ids[:200]), manifest, shards, Export(columns=20), run_in(tmp_path / "b")).path / "contact_sheet.png")
    assert many.size == some.size
    below = (0, 40, many.width, many.height)
    assert not ImageChops.difference(many.crop(below), some.crop(below)).getbbox()
    assert ImageChops.difference(many, some).getbbox()
    middle = [many.getpixel((8 + 48 + row % 20 * 104, HEAD + 8 + 48 + row // 20 * 120)) for row in range(200)]
    assert middle == colors[:200]


@pytest.mark.skipif("RONDO_DATA" not in os.environ, reason="RONDO_DATA names no folder with clothing/")
def test_real_photos(tmp_path: Path) -> None:
    root = Path(os.environ["RONDO_DATA"]) / "clothing" / "validation"
    paths = sorted(root.glob("*/*.jpg"))[::5]
    manifest, shards = pool({path.relative_to(root).as_posix(): (path.read_bytes(), "JPEG") for path in paths}, tmp_path / "pool")
    ids = manifest.ids.tolist()
    batch = export(select(ids), manifest, shards, Export(), run_in(tmp_path / "s"))
    assert {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (batch.path / "images").iterdir()} == {image: image for image in ids}
    assert Image.open(batch.path / "contact_sheet.png").width == 8 + 10 * 104
