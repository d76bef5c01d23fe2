import itertools
import json
import os
import random
from pathlib import Path

import pytest

from tasks.answers import SKIP, UNNAMED, Answer, Checked, check_classes, read, validate
from tasks.artifacts import Answers, Manifest, PreviousLabels, Selection
from tasks.errors import AnswersError, ParamsError
from tasks.spreadsheets import guard, unguard

A, B, C, D, OLD, OTHER = (letter * 64 for letter in "abcdef")
CLASSES = ["dress", "skirt", "платье"]
URI = {A: "train/a.jpg", B: "train/b.jpg", C: "train/ц.jpg", D: "train/d.jpg", OLD: "train/old.jpg", OTHER: "train/other.jpg"}


def manifest() -> Manifest:
    fixed = {"split": "train", "shard": "s.tar", "offset": 0, "length": 1, "width": 1, "height": 1, "format": "PNG"}
    return Manifest.of([{"id": image, "uri": uri, "uris": [uri, f"copy/{uri}"], **fixed} for image, uri in URI.items()])


def selection(*images: str) -> Selection:
    fixed = {"score": None, "arm": "acquired", "reason": "", "prediction": None, "confidence": None}
    return Selection.of([{"rank": rank, "id": image, **fixed} for rank, image in enumerate(images)])


def previous() -> PreviousLabels:
    return PreviousLabels.of([{"id": OLD, "label": "dress", "round": "r001", "annotator": "ben", "arm": "acquired"}])


def folder(tmp_path: Path, **files: str | bytes) -> Answers:
    """An answers folder; `a_csv="..."` becomes a.csv."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name.replace("_", ".")).write_bytes(data)
    return Answers(tmp_path)


def check(*rows: Answer, batch: tuple[str, ...] = (A, B, C, D)) -> Checked:
    return validate(rows, selection(*batch), manifest(), previous(), CLASSES)


def said(image: str, label: str | None, by: str = "anna", line: int = 2, source: str = "a.csv", uri: str = "") -> Answer:
    return Answer(source, line, image, uri, label, by)


def reasons(checked: Checked) -> list[tuple[int, str]]:
    return [(reject.answer.line, reject.reason) for reject in checked.rejects]


# ---- files ---------------------------------------------------------------------------------------------------------------


def test_csv_by_id_by_uri_and_by_both(tmp_path: Path) -> None:
    given = folder(
        tmp_path,
        a_csv=f"image_id,label,annotator\n{A},dress,anna\n{B},,anna\n\n{C},{SKIP},\n",
        b_csv="uri,label\ntrain/d.jpg,skirt\n",
        c_csv=f"image_id,uri,note,label\n{A},train/a.jpg,x,dress\n,train/b.jpg,x,skirt\n",
    )
    assert read(given) == [
        Answer("a.csv", 2, A, "", "dress", "anna"),
        Answer("a.csv", 3, B, "", None, "anna"),
        Answer("a.csv", 5, C, "", SKIP, UNNAMED),
        Answer("b.csv", 2, "", "train/d.jpg", "skirt", UNNAMED),
        Answer("c.csv", 2, A, "train/a.jpg", "dress", UNNAMED),
        Answer("c.csv", 3, "", "train/b.jpg", "skirt", UNNAMED),
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_of_every_spreadsheet(tmp_path: Path, separator: str, mark: bytes, end: str) -> None:
    text = end.join([separator.join(row) for row in (["image_id", "label", "annotator"], [A, "платье", "Zoë"], [B, '"two""lines"', "x"])]) + end
    (tmp_path / "A.CSV").write_bytes(mark + text.encode())
    assert read(Answers(tmp_path)) == [Answer("A.CSV", 2, A, "", "платье", "Zoë"), Answer("A.CSV", 3, B, "", 'two"lines', "x")]


def test_the_line_is_where_the_row_begins(tmp_path: Path) -> None:
    given = folder(tmp_path, a_csv=f'image_id,note,label\n{A},"one\ntwo\nthree",dress\n{B},x,skirt\n')
    assert [(answer.line, answer.label) for answer in read(given)] == [(2, "dress"), (5, "skirt")]


def test_short_rows_and_empty_cells_too_many_are_harmless(tmp_path: Path) -> None:
    given = folder(tmp_path, a_csv=f"image_id,label\n{A}\n{B},skirt,,\n")
    assert [answer.label for answer in read(given)] == [None, "skirt"]


def test_cells_that_were_guarded_come_back_as_they_were(tmp_path: Path) -> None:
    given = folder(tmp_path, a_csv="uri,label,annotator\n'=cmd.jpg,'-1,'@anna\n''+x.jpg,1,'tis\n")
    assert [(a.uri, a.label, a.annotator) for a in read(given)] == [("=cmd.jpg", "-1", "@anna"), ("'+x.jpg", "1", "'tis")]


def test_jsonl(tmp_path: Path) -> None:
    given = folder(
        tmp_path,
        a_jsonl=f'{{"image_id": "{A}", "label": "dress", "annotator": 7}}\r\n\n'
        '{"uri": "train/b.jpg", "label": null}\n'
        f'{{"uri": "x\u2028y", "label": "{SKIP}"}}',
    )
    assert read(given) == [
        Answer("a.jsonl", 1, A, "", "dress", "7"),
        Answer("a.jsonl", 3, "", "train/b.jpg", None, UNNAMED),
        Answer("a.jsonl", 4, "", "x\u2028y", SKIP, UNNAMED),
    ]


def annotation(label: str | None, by: object, **more: object) -> dict[str, object]:
    """One annotation as Label Studio exports it."""
    chosen = [{"value": {"choices": [label]}, "id": "Dx_aB91ISN", "from_name": "label", "to_name": "image", "type": "choices", "origin": "manual"}]
    return {
        "id": 11,
        "completed_by": by,
        "result": chosen if label else [],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-03-09T22:16:08.728353Z",
        "updated_at": "2026-03-09T22:16:08.728378Z",
        "draft_created_at": None,
        "lead_time": 4.288,
        "prediction": {},
        "result_count": 1,
        "unique_id": "5ab2e8ff-3f4d-4a42-8a5f-0b9f1c0e1a55",
        "task": 1,
        "project": 83,
        "parent_prediction": None,
        **more,
    }


def ls_task(number: int, image: str, annotations: list[dict[str, object]]) -> dict[str, object]:
    """One task as Label Studio exports it; its prediction must never count as an answer."""
    guess = {"result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["skirt"]}}], "model_version": "r001", "score": 0.9}
    return {
        "id": number,
        "annotations": annotations,
        "file_upload": "tasks.json",
        "drafts": [],
        "predictions": [guess],
        "data": {"image": f"https://host/{URI[image]}", "image_id": image, "uri": URI[image], "al_round": "r002", "al_rank": number},
        "meta": {},
        "created_at": "2026-03-09T21:52:49.513742Z",
        "updated_at": "2026-03-09T22:16:08.746926Z",
        "inner_id": number,
        "total_annotations": len(annotations),
        "cancelled_annotations": 0,
        "total_predictions": 1,
        "comment_count": 0,
        "project": 83,
        "updated_by": 1,
        "comment_authors": [],
    }


def test_label_studio_json(tmp_path: Path) -> None:
    anna = {"id": 1, "email": "anna@example.org", "first_name": "", "last_name": ""}
    items = [
        ls_task(1, A, [annotation("dress", 3), annotation("dress", anna)]),
        ls_task(2, B, [annotation(None, 3, was_cancelled=True)]),
        ls_task(3, C, [annotation(None, {"id": 4})]),
        ls_task(4, D, []),
    ]
    given = read(folder(tmp_path, project_json=json.dumps(items, indent=2)))
    assert given == [
        Answer("project.json", 1, A, URI[A], "dress", "3"),
        Answer("project.json", 1, A, URI[A], "dress", "anna@example.org"),
        Answer("project.json", 2, B, URI[B], SKIP, "3"),
        Answer("project.json", 3, C, URI[C], None, "4"),
        Answer("project.json", 4, D, URI[D], None, UNNAMED),
    ]
    checked = check(*given)
    assert checked.labels == {A: "dress"}
    assert checked.annotators == {A: ("3", "anna@example.org"), B: ("3",)}
    assert checked.skipped == (B,)
    assert checked.unanswered == (C, D)
    assert reasons(checked) == [(3, "no-answer"), (4, "no-answer")]


def test_label_studio_json_min(tmp_path: Path) -> None:
    shared = {"created_at": "2026-03-09T21:52:49Z", "updated_at": "2026-03-09T21:52:49Z", "lead_time": 2.1, "al_round": "r002", "al_rank": 0}
    items = [
        {"image": URI[A], "image_id": A, "uri": URI[A], "id": 1, "label": "dress", "annotator": 3, "annotation_id": 1, **shared},
        {"image": URI[B], "image_id": B, "uri": URI[B], "id": 2, "annotator": 3, "annotation_id": 2, **shared},
        {"image": URI[C], "image_id": C, "uri": URI[C], "id": 3, "label": {"choices": ["dress", "skirt"]}, "annotator": "a@b.c", "annotation_id": 3, **shared},
    ]
    given = read(folder(tmp_path, min_json=json.dumps(items)))
    assert [(a.line, a.label, a.annotator) for a in given] == [(1, "dress", "3"), (2, None, "3"), (3, "dress", "a@b.c"), (3, "skirt", "a@b.c")]
    assert reasons(check(*given)) == [(2, "no-answer"), (3, "conflict"), (3, "conflict")]


def test_label_studio_csv_with_several_choices_is_an_unknown_class(tmp_path: Path) -> None:
    cell = '"{""choices"": [""dress"", ""skirt""]}"'
    header = "annotation_id,annotator,created_at,id,image,image_id,label,lead_time,updated_at"
    given = read(folder(tmp_path, ls_csv=f"{header}\n1,3,now,1,x,{A},dress,1.2,now\n2,3,now,2,x,{B},{cell},1.2,now\n"))
    checked = check(*given)
    assert checked.labels == {A: "dress"}
    assert reasons(checked) == [(3, "unknown-class")]


def test_tasks_that_nobody_annotated_carry_no_answer_whatever_they_predict(tmp_path: Path) -> None:
    item = ls_task(1, A, [])
    del item["annotations"]
    assert [answer.label for answer in read(folder(tmp_path, tasks_json=json.dumps([item])))] == [None]


def test_an_answer_in_another_control_is_no_answer_and_says_so(tmp_path: Path) -> None:
    other = annotation("dress", 3)
    other["result"] = [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["dress"]}}]
    checked = check(*read(folder(tmp_path, p_json=json.dumps([ls_task(1, A, [other])]))), batch=(A,))
    assert reasons(checked) == [(1, "no-answer")]
    assert 'p.json:1 "" (answered in "kind", expected \'label\' as in labeling_config.xml)' in checked.summary()


def test_hidden_files_and_a_readme_are_passed_over(tmp_path: Path) -> None:
    given = folder(tmp_path, README_txt="read me", README_md="", **{".gitignore": "x"}, a_csv="image_id,label\n")
    assert read(given) == []


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    given = folder(
        tmp_path, b_csv=f"image_id,label\n{A},dress\n", a_jsonl=f'{{"image_id": "{A}", "label": "skirt"}}', c_json=f'[{{"image_id": "{A}", "label": "x"}}]'
    )
    assert [answer.source for answer in read(given)] == ["a.jsonl", "b.csv", "c.json"]


BAD_FILES = {
    "empty": ("a.csv", b"", "a.csv is empty; put the answers into it or take it out of the answers folder"),
    "a mark and nothing else": ("a.csv", b"\xef\xbb\xbf\r\n", "a.csv is empty"),
    "latin-1": ("a.csv", "image_id,label\nx,Rob\xe9\n".encode("latin-1"), "a.csv is not UTF-8: byte 0xe9 at position 20 (line 2); save it again as UTF-8"),
    "latin-1 after a mark": ("a.csv", b"\xef\xbb\xbfimage_id,label\nx,\xe9\n", "a.csv is not UTF-8: byte 0xe9 at position 20 (line 2)"),
    "utf-16": ("a.csv", "image_id,label\n".encode("utf-16"), "a.csv is not UTF-8: byte 0xff at position 0 (line 1)"),
    "no header": ("a.csv", f"{A},dress\n".encode(), f'a.csv has no header: its first line is "{A[:59]}…"; expected the columns image_id (or uri) and label'),
    "blank header": ("a.csv", b"\nimage_id,label\n", 'a.csv has no header: its first line is ""'),
    "no label column": (
        "a.csv",
        b"image_id,lable\nx,dress\n",
        'a.csv has no column label (its columns: "image_id", "lable"); is it "lable"?; expected the columns image_id (or uri) and label',
    ),
    "no image column": ("a.csv", b"label,annotator\n", 'a.csv has no column image_id or uri (its columns: "label", "annotator"); expected'),
    "label twice": ("a.csv", b"image_id,label,label\n", "a.csv has 2 columns 'label'; keep one"),
    "too many cells": ("a.csv", b"image_id,label\nx,dress\nx,a,dress\n", "a.csv:3 has 3 cells, the header has 2; put cells that hold ',' in double quotes"),
    "open quote": ("a.csv", b'image_id,label\nx,"dress\ny,skirt\n', "a.csv:2 is not CSV: unexpected end of data; correct the line"),
    "huge cell": ("a.csv", b"image_id,label\nx," + b"y" * 200_000, "a.csv:2 is not CSV: field larger than field limit (131072)"),
    "broken jsonl": (
        "a.jsonl",
        b'{"image_id": "x", "label": "y"}\n{"image_id": \n',
        "a.jsonl:2 is not JSON: Expecting value (column 14); correct it or export it again",
    ),
    "jsonl of texts": ("a.jsonl", b'"dress"\n', "a.jsonl:1 is text, expected an object with image_id (or uri) and label"),
    "jsonl without label": ("a.jsonl", b'{"image_id": "x", "lable": "y"}', "a.jsonl:1 has no label (its keys: image_id, lable); expected"),
    "jsonl with a number": ("a.jsonl", b'{"image_id": "x", "label": 3}', "a.jsonl:1: label is 3, a number; expected a class name in quotes, or null"),
    "jsonl with a true": ("a.jsonl", b'{"image_id": "x", "label": true}', "a.jsonl:1: label is true, true or false; expected"),
    "jsonl with a wrong id": ("a.jsonl", b'{"image_id": 3, "label": "x"}', "a.jsonl:1: image_id is 3, a number; expected text"),
    "jsonl with a wrong name": (
        "a.jsonl",
        b'{"uri": "u", "label": "x", "annotator": [1]}',
        "a.jsonl:1: the annotator is [1], a list; expected a name or a number",
    ),
    "half a surrogate": ("a.jsonl", b'{"uri": "u", "label": "\\ud800"}', "a.jsonl:1 is not usable JSON: 'utf-8' codec can't encode"),
    "nesting": ("a.json", b"[" * 200_000, "a.json:1 is not usable JSON: "),
    "broken json": ("a.json", b'[\n {"image_id": "x"\n', "a.json:3 is not JSON: Expecting ',' delimiter (column 1)"),
    "json object": ("a.json", b'{"image_id": "x", "label": "y"}', "a.json holds an object, expected a list: Label Studio's JSON or JSON-MIN export"),
    "json of numbers": ("a.json", b"[1]", "a.json:1 is a number, expected an object"),
    "annotations as numbers": ("a.json", b'[{"data": {}, "annotations": [5]}]', "a.json:1 is no Label Studio task: an annotation is a number"),
    "data as text": ("a.json", b'[{"data": "x"}]', "a.json:1 is no Label Studio task: data is text, annotations is a list; expected an object and a list"),
    "an object without choices": (
        "a.json",
        b'[{"image_id": "x", "label": {"choice": ["dress"]}}]',
        'a.json:1: label is {"choice": ["dress"]}, an object; expected a class name in quotes, or null',
    ),
    "a result of another kind": (
        "a.json",
        b'[{"data": {}, "annotations": [{"result": [{"from_name": "label", "value": {"text": ["dress"]}}]}]}]',
        'a.json:1: label is {"text": ["dress"]}, an object; expected',
    ),
    "result as text": ("a.json", b'[{"data": {}, "annotations": [{"result": "x"}]}]', "a.json:1: the result of an annotation is not a list of objects"),
    "unknown kind": ("a.xlsx", b"PK", "a.xlsx is of an unknown kind (.xlsx); answers are .csv, .jsonl or .json files; take it out of the answers folder"),
    "no ending": ("answers", b"x", "answers is of an unknown kind (no ending)"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AnswersError) as error:
        read(Answers(tmp_path))
    assert message in str(error.value)


@pytest.mark.parametrize("name", [b"caf\xe9.csv", b"\x1b[31mevil.csv", b"caf\xe9"])
def test_a_name_that_no_table_can_hold_is_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    try:
        path.write_text(f"image_id,label\n{A},no such class\n")
    except OSError:
        pytest.skip("this file system keeps names in UTF-8")
    shown = os.fsdecode(name).encode("unicode_escape").decode()
    with pytest.raises(AnswersError) as error:
        read(Answers(tmp_path))
    assert str(error.value) == f'the name of "{shown}" in the answers folder holds control characters or is not valid Unicode; rename it'


def test_a_folder_within_is_refused(tmp_path: Path) -> None:
    (tmp_path / "more.csv").mkdir()
    with pytest.raises(AnswersError, match=r"more\.csv is a folder; answers are"):
        read(Answers(tmp_path))


# ---- spreadsheets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n", "  =1", "\uff1d1", "'=1", '=HYPERLINK("http://x","y")'])
def test_a_guarded_cell_begins_like_no_formula(cell: str) -> None:
    assert guard(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "train/a.jpg", "'tis", "0.5", "a=b", "t-shirt", "платье"])
def test_other_cells_stay_as_they_are(cell: str) -> None:
    assert guard(cell) == cell


def test_unguard_is_the_inverse_and_guarding_keeps_cells_apart() -> None:
    cells = ["".join(letters) for size in range(5) for letters in itertools.product("'=-@ \tx", repeat=size)]
    guarded = [guard(cell) for cell in cells]
    assert [unguard(cell) for cell in guarded] == cells
    assert len(set(guarded)) == len(cells)


# ---- rows ----------------------------------------------------------------------------------------------------------------


def test_each_reason_and_what_people_are_told() -> None:
    checked = check(
        said("0" * 64, "dress", line=2),
        said(A[:-1], "dress", line=3),
        said("", "dress", line=4, uri="nowhere.jpg"),
        said("", "dress", line=5),
        said(OLD, "dress", line=6),
        said(OTHER, "dress", line=7),
        said(A, "dres", line=8),
        said(A, " Dress", line=9),
        said(A, "hat", line=10),
        said(B, "dress", line=11),
        said(B, "dress", line=12),
        said(C, "dress", line=13),
        said(C, "skirt", line=14, by="ben"),
        said(D, None, line=15),
        said(A, "skirt", line=16, uri=URI[B]),
    )
    assert reasons(checked) == [
        (2, "unknown-id"),
        (3, "unknown-id"),
        (4, "unknown-id"),
        (5, "unknown-id"),
        (6, "not-in-batch"),
        (7, "not-in-batch"),
        (8, "unknown-class"),
        (9, "unknown-class"),
        (10, "unknown-class"),
        (12, "duplicate"),
        (13, "conflict"),
        (14, "conflict"),
        (15, "no-answer"),
        (16, "unknown-id"),
    ]
    assert checked.labels == {B: "dress"}
    assert checked.unanswered == (A, C, D)
    short = A[:59] + "…"
    assert checked.summary() == "\n".join(
        [
            "1 of 4 answered; missing: al_rank 0, 2, 3",
            f'  5 unknown id: a.csv:2 "{"0" * 59}…", a.csv:3 "{short}", a.csv:4 "nowhere.jpg", a.csv:5 "" (names no image) and 1 more',
            f'  2 not in batch: a.csv:6 "{OLD[:59]}…" (known since r001), a.csv:7 "{OTHER[:59]}…"',
            '  3 unknown class: a.csv:8 "dres" (did you mean "dress"?), a.csv:9 " Dress" (did you mean "dress"?), a.csv:10 "hat"',
            '  2 conflict: a.csv:13 "dress", a.csv:14 "skirt"',
            '  1 duplicate: a.csv:12 "dress" (as a.csv:11)',
        ]
    )
    table = checked.table.frame
    assert len(table) == 14
    assert table.loc[table["line"] == 4, "id"].item() == "nowhere.jpg"
    assert table.loc[table["line"] == 14, ["answer", "annotator", "reason"]].to_numpy().tolist() == [["skirt", "ben", "conflict"]]
    assert table.loc[table["line"] == 15, "answer"].isna().all()


def test_an_image_is_found_by_each_of_its_uris() -> None:
    assert check(said("", "dress", uri="copy/train/ц.jpg")).labels == {C: "dress"}


def test_cells_sorted_apart_are_not_believed() -> None:
    """In a spreadsheet one column is easily sorted without the others."""
    checked = check(said(A, "dress", uri="copy/train/b.jpg"), said(B, "skirt", uri="https://host/elsewhere.jpg"))
    assert checked.labels == {B: "skirt"}
    assert checked.rejects[0].note == 'image_id and uri name different images: "copy/train/b.jpg"'


def test_agreement_of_several_annotators_is_one_label() -> None:
    checked = check(said(A, "dress", by="zoe"), said(A, "dress", by="ben"))
    assert (checked.labels, checked.annotators, checked.rejects) == ({A: "dress"}, {A: ("ben", "zoe")}, ())


def test_one_annotator_who_changes_the_answer_is_a_conflict_with_all_rows_kept() -> None:
    checked = check(said(A, "dress", line=2), said(A, "skirt", line=3), said(A, "dress", line=4), said(A, SKIP, line=5))
    assert checked.labels == {}
    assert reasons(checked) == [(2, "conflict"), (3, "conflict"), (4, "conflict"), (5, "conflict")]


def test_a_skip_counts_only_where_nobody_gives_a_label() -> None:
    checked = check(said(A, SKIP, by="anna", line=2), said(A, "dress", by="ben", line=3), said(B, SKIP, by="anna", line=4), said(B, SKIP, by="ben", line=5))
    assert checked.labels == {A: "dress"}
    assert checked.skipped == (B,)
    assert checked.annotators == {A: ("ben",), B: ("anna", "ben")}
    assert reasons(checked) == [(2, "no-answer")]
    assert '1 no answer: a.csv:2 "__skip__" (skipped here, labelled "dress" elsewhere)' in checked.summary()


def test_two_people_who_share_a_batch_each_leave_the_others_rows_empty() -> None:
    checked = check(
        said(A, "dress", source="a.csv"), said(B, None, source="a.csv"), said(A, None, source="b.csv"), said(B, "skirt", source="b.csv"), batch=(A, B)
    )
    assert checked.labels == {A: "dress", B: "skirt"}
    assert checked.rejects == ()
    assert checked.summary() == "2 of 2 answered"


def test_skips_are_answers() -> None:
    checked = check(said(A, SKIP), said(B, "dress"), batch=(A, B))
    assert checked.answered == 2
    assert checked.summary() == "2 of 2 answered (1 of them skipped)"


def test_no_answers_at_all() -> None:
    checked = check()
    assert (checked.answered, checked.summary()) == (0, "0 of 4 answered")
    assert checked.table.frame.empty


@pytest.mark.parametrize(
    ("answered", "share", "enough"), [(7, 0.07, True), (29, 0.29, True), (57, 0.57, True), (57, 0.58, False), (100, 1.0, True), (99, 1.0, False)]
)
def test_enough_is_exact_for_every_hundredth(answered: int, share: float, enough: bool) -> None:
    ids = tuple(f"{number:064}" for number in range(100))
    checked = Checked(ids, ("x",), dict.fromkeys(ids[:answered], "x"), (), ids[answered:], {}, ())
    assert checked.enough(share) is enough


def verdicts(rows: list[Answer], batch: list[str]) -> tuple[dict[str, str], list[str]]:
    """The rules once more, image by image and without the code under test: verdict by image, and a reason for each rejected row."""
    outcome: dict[str, str] = {}
    why: list[str] = []
    usable = [row for row in rows if row.id in batch and (row.label is None or row.label in [*CLASSES, SKIP])]
    why += ["unknown-id" for row in rows if row.id not in URI]
    why += ["not-in-batch" for row in rows if row.id in URI and row.id not in batch]
    why += ["unknown-class" for row in rows if row.id in batch and row not in usable]
    for image in batch:
        mine = [row for row in usable if row.id == image]
        pairs = [(row.annotator, row.label) for row in mine if row.label]
        classes = {label for _, label in pairs if label != SKIP}
        if len(classes) >= 2:
            why += ["conflict"] * len(pairs)
        elif not pairs:
            why += ["no-answer"] * len(mine)
        else:
            outcome[image] = answer = str(classes.pop()) if classes else SKIP
            fitting = [pair for pair in pairs if pair[1] == answer]
            why += ["duplicate"] * (len(fitting) - len(set(fitting))) + ["no-answer"] * (len(pairs) - len(fitting))
    return outcome, sorted(why)


def test_random_answers_against_the_rules_written_out() -> None:
    rng = random.Random(3)
    batch = [A, B, C]
    for _ in range(300):
        images, labels = [A, B, C, OLD, "0" * 64], [None, SKIP, "dress", "dress", "skirt", "Dress"]
        rows = [said(rng.choice(images), rng.choice(labels), by=rng.choice("xyz"), line=line) for line in range(rng.randrange(12))]
        checked = check(*rows, batch=(A, B, C))
        outcome, why = verdicts(rows, batch)
        assert {**checked.labels, **dict.fromkeys(checked.skipped, SKIP)} == outcome
        assert sorted(reject.reason for reject in checked.rejects) == why
        assert sorted([*checked.labels, *checked.skipped, *checked.unanswered]) == batch
        lost = len(rows) - len(checked.rejects) - sum(map(len, checked.annotators.values()))
        assert lost == sum(row.label is None and row.id in batch and any(r.id == row.id and r.label in [*CLASSES, SKIP] for r in rows) for row in rows)
        assert len(checked.table) == len(checked.rejects)


# ---- classes and words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "classes is empty; list the answers people may give in params.yaml, classes: [...]"),
        ([], "classes is empty"),
        (["a", "b", "a"], 'classes: "a" is there 2 times; give every class one name of its own'),
        (["a", ""], 'classes: "" is empty; give'),
        (["a", SKIP], 'classes: "__skip__" is reserved: __skip__ says that an image cannot be labelled; give'),
        (["a", "b\x07"], 'classes: "b\\x07" holds a control character; rename the class'),
    ],
)
def test_classes_that_nobody_can_be_asked_about(classes: list[str] | None, message: str) -> None:
    with pytest.raises(ParamsError) as error:
        check_classes(classes)
    assert message in str(error.value)


def test_classes_of_any_script_are_fine() -> None:
    names = ["платье", "👩\u200d🔧", "a & b", '"<x>"', " with space ", "=1"]
    assert check_classes(names) == names
