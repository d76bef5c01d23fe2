import json
from pathlib import Path

import pytest

from tasks.artifacts import Answers, Known, Manifest, PreviousLabels, Selection, StartLabels
from tasks.errors import AnswersError, ArtifactError, ParamsError
from tasks.import_labels import Imported, import_labels
from tasks.params import ImportLabels, Params
from tasks.stage import Run, find

A, B, C, D, OLD, TEST = (letter * 64 for letter in "abcdef")
CLASSES = ["dress", "skirt", "hat"]


def manifest(ids: list[str]) -> Manifest:
    fixed = {"split": "train", "shard": "s.tar", "offset": 0, "length": 1, "width": 1, "height": 1, "format": "PNG"}
    return Manifest.of([{"id": image, "uri": f"{image[:1]}.png", "uris": [f"{image[:1]}.png"], **fixed} for image in ids])


def selection(ids: list[str], control: int = 0) -> Selection:
    arms = ["acquired"] * (len(ids) - control) + ["control"] * control
    fixed = {"score": None, "reason": "", "prediction": None, "confidence": None}
    return Selection.of([{"rank": rank, "id": image, "arm": arm, **fixed} for rank, (image, arm) in enumerate(zip(ids, arms, strict=True))])


def previous() -> PreviousLabels:
    return PreviousLabels.of(
        [
            {"id": TEST, "label": "hat", "round": "p001", "annotator": "source", "arm": "source"},
            {"id": OLD, "label": None, "round": "r001", "annotator": "ben", "arm": "control"},
        ]
    )


def run(seed: int = 7, name: str = "r002", classes: list[str] | None = None) -> Run:
    return Run(name, seed, Path("nowhere"), Params(classes=classes or CLASSES))


def bring(path: Path, params: ImportLabels, batch: Selection | None = None) -> Imported:
    return import_labels(
        batch or selection([D, B, A, C], control=2), manifest([A, B, C, D, OLD, TEST]), previous(), StartLabels.of([]), Answers(path), params, run()
    )


def test_answers_of_two_people_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "anna.csv").write_text(f"image_id,label,annotator\n{A},dress,anna\n{B},__skip__,anna\n{OLD},hat,anna\n{D},платье,anna\n", "utf-8")
    (tmp_path / "ben.jsonl").write_text(json.dumps({"image_id": A, "label": "dress", "annotator": "ben"}) + "\n", "utf-8")
    done = bring(tmp_path, ImportLabels(min_answered=0.5))
    assert done.labels.frame.astype(object).where(done.labels.frame.notna(), None).to_numpy().tolist() == [
        [A, "dress", "r002", "anna, ben", "control"],
        [B, None, "r002", "anna", "acquired"],
        [OLD, None, "r001", "ben", "control"],
        [TEST, "hat", "p001", "source", "source"],
    ]
    assert done.rejects.frame.to_numpy().tolist() == [
        ["anna.csv", 4, OLD, "hat", "anna", "not-in-batch"],
        ["anna.csv", 5, D, "платье", "anna", "unknown-class"],
    ]
    assert done.report.model_dump() == {
        "labeller": "files",
        "batch": 4,
        "labelled": 1,
        "skipped": 1,
        "unanswered": 2,
        "rejected": {"not-in-batch": 1, "unknown-class": 1},
        "by_class": {"dress": 1, "skirt": 0, "hat": 0},
        "by_annotator": {"anna": 2, "ben": 1},
    }
    assert capsys.readouterr().err == (
        "import-labels: 1 of 4 images labelled, 1 skipped, 2 unanswered; not used, see rejects.parquet: 1 not-in-batch, 1 unknown-class\n"
    )


def test_too_few_answers_do_not_become_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"image_id,label\n{A},dress\n{B},dres\n", "utf-8")
    with pytest.raises(AnswersError) as error:
        bring(tmp_path, ImportLabels(min_answered=0.5))
    assert str(error.value) == (
        "1 of 4 answered; missing: al_rank 0, 1, 3\n"
        '  1 unknown class: a.csv:3 "dres" (did you mean "dress"?)\n'
        "import-labels.min_answered is 0.5; answer the others in answers/r002/, or lower it in rounds/r002/params.yaml"
    )


def test_no_answers_are_enough_where_none_are_asked_for(tmp_path: Path) -> None:
    done = bring(tmp_path, ImportLabels(min_answered=0.0))
    assert done.labels.table.equals(previous().table)
    assert (done.report.unanswered, done.report.by_annotator, len(done.rejects)) == (4, {}, 0)


def test_a_pick_that_was_known_before_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"selection\.parquet asks about 1 images that were known before, first eee.*; run acquire again"):
        bring(tmp_path, ImportLabels(min_answered=0.0), selection([A, OLD]))


def test_an_unreadable_file_stops_the_stage(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f"image_id,label\n{A},dress\n".encode("utf-16"))
    with pytest.raises(AnswersError, match=r"a\.csv is not UTF-8: byte 0xff at position 0"):
        bring(tmp_path, ImportLabels(min_answered=0.0))


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    answers.mkdir()
    (answers / "a.csv").write_text(f"image_id,label,annotator\n{A},dress,anna\n{A},dress,anna\n{C},skirt,Zoë\n{D},nope,x\n", "utf-8")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        done = bring(answers, ImportLabels(min_answered=0.1))
        done.labels.save(tmp_path / name / "labels")
        done.rejects.save(tmp_path / name / "rejects")
        done.report.save(tmp_path / name / "report")
    assert len(list((tmp_path / "one").iterdir())) == 3
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_what_the_stage_reads_and_writes() -> None:
    entry = find("import-labels").dvc()
    assert entry["deps"] == ["${here}/selection.parquet", "${pool}/manifest.parquet", "${previous}/labels.parquet", "${pool}/labels.parquet", "${answers}"]
    assert entry["params"] == ["import-labels", "code", "round", "classes"]
    assert entry["outs"] == ["${here}/labels.parquet", "${here}/rejects.parquet", {"${here}/import.json": {"cache": False}}]


# ---- the oracle ----------------------------------------------------------------------------------------------------------


def known(path: Path, labels: dict[str, str]) -> Path:
    Known.of([{"id": image, "label": label} for image, label in labels.items()]).save(path / "known.parquet")
    return path / "known.parquet"


def labels_of(done: Imported) -> dict[str, str]:
    frame = done.labels.frame
    frame = frame[frame["round"] == "r002"]
    return dict(zip(frame["id"], frame["label"], strict=True))


def test_the_oracle_answers_what_the_source_knows(tmp_path: Path) -> None:
    path = known(tmp_path, {A: "dress", B: "hat", C: "gown", OLD: "hat"})
    done = bring(path, ImportLabels(labeller="oracle", min_answered=0.5))
    assert labels_of(done) == {A: "dress", B: "hat"}
    assert set(done.labels.frame.query("round == 'r002'")["annotator"]) == {"oracle"}
    assert done.rejects.frame.to_numpy().tolist() == [["known.parquet", 4, C, "gown", "oracle", "unknown-class"]]
    assert (done.report.labeller, done.report.labelled, done.report.unanswered) == ("oracle", 2, 2)


def test_an_oracle_that_knows_too_little(tmp_path: Path) -> None:
    path = known(tmp_path, {A: "dress", B: "hat", C: "gown"})
    with pytest.raises(AnswersError) as error:
        bring(path, ImportLabels(labeller="oracle"))
    assert str(error.value) == (
        "2 of 4 answered; missing: al_rank 0, 3\n"
        '  1 unknown class: known.parquet:4 "gown"\n'
        "import-labels.min_answered is 1, and the source has no label among `classes` for the others; "
        "lower it and `rondo open --again`, or have people answer (labeller: files)"
    )


def noisy(tmp_path: Path, noise: float, seed: int, truth: dict[str, str], name: str = "r002") -> dict[str, str]:
    params = ImportLabels(labeller="oracle", noise=noise, min_answered=0.0)
    ids = [f"{number:064x}" for number in range(4000)]
    done = import_labels(selection(ids), manifest(ids), PreviousLabels.of([]), StartLabels.of([]), Answers(known(tmp_path, truth)), params, run(seed, name))
    return dict(zip(done.labels.frame["id"], done.labels.frame["label"], strict=True))


def test_noise_has_its_rate_and_never_gives_the_same_class(tmp_path: Path) -> None:
    truth = {f"{number:064x}": CLASSES[number % 3] for number in range(4000)}
    given = noisy(tmp_path, 0.25, 7, truth)
    wrong = [(truth[image], label) for image, label in given.items() if label != truth[image]]
    assert len(given) == 4000
    assert abs(len(wrong) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5  # five standard deviations
    pairs = {(a, b): wrong.count((a, b)) for a in CLASSES for b in CLASSES if a != b}
    assert sum(pairs.values()) == len(wrong)
    assert all(abs(count - len(wrong) / 6) < 5 * (len(wrong) / 6) ** 0.5 for count in pairs.values())


def test_noise_of_one_makes_every_answer_wrong_and_none_makes_none(tmp_path: Path) -> None:
    truth = {f"{number:064x}": CLASSES[number % 3] for number in range(4000)}
    assert not [image for image, label in noisy(tmp_path, 1.0, 7, truth).items() if label == truth[image]]
    assert noisy(tmp_path, 0.0, 7, truth) == truth


def test_noise_depends_on_seed_and_round_and_on_no_other_answer(tmp_path: Path) -> None:
    truth = {f"{number:064x}": CLASSES[number % 3] for number in range(4000)}
    base = noisy(tmp_path, 0.5, 7, truth)
    assert noisy(tmp_path, 0.5, 7, truth) == base
    assert noisy(tmp_path, 0.5, 8, truth) != base
    assert noisy(tmp_path, 0.5, 7, truth, name="r003") != base
    half = dict(list(truth.items())[::2])
    assert noisy(tmp_path, 0.5, 7, half) == {image: base[image] for image in half}


def test_noise_needs_another_class(tmp_path: Path) -> None:
    path, params = known(tmp_path, {A: "dress"}), ImportLabels(labeller="oracle", noise=0.1)
    with pytest.raises(ParamsError, match=r"import-labels\.noise is 0\.1 but there is only one class, 'dress'; set it to 0 or name more classes"):
        import_labels(selection([A]), manifest([A]), PreviousLabels.of([]), StartLabels.of([]), Answers(path), params, run(classes=["dress"]))


def test_what_a_newer_pools_source_carries_is_joined_and_older_answers_stand(tmp_path: Path) -> None:
    (tmp_path / "anna.csv").write_text(f"image_id,label,annotator\n{A},hat,anna\n", "utf-8")
    row = {"round": "p002", "annotator": "source", "arm": "source"}
    start = StartLabels.of([{"id": C, "label": "dress", **row}, {"id": TEST, "label": "dress", **row}])
    done = import_labels(selection([A]), manifest([A, B, C, D, OLD, TEST]), previous(), start, Answers(tmp_path), ImportLabels(), run())
    rows = done.labels.frame.set_index("id")[["label", "round"]]
    assert list(rows.loc[C]) == ["dress", "p002"]  # new with the pool
    assert list(rows.loc[TEST]) == ["hat", "p001"]  # known before the pool
    assert list(rows.loc[A]) == ["hat", "r002"]
