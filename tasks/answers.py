"""People's answers: read from the files that tools and spreadsheets give back, then checked row by row against what was asked.

A file that cannot be read as a whole is an error; a row that cannot be used is set aside with its reason. Nothing is repaired: not the case of
a class, not a space around it, not an image id with a digit missing.

Formats, all UTF-8:
    .csv    header `image_id` or `uri`, `label`, and if wanted `annotator`; separated by `,`, `;` or tab. A filled-in `batch.csv` is one.
    .jsonl  one object a line with the same keys.
    .json   Label Studio's JSON or JSON-MIN export, or a list of objects with the same keys.
An empty label is no answer yet; `__skip__` says that the image cannot be labelled, as Label Studio's skip button does.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts import Answers, Labels, Manifest, Rejects, Selection
from tasks.errors import AnswersError, ParamsError
from tasks.spreadsheets import separator, unguard
from tasks.wording import quoted, quoted_path, some

SKIP = "__skip__"
CONTROL = "label"  # name of the choices in Label Studio's configuration, and of the column in files
UNNAMED = "unnamed"  # annotator of an answer that names none
SHOWN = 4  # examples of each kind in a summary

UNUSABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # control characters, and what no file in UTF-8 can hold


def check_classes(classes: Sequence[str] | None) -> Sequence[str]:
    """The classes, if people can be asked about them.

    Raises:
        ParamsError: there are none, or one of them is empty, twice there, reserved, or holds a character that a file of tasks cannot.
    """
    if not classes:
        raise ParamsError("classes is empty; list the answers people may give in params.yaml, classes: [...]")
    for name, times in Counter(classes).items():
        if times > 1 or name in ("", SKIP):
            problem = f"is there {times} times" if times > 1 else "is empty" if not name else f"is reserved: {SKIP} says that an image cannot be labelled"
            raise ParamsError(f"classes: {quoted(name)} {problem}; give every class one name of its own")
        if UNUSABLE.search(name):
            raise ParamsError(f"classes: {quoted(name)} holds a control character; rename the class")
    return classes


# ---- reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One answer as it was given."""

    source: str  # file in the answers folder
    line: int  # of the file, or position in its list, from 1
    id: str  # image id as given; "" where only the uri was
    uri: str  # as given; "" where only the id was
    label: str | None  # as given; SKIP: cannot be labelled; None: no answer
    annotator: str
    note: str = ""  # what else a person should know

    @property
    def ref(self) -> str:
        """What names the image."""
        return self.id or self.uri


def read(answers: Answers) -> list[Answer]:
    """Every answer of the folder's .csv, .jsonl and .json files, in the order of file names and of lines. Hidden files and a README are passed over.

    Raises:
        AnswersError: a file that cannot be read as a whole, naming it and the line or byte, or whose name no table can hold.
    """
    readers = {".csv": read_csv, ".jsonl": read_jsonl, ".json": read_json}
    found: list[Answer] = []
    if not answers.path.is_dir():
        raise AnswersError(f"{answers.path} is no folder of answers; with import-labels.labeller: files, `answers` must name one")
    for path in sorted(answers.path.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.name.upper() in ("README", "README.TXT", "README.MD"):
            continue
        if UNUSABLE.search(path.name):
            raise AnswersError(f"the name of {quoted_path(path.name)} in the answers folder holds control characters or is not valid Unicode; rename it")
        reader = readers.get(path.suffix.lower())
        if reader is None or not path.is_file():
            kind = "a folder" if path.is_dir() else f"of an unknown kind ({path.suffix or 'no ending'})"
            raise AnswersError(f"{path.name} is {kind}; answers are .csv, .jsonl or .json files; take it out of the answers folder")
        found += reader(path.name, text_of(path))
    return found


def text_of(path: Path) -> str:
    """The file as text, without a byte order mark."""
    content = path.read_bytes()
    if not content.removeprefix(b"\xef\xbb\xbf").strip():
        raise AnswersError(f"{path.name} is empty; put the answers into it or take it out of the answers folder")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise AnswersError(
            f"{path.name} is not UTF-8: byte 0x{content[error.start]:02x} at position {error.start} (line {line}); save it again as UTF-8"
        ) from error


def read_csv(name: str, text: str) -> Iterator[Answer]:
    """The rows of a CSV file with a header."""
    first = text.splitlines()[0]
    between = separator(first)
    rows = csv_rows(name, text, between)
    header = next(rows)[1]
    check_header(name, header, first)
    for line, cells in rows:
        if any(cells[len(header) :]):
            raise AnswersError(f"{name}:{line} has {len(cells)} cells, the header has {len(header)}; put cells that hold {between!r} in double quotes")
        row = dict(zip(header, map(unguard, cells), strict=False))
        yield Answer(name, line, row.get("image_id", ""), row.get("uri", ""), row.get(CONTROL) or None, row.get("annotator") or UNNAMED)


def csv_rows(name: str, text: str, between: str) -> Iterator[tuple[int, list[str]]]:
    """Line on which each row begins, and its cells; the header comes even when it is blank, other blank lines do not."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells or line == 1:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise AnswersError(f"{name}:{line} is not CSV: {error}; correct the line") from error


def check_header(name: str, header: Sequence[str], first: str) -> None:
    """Raise unless the columns say which image and which answer."""
    expected = "expected the columns image_id (or uri) and label"
    if not {"image_id", "uri", CONTROL} & set(header):
        raise AnswersError(f"{name} has no header: its first line is {quoted(first)}; {expected}")
    if CONTROL not in header or not {"image_id", "uri"} & set(header):
        missing = CONTROL if CONTROL not in header else "image_id or uri"
        near = difflib.get_close_matches(missing, header, n=1)
        hint = f"; is it {quoted(near[0])}?" if near else ""
        raise AnswersError(f"{name} has no column {missing} (its columns: {', '.join(map(quoted, header))}){hint}; {expected}")
    for column in ("image_id", "uri", CONTROL, "annotator"):
        if header.count(column) > 1:
            raise AnswersError(f"{name} has {header.count(column)} columns {column!r}; keep one")


def read_jsonl(name: str, text: str) -> Iterator[Answer]:
    """The objects of a file with one a line; blank lines are passed over."""
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield from record(name, line, parsed(name, content, line))


def read_json(name: str, text: str) -> Iterator[Answer]:
    """The tasks of a Label Studio export, or the objects of a plain list."""
    items = parsed(name, text)
    if not isinstance(items, list):
        raise AnswersError(f"{name} holds {kind_of(items)}, expected a list: Label Studio's JSON or JSON-MIN export, or objects with image_id and label")
    for position, item in enumerate(items, start=1):
        if isinstance(item, dict) and "data" in item:
            yield from task(name, position, item)
        else:
            yield from record(name, position, item)


def parsed(name: str, content: str, line: int = 1) -> object:
    """The JSON value in a text that begins on that line of the file."""
    try:
        value: object = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is legal JSON but no text
    except json.JSONDecodeError as error:
        raise AnswersError(f"{name}:{line + error.lineno - 1} is not JSON: {error.msg} (column {error.colno}); correct it or export it again") from error
    except (ValueError, RecursionError) as error:
        raise AnswersError(f"{name}:{line} is not usable JSON: {error}; correct it or export it again") from error
    return value


def record(name: str, line: int, item: object) -> Iterator[Answer]:
    """The answers of one flat object: a line of JSONL, or one annotation of a JSON-MIN export."""
    where = f"{name}:{line}"
    if not isinstance(item, dict):
        raise AnswersError(f"{where} is {kind_of(item)}, expected an object with image_id (or uri) and label")
    if CONTROL not in item and "annotation_id" not in item:  # JSON-MIN leaves the key out where nothing was chosen
        raise AnswersError(f"{where} has no label (its keys: {', '.join(item)}); expected image_id (or uri) and label; null says no answer")
    image, uri = text_in(where, item, "image_id"), text_in(where, item, "uri")
    annotator = who(where, item.get("annotator"))
    labels: Sequence[str | None] = choices(where, item.get(CONTROL)) or [None]
    for label in labels:
        yield Answer(name, line, image, uri, label, annotator)


def task(name: str, position: int, item: Mapping[str, object]) -> Iterator[Answer]:
    """The answers of one task of a Label Studio export: one for each annotation, whose predictions are no answers."""
    where = f"{name}:{position}"
    data = item["data"]
    annotations = item.get("annotations", [])
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise AnswersError(f"{where} is no Label Studio task: data is {kind_of(data)}, annotations is {kind_of(annotations)}; expected an object and a list")
    image = text_in(where, data, "image_id")
    uri = text_in(where, data, "uri") or ("" if image else text_in(where, data, "image"))
    for annotation in annotations or [{}]:
        if not isinstance(annotation, dict):
            raise AnswersError(f"{where} is no Label Studio task: an annotation is {kind_of(annotation)}; export it as JSON with annotations")
        labels, note = annotated(where, annotation)
        for label in labels:
            yield Answer(name, position, image, uri, label, who(where, annotation.get("completed_by")), note)


def annotated(where: str, annotation: Mapping[str, object]) -> tuple[Sequence[str | None], str]:
    """Classes chosen in one Label Studio annotation, None alone for none, and a note where its answer lies in another control than ours."""
    if annotation.get("was_cancelled"):
        return [SKIP], ""
    results = annotation.get("result") or []
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise AnswersError(f"{where}: the result of an annotation is not a list of objects; export it again")
    ours = [result for result in results if result.get("from_name") == CONTROL]
    others = sorted({str(result["from_name"]) for result in results if result.get("from_name") not in (None, CONTROL)})
    note = f"answered in {', '.join(map(quoted, others))}, expected {CONTROL!r} as in labeling_config.xml" if others and not ours else ""
    return [label for result in ours for label in choices(where, result.get("value"))] or [None], note


def choices(where: str, value: object) -> list[str]:
    """The labels in a text, a list, or Label Studio's {"choices": [...]}; none in null and in an empty text."""
    labels: list[str] = []
    for each in value if isinstance(value, list) else [value]:
        inner = each.get("choices", each) if isinstance(each, dict) else each
        for label in inner if isinstance(inner, list) else [inner]:
            if label is not None and not isinstance(label, str):
                raise AnswersError(f"{where}: label is {json.dumps(label)[:80]}, {kind_of(label)}; expected a class name in quotes, or null")
            labels += [label] if label else []
    return labels


def text_in(where: str, item: Mapping[str, object], key: str) -> str:
    """A text of an object; "" where it has none."""
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise AnswersError(f"{where}: {key} is {json.dumps(value)[:80]}, {kind_of(value)}; expected text")
    return value or ""


def who(where: str, value: object) -> str:
    """The annotator: a name or number as given, or the email (else the number) of a Label Studio user."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    if value is None or value == "":
        return UNNAMED
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise AnswersError(f"{where}: the annotator is {json.dumps(value)[:80]}, {kind_of(value)}; expected a name or a number")
    return str(value)


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return words[type(value)]


# ---- checking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reject:
    """An answer that did not become a label, and why."""

    answer: Answer
    reason: str  # unknown-id | not-in-batch | unknown-class | duplicate | conflict | no-answer
    note: str = ""


@dataclass(frozen=True)
class Checked:
    """What the answers say about the batch. Every image of it is in exactly one of `labels`, `skipped` and `unanswered`."""

    batch: tuple[str, ...]  # image ids asked about, by rank
    classes: tuple[str, ...]
    labels: Mapping[str, str]  # class by image id
    skipped: tuple[str, ...]  # image ids of which people said that they cannot be labelled
    unanswered: tuple[str, ...]  # image ids
    annotators: Mapping[str, tuple[str, ...]]  # by image id, labelled or skipped: who gave the answer that counts, sorted
    rejects: tuple[Reject, ...]  # by file and line

    @property
    def answered(self) -> int:
        """Images with a label or skipped."""
        return len(self.labels) + len(self.skipped)

    def enough(self, share: float) -> bool:
        """Whether that share of the batch is answered."""
        return not self.batch or self.answered / len(self.batch) >= share

    @property
    def table(self) -> Rejects:
        """The rejected answers as an artifact."""
        rows = [(each.answer, each.reason) for each in self.rejects]
        return Rejects.of(
            [{"source": a.source, "line": a.line, "id": a.ref, "answer": a.label, "annotator": a.annotator, "reason": reason} for a, reason in rows]
        )

    def summary(self) -> str:
        """What came, what is missing and what could not be used, for people; a line for each kind of problem."""
        skipped = f" ({len(self.skipped)} of them skipped)" if self.skipped else ""
        lines = [f"{self.answered} of {len(self.batch)} answered{skipped}"]
        if 0 < self.answered < len(self.batch):
            missing = set(self.unanswered)
            lines[0] += "; missing: al_rank " + some([rank for rank, image in enumerate(self.batch) if image in missing], 10)
        for reason in ("unknown-id", "not-in-batch", "unknown-class", "conflict", "duplicate", "no-answer"):
            found = [each for each in self.rejects if each.reason == reason and (reason != "no-answer" or each.note)]
            if found:
                lines.append(f"  {len(found)} {reason.replace('-', ' ')}: " + some(found, SHOWN, self.place))
        return "\n".join(lines)

    def place(self, reject: Reject) -> str:
        """Where one rejected answer stands and what it says."""
        answer = reject.answer
        said = quoted(answer.ref) if reject.reason in ("unknown-id", "not-in-batch") else quoted(answer.label or "")
        near = nearest(answer.label or "", self.classes) if reject.reason == "unknown-class" else None
        remark = f"did you mean {quoted(near)}?" if near else reject.note
        return f"{answer.source}:{answer.line} {said}" + (f" ({remark})" if remark else "")


def validate(answers: Sequence[Answer], selection: Selection, manifest: Manifest, previous: Labels, classes: Sequence[str]) -> Checked:
    """The answers that can be used, and the others with their reasons. Pure: no file is touched.

    An image counts as labelled when everyone who labelled it agrees; when they do not, all its answers are rejected as a conflict and it counts as
    unanswered. A skip counts only where nobody gave a label (tools pass a skipped task on to the next person). The same answer again by the same
    annotator is a duplicate. A row without an answer is rejected as no-answer, unless another row answers its image.

    Raises:
        ParamsError: the classes cannot be asked about.
    """
    check_classes(classes)
    batch: list[str] = selection.table.sort_by("rank")["id"].to_pylist()
    given: dict[str, list[Answer]] = {image: [] for image in batch}
    rejects: list[Reject] = []
    elsewhere: list[tuple[str, Answer]] = []
    allowed = {None, SKIP, *classes}
    known, owners = lookup(answers, manifest)
    for answer in answers:
        image = answer.id or owners.get(answer.uri, "")
        if image not in known:
            rejects.append(Reject(answer, "unknown-id", "" if answer.ref else "names no image"))
        elif owners.get(answer.uri, image) != image:
            rejects.append(Reject(answer, "unknown-id", f"image_id and uri name different images: {quoted(answer.uri)}"))
        elif image not in given:
            elsewhere.append((image, answer))
        elif answer.label not in allowed:
            rejects.append(Reject(answer, "unknown-class"))
        else:
            given[image].append(answer)
    earlier = rounds_of({image for image, _ in elsewhere}, previous)
    rejects += [Reject(answer, "not-in-batch", f"known since {earlier[image]}" if image in earlier else "") for image, answer in elsewhere]

    settled = {image: settle(rows) for image, rows in given.items()}
    kept = {image: accepted for image, (accepted, _) in settled.items() if accepted}
    rejects += [reject for _, refused in settled.values() for reject in refused]
    order = {answer: row for row, answer in enumerate(answers)}
    return Checked(
        batch=tuple(batch),
        classes=tuple(classes),
        labels={image: str(rows[0].label) for image, rows in kept.items() if rows[0].label != SKIP},
        skipped=tuple(image for image, rows in kept.items() if rows[0].label == SKIP),
        unanswered=tuple(image for image in batch if image not in kept),
        annotators={image: tuple(sorted(row.annotator for row in rows)) for image, rows in kept.items()},
        rejects=tuple(sorted(rejects, key=lambda reject: order[reject.answer])),
    )


def settle(rows: Sequence[Answer]) -> tuple[list[Answer], list[Reject]]:
    """The answers that count for one image, one an annotator, all the same; and the others."""
    said = [row for row in rows if row.label is not None]
    labels = {row.label for row in said} - {SKIP}
    if len(labels) > 1:
        return [], [Reject(row, "conflict") for row in said]
    if not said:
        return [], [Reject(row, "no-answer", row.note) for row in rows]
    verdict = next(iter(labels), SKIP)
    counted: dict[str, Answer] = {}
    refused: list[Reject] = []
    for row in said:
        if row.label != verdict:
            refused.append(Reject(row, "no-answer", f"skipped here, labelled {quoted(str(verdict))} elsewhere"))
        elif row.annotator in counted:
            first = counted[row.annotator]
            refused.append(Reject(row, "duplicate", f"as {first.source}:{first.line}"))
        else:
            counted[row.annotator] = row
    return list(counted.values()), refused


def lookup(answers: Sequence[Answer], manifest: Manifest) -> tuple[set[str], dict[str, str]]:
    """Of the images that the answers name: the ids that the pool has, and the id that each uri belongs to."""
    ids = manifest.table["id"].combine_chunks()
    uris = manifest.table["uris"].combine_chunks()
    flat, row = pc.list_flatten(uris), pc.list_parent_indices(uris)
    named = pc.is_in(flat, value_set=pa.array(sorted({answer.uri for answer in answers}), pa.string()))
    owners: dict[str, str] = dict(zip(flat.filter(named).to_pylist(), ids.take(row.filter(named)).to_pylist(), strict=True))
    wanted = pa.array(sorted({answer.id for answer in answers} | set(owners.values())), pa.string())
    return set(ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist()), owners


def rounds_of(images: set[str], previous: Labels) -> dict[str, str]:
    """The round or pool that each of these images has been known since."""
    rows = previous.table.filter(pc.is_in(previous.table["id"], value_set=pa.array(sorted(images), pa.string())))
    return dict(zip(rows["id"].to_pylist(), rows["round"].to_pylist(), strict=True))


def nearest(label: str, classes: Sequence[str]) -> str | None:
    """The class that was probably meant, if one is near."""
    same = [name for name in classes if name.strip().casefold() == label.strip().casefold()]
    return next(iter(same or difflib.get_close_matches(label[:200], classes, n=1)), None)
