"""The report against the files it is made from: rounds are made up of real digits, saved through the artifacts' own classes."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tasks import environment, git
from tasks.acquire import acquire
from tasks.artifacts import (
    AcquireReport,
    Estimate,
    ImportReport,
    Known,
    Labels,
    Manifest,
    Metrics,
    Predictions,
    PreviousLabels,
    Selection,
    StartLabels,
)
from tasks.errors import ArtifactError, WorkspaceError
from tasks.params import Params
from tasks.report import pool_map, write_report
from tasks.report.balance import count_classes
from tasks.report.charts import Layer, Mark, Series, bars, decimals, intervals, matrix, scatter, ticks
from tasks.report.facts import candidates, change, gather
from tasks.report.markup import Html, element
from tasks.report.picks import thumbnail
from tasks.report.pool_map import plane, sample
from tasks.report.provenance import in_bytes
from tasks.signals import Signals
from tasks.stage import BEFORE_ANSWERS, ROUND_STAGES, Run
from tasks.workspace import Workspace

CLASSES = [str(digit) for digit in range(10)]


# ---- made-up rounds over real digits -------------------------------------------------------------------------------------


@dataclass
class Fabric:
    """A workspace with a pool of digits, to which rounds are added."""

    root: Path
    classes: list[str] = field(default_factory=lambda: list(CLASSES))
    test: float = 0.2
    control: float = 0.1
    labeller: str = "oracle"
    images: int = 400
    skipped: int = 0  # of each round's first picks, people say that they cannot be labelled
    fit: float = 0.001
    known: bool = True  # the source's labels cover the pool

    def __post_init__(self) -> None:
        digits = load_digits()
        self.truth = np.array([self.classes[label] for label in digits.target[: self.images]], dtype=object)
        pixels = ((digits.images[: self.images] * 255 + 8) // 16).astype(np.uint8)
        encoded = [png(image) for image in pixels]
        ids = np.array([hashlib.sha256(data).hexdigest() for data in encoded])
        order = np.argsort(ids)
        self.ids, self.truth, self.encoded = ids[order], self.truth[order], [encoded[i] for i in order]
        self.embeddings = digits.data[: self.images][order].astype(np.float32)
        self.split = np.where(np.arange(self.images) < self.test * self.images, "test", "train")
        (self.root / ".dvc").mkdir(parents=True)
        (self.root / "params.yaml").write_text(Params().dump(), "utf-8")
        git.git(self.root, "init", "--quiet")
        git.commit(self.root, ["params.yaml"], "Begin")
        self.pool()

    def pool(self) -> None:
        folder = self.root / "pools" / "p001"
        (folder / "shards").mkdir(parents=True)
        buffer = io.BytesIO()
        offsets = []
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in zip(self.ids, self.encoded, strict=True):
                info = tarfile.TarInfo(f"{name}.png")
                info.size = len(data)
                offsets.append(tar.offset + 512)
                tar.addfile(info, io.BytesIO(data))
        (folder / "shards" / "00000.tar").write_bytes(buffer.getvalue())
        uris = [f"digits/{label}/{row:04}.png" for row, label in enumerate(self.truth)]
        manifest = {
            "id": self.ids, "uri": uris, "uris": [[uri] for uri in uris], "split": self.split, "shard": ["00000.tar"] * self.images,
            "offset": offsets, "length": [len(data) for data in self.encoded], "width": [8] * self.images, "height": [8] * self.images,
            "format": ["PNG"] * self.images,
        }  # fmt: skip
        Manifest.of(manifest).save(folder / "manifest.parquet")
        rows = np.arange(self.images) if self.known else np.flatnonzero(self.split == "test")
        Known.of({"id": self.ids[rows], "label": self.truth[rows]}).save(folder / "known.parquet")
        self.labels = self.label_rows(np.flatnonzero(self.split == "test"), "p001", ["source"] * int((self.split == "test").sum()))
        Labels.of(self.labels).save(folder / "labels.parquet")
        params = Params().model_copy(update={"round": "p001", "pool": ".", "previous": None, "here": ".", "classes": None})
        (folder / "params.yaml").write_text(params.dump(), "utf-8")
        for stage, seconds in (("ingest", 1.25), ("pretrain", 60.5)):
            environment.record(folder, stage, seconds)

    def label_rows(self, rows: Sequence[int] | npt.NDArray[np.int64], round: str, arms: Sequence[str]) -> pd.DataFrame:
        who = ["source" if arm == "source" else "oracle" for arm in arms]
        return pd.DataFrame({"id": self.ids[rows], "label": self.truth[rows], "round": round, "annotator": who, "arm": arms})

    def round(self, name: str, *, budget: int = 50, stages: Sequence[str] = ROUND_STAGES, method: str = "margin") -> Path:
        """The folder of a round whose stages up to the last of `stages` have run, with a real model trained on pixels."""
        folder = self.root / "rounds" / name
        folder.mkdir(parents=True)
        number = int(name[1:])
        last = f"r{number - 1:03}" if number > 1 else None
        params = Params.check(
            {
                "round": name,
                "pool": "../../pools/p001",
                "previous": f"../{last}" if last else "../../pools/p001",
                "model": f"../{last}/model.safetensors" if last else "../../pools/p001/encoder.safetensors",
                "here": ".",
                "answers": "../../pools/p001/known.parquet" if self.labeller == "oracle" else f"../../answers/{name}",
                "classes": self.classes,
                "acquire": {"method": {"name": method if last else "random"}, "budget": budget, "control": self.control},
                "import-labels": {"labeller": self.labeller},
                "code": "0.1.0+abcdef1234",
            },
            "made up",
        )
        (folder / "params.yaml").write_text(params.dump(), "utf-8")
        if "embed" in stages:
            (folder / "signals").mkdir()
            np.save(folder / "signals" / "ids.npy", self.ids.astype("S64"))
            np.save(folder / "signals" / "embeddings.npy", self.embeddings)
            (folder / "signals" / "signals.json").write_text(json.dumps({"classes": None, "encoder": "0" * 64}), "utf-8")
        if "acquire" in stages:
            self.acquire(folder, name, budget, method if last else "random")
        if "export" in stages:
            (folder / "batch").mkdir()
            (folder / "batch" / "README.txt").write_text("label these", "utf-8")
        if "import-labels" in stages:
            answers = self.label_rows(self.picked, name, self.arms).astype({"label": object})
            answers.loc[: self.skipped - 1, "label"] = None
            self.labels = pd.concat([self.labels, answers], ignore_index=True)
            Labels.of(self.labels).save(folder / "labels.parquet")
            counts = pd.Series(self.truth[self.picked]).value_counts()
            ImportReport(
                labeller=self.labeller, batch=budget, labelled=budget - self.skipped, skipped=self.skipped, unanswered=0, rejected={},
                by_class={c: int(counts.get(c, 0)) for c in self.classes}, by_annotator={"oracle": budget},
            ).save(folder / "import.json")  # fmt: skip
        if "retrain" in stages:
            self.retrain(folder, name)
        self.lock(folder, params, stages)
        for seconds, stage in enumerate(stages, 1):
            environment.record(folder, stage, 0.5 * seconds)
        return folder

    def acquire(self, folder: Path, name: str, budget: int, method: str) -> None:
        free = np.flatnonzero((self.split == "train") & ~np.isin(self.ids, self.labels["id"]))
        drawn = np.random.default_rng(int(name[1:])).permutation(free)
        num_control = round(self.control * budget)
        control, rest = drawn[:num_control], drawn[num_control:]
        if self.model is None:
            rows = rest[: budget - num_control]
            score: list[float | None] = [None] * len(rows)
        else:
            top = np.sort(self.model.predict_proba(self.embeddings[rest]), axis=1)
            gap = top[:, -1] - top[:, -2]
            best = np.argsort(gap, kind="stable")[: budget - num_control]
            rows, score = rest[best], gap[best].tolist()
        self.picked = np.concatenate([rows, control])
        self.arms = ["acquired"] * len(rows) + ["control"] * num_control
        predictions, confidences = self.expect(self.picked)
        table = {
            "rank": np.arange(len(self.picked), dtype=np.int32), "id": self.ids[self.picked], "score": score + [None] * num_control, "arm": self.arms,
            "reason": [f"{method}: made up"] * len(rows) + ["drawn uniformly at random"] * num_control, "prediction": predictions, "confidence": confidences,
        }  # fmt: skip
        Selection.of(table).save(folder / "selection.parquet")
        direction = "gap between the two most probable classes, 0 to 1; lower = less sure, picked first" if self.model else "none: drawn at random"
        AcquireReport(
            method={"name": method}, direction=direction, budget=budget, acquired=len(rows), control=num_control, unlabelled=len(free),
            labelled=int((self.labels["arm"] != "source").sum()), info={},
        ).save(folder / "acquire.json")  # fmt: skip

    model: LogisticRegression | None = None

    def expect(self, rows: npt.NDArray[np.int64]) -> tuple[list[str | None], list[float | None]]:
        if self.model is None or len(rows) == 0:
            return [None] * len(rows), [None] * len(rows)
        probabilities = self.model.predict_proba(self.embeddings[rows])
        return list(self.model.classes_[probabilities.argmax(1)]), [float(p) for p in probabilities.max(1)]

    def retrain(self, folder: Path, name: str) -> None:
        before = [
            e == t for e, t, arm in zip(self.expect(self.picked)[0], self.truth[self.picked], self.arms, strict=True) if arm == "control" and e is not None
        ]
        train = np.flatnonzero((self.split == "train") & np.isin(self.ids, self.labels.dropna()["id"]))
        self.model = LogisticRegression(C=self.fit, max_iter=500).fit(self.embeddings[train], self.truth[train].astype(str))
        predictions, confidences = self.expect(np.arange(self.images))
        right = np.asarray(predictions, dtype=object) == self.truth
        test = self.split == "test"
        recall = {c: wilson(right[test & (self.truth == c)]) for c in self.classes}
        some = bool(test.any())
        Metrics(
            labels=len(train), accuracy=wilson(right[test]), control_accuracy=wilson(np.asarray(before, dtype=bool)),
            nll=Estimate(value=0.4321, low=0.4, high=0.5, n=9) if some else None,
            ece=Estimate(value=0.0567, low=0.04, high=0.07, n=9) if some else None, recall=recall, train_accuracy=float(right[train].mean()),
        ).save(folder / "metrics.json")  # fmt: skip
        Predictions.of({"id": self.ids, "prediction": predictions, "confidence": confidences, "margin": confidences}).save(folder / "predictions.parquet")

    def lock(self, folder: Path, params: Params, stages: Sequence[str]) -> None:
        """`dvc.lock` as DVC writes it, for the files that there are."""
        files = {
            "embed": (["../../pools/p001/manifest.parquet"], []),
            "acquire": (["../../pools/p001/manifest.parquet", f"{params.previous}/labels.parquet"], ["selection.parquet", "acquire.json"]),
            "export": (["selection.parquet"], []),
            "import-labels": (["selection.parquet"], ["labels.parquet", "import.json"]),
            "retrain": (["labels.parquet"], ["metrics.json", "predictions.parquet"]),
        }
        content = {
            stage: {
                "cmd": f"python -m tasks {stage}",
                "deps": [hashed(folder, p) for p in files[stage][0]],
                "outs": [hashed(folder, p) for p in files[stage][1]],
            }
            for stage in stages
        }
        (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": content}), "utf-8")

    def close(self, name: str) -> None:
        git.tag(self.root, f"round-{name}", name)

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def hashed(folder: Path, path: str) -> dict[str, object]:
    data = (folder / path).read_bytes()
    return {"path": path, "hash": "md5", "md5": hashlib.md5(data).hexdigest(), "size": len(data)}


def wilson(right: npt.NDArray[np.bool_]) -> Estimate | None:
    n = len(right)
    if n == 0:
        return None
    p, z = float(right.mean()), 1.959964
    centre, reach = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(value=p, low=max(0.0, centre - reach), high=min(1.0, centre + reach), n=n)


# ---- reading the page ----------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """An element of the page."""

    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str = "", kind: str = "") -> list[Node]:
        """Elements below of that tag that carry that class."""
        return [node for node in self.walk() if (not tag or node.tag == tag) and (not kind or kind in node.attributes.get("class", "").split())]

    def one(self, tag: str = "", kind: str = "") -> Node:
        (found,) = self.all(tag, kind)
        return found

    @property
    def text(self) -> str:
        """What is read, the titles of hovering and the style sheet left out."""
        parts = [child if isinstance(child, str) else "" if child.tag in ("title", "style") else child.text for child in self.children]
        return "".join(parts).replace("\xa0", " ")


class Reader(html.parser.HTMLParser):
    """HTML to nodes; an element that is closed out of turn is an error."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in ("meta", "img"):
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(path: Path) -> Node:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is never closed"
    return reader.open[0]


def part(page: Node, title: str) -> Node:
    """The section of that heading."""
    (found,) = [node for node in page.all("section") if node.all("h2")[0].text == title]
    return found


def titles(page: Node) -> list[str]:
    return [node.text for node in page.all("h2")]


def rows(node: Node) -> list[list[str]]:
    return [[cell.text for cell in line.all("td")] for line in node.all("tr") if line.all("td")]


def percent(estimate: Estimate | None) -> str:
    assert estimate is not None
    return f"{round(100 * estimate.value, 1)} [{round(100 * estimate.low, 1)}, {round(100 * estimate.high, 1)}]"


ALWAYS = ["Stage times", "What went in and what came out", "Parameters"]
WHOLE = ["Accuracy over labels", "Picks", "Class balance of the picks", "Map of the pool", "Test split by class", *ALWAYS]


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Fabric:
    """Two closed rounds and one that waits for labels."""
    made = Fabric(tmp_path_factory.mktemp("report") / "digits", skipped=1)
    for name in ("r001", "r002"):
        made.round(name)
        made.close(name)
    made.labeller = "files"
    made.round("r003", stages=BEFORE_ANSWERS)
    return made


@pytest.fixture(scope="module")
def page(fabric: Fabric) -> Node:
    """The report of the second round."""
    return read(write_report(fabric.workspace, "r002"))


def metrics(fabric: Fabric, name: str) -> Metrics:
    return Metrics.load(fabric.root / "rounds" / name / "metrics.json")


# ---- the numbers ---------------------------------------------------------------------------------------------------------


def test_the_headline_says_what_the_files_say(fabric: Fabric, page: Node) -> None:
    m = metrics(fabric, "r002")
    labels = Labels.load(fabric.root / "rounds/r002/labels.parquet").frame
    lines = [node.text for node in page.one(kind="headline").all("p")]
    assert m.accuracy is not None and m.control_accuracy is not None
    total = int((labels["arm"] != "source").sum())
    assert total == 100
    assert lines[0] == f"{total} labels bought, {int((labels['round'] == 'r002').sum())} of them in this round (2 say: cannot be labelled)."
    assert lines[1].startswith(f"Accuracy {percent(m.accuracy).replace(' ', '% ', 1)} on the test split ({m.accuracy.n} images), ")
    assert (
        lines[2]
        == f"The previous model (r001) scored {percent(m.control_accuracy).replace(' ', '% ', 1)} on this round's control arm (5 images drawn at random)."
    )
    assert page.one("h1").text == "digits r002"
    assert page.one("dl", "about").text == "stateclosedmethodmarginpoolp001"


def test_the_change_is_counted_on_the_same_test_images(fabric: Fabric, page: Node) -> None:
    actual = dict(zip(fabric.ids, fabric.truth, strict=True))
    of = {name: dict(Predictions.load(fabric.root / f"rounds/{name}/predictions.parquet").frame[["id", "prediction"]].to_numpy()) for name in ("r001", "r002")}
    test = [image for image, split in zip(fabric.ids, fabric.split, strict=True) if split == "test"]
    gained = sum(of["r001"][i] != actual[i] == of["r002"][i] for i in test)
    lost = sum(of["r002"][i] != actual[i] == of["r001"][i] for i in test)
    assert gained > 0
    n = len(test)
    # Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data"
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = 1.96 * ((p12 + p21 - (p12 - p21) ** 2) / (n + 2)) ** 0.5
    low, high = 100 * (p12 - p21 - reach), 100 * (p12 - p21 + reach)
    first, second = metrics(fabric, "r001").accuracy, metrics(fabric, "r002").accuracy
    assert first and second
    assert 100 * (second.value - first.value) == pytest.approx(100 * (gained - lost) / n)
    text = f"{100 * (gained - lost) / n:+.1f} points [{low:+.1f}, {high:+.1f}] since r001: {gained} image{'s' * (gained != 1)} newly right, {lost} newly wrong"
    assert text in page.one(kind="headline").text


def test_the_curve_has_each_round_at_its_labels_and_the_control_arm_at_the_labels_of_the_model_it_measures(fabric: Fabric, page: Node) -> None:
    section = part(page, "Accuracy over labels")
    first, second = metrics(fabric, "r001"), metrics(fabric, "r002")
    assert rows(section) == [
        ["r001", "random", "49", percent(first.accuracy), "-"],
        ["r002", "margin", "98", percent(second.accuracy), percent(second.control_accuracy)],
    ]
    marks = ["".join(str(child) for child in node.children) for node in section.all("title")]
    assert len(marks) == 3
    assert marks[0].startswith("r001, test split: ") and marks[0].endswith(" of 80 images; 49 labels")
    assert marks[1].endswith("; 98 labels")
    assert marks[2].startswith("r001 on r002's control arm, control arm: ") and marks[2].endswith(" of 5 images; 49 labels")


def test_the_contact_sheet_shows_every_pick_with_its_score_its_expectation_and_its_answer(fabric: Fabric, page: Node) -> None:
    selection = Selection.load(fabric.root / "rounds/r002/selection.parquet").frame
    answer = Labels.load(fabric.root / "rounds/r002/labels.parquet").frame.set_index("id")["label"]
    tiles = part(page, "Picks").all("figure", "tile")
    assert len(tiles) == len(selection) == 50
    picture = dict(zip(fabric.ids, fabric.encoded, strict=True))
    for tile, pick in zip(tiles, selection.sort_values("rank").to_dict("records"), strict=True):
        lines = [node.text for node in tile.all("span", "line")]
        assert lines[0] == f"#{pick['rank']}" + ("control" if pick["arm"] == "control" else f"{pick['score']:.3g}")
        assert lines[1] == f"model {pick['prediction']}{pick['confidence']:.2f}"
        label = answer[pick["id"]] if pd.notna(answer[pick["id"]]) else None
        assert lines[2].strip() == (label or "cannot be labelled")
        assert [node.attributes["aria-label"] for node in tile.all("svg", "mark")] == (
            [] if label is None else ["right" if label == pick["prediction"] else "wrong"]
        )
        assert pick["arm"] in tile.attributes["class"].split()
        data = base64.b64decode(tile.one("img").attributes["src"].removeprefix("data:image/png;base64,"))
        shown, source = (np.asarray(Image.open(io.BytesIO(each)).convert("L")) for each in (data, picture[pick["id"]]))
        assert np.array_equal(shown, source)  # tiny images are shown as they are
    joined = selection.assign(label=selection["id"].map(answer)).dropna(subset=["label"])
    agreed = joined[joined["prediction"] == joined["label"]].groupby("arm").size()
    headings = [node.text for node in part(page, "Picks").all("h3")]
    assert headings[0].startswith(f"Acquired by the method: 45 images the model in use was right about {agreed.get('acquired', 0)} of 44 ")
    assert headings[1].startswith(f"Control arm: 5 images the model in use was right about {agreed.get('control', 0)} of 5 ")


def test_of_many_picks_the_first_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "many", control=0.25)
    fabric.round("r001", budget=200)
    sheet = part(read(write_report(fabric.workspace, "r001")), "Picks")
    assert [len(sheet.all("figure", arm)) for arm in ("acquired", "control")] == [120, 40]
    assert [node.text for node in sheet.all("p", "more")] == ["and 30 more, in selection.parquet", "and 10 more, in selection.parquet"]
    assert [len(node.all("figure")) for node in sheet.all("details")] == [75]


def test_large_images_become_small_jpegs() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 900, 3)).astype(np.uint8)
    made = thumbnail(Image.fromarray(noise))
    data = base64.b64decode(made.split("base64,")[1].split('"')[0])
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", (128, 57))
    assert 'class="tiny"' not in made


def test_class_balance_counts_answers_against_the_sources_labels(fabric: Fabric, page: Node) -> None:
    labels = Labels.load(fabric.root / "rounds/r002/labels.parquet").frame
    before = Labels.load(fabric.root / "rounds/r001/labels.parquet").frame
    free = [t for i, t, s in zip(fabric.ids, fabric.truth, fabric.split, strict=True) if s == "train" and i not in set(before["id"])]
    assert len(free) == 270
    mine = labels[labels["round"] == "r002"].dropna()
    expected = []
    for name in CLASSES:
        of = [[t for t, arm in zip(mine["label"], mine["arm"], strict=True) if arm == kind] for kind in ("acquired", "control")] + [free]
        expected.append([name, "", *(f"{values.count(name)} ({values.count(name) / len(values):.1%})" for values in of)])
    section = part(page, "Class balance of the picks")
    assert rows(section) == expected
    assert "Pool: the 270 images that could have been picked, by the labels that the source carries." in section.one("p", "lead").text


def test_class_balance_falls_back_on_predictions_and_says_so(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "unknown", images=200, known=False)
    fabric.round("r001", budget=30)
    fabric.round("r002", budget=30, stages=BEFORE_ANSWERS)
    first, second = (count_classes(gather(fabric.workspace, name)) for name in ("r001", "r002"))
    assert first and second
    assert (first.picks, first.pool) == ("the answers", "the 160 images that could have been picked, as the model of r001 predicts them")
    assert second.picks == "what the model in use expects, as long as there are no answers"
    assert second.pool == "the 130 images that could have been picked, as the model of r001 predicts them"
    predicted = Predictions.load(fabric.root / "rounds/r001/predictions.parquet").frame
    train = set(fabric.ids[fabric.split == "train"])
    assert first.counts["pool"].to_dict() == {name: int((predicted[predicted["id"].isin(train)]["prediction"] == name).sum()) for name in CLASSES}


def test_the_confusion_matrix_and_recall_are_those_of_the_test_split(fabric: Fabric, page: Node) -> None:
    section, m = part(page, "Test split by class"), metrics(fabric, "r002")
    predicted = dict(Predictions.load(fabric.root / "rounds/r002/predictions.parquet").frame[["id", "prediction"]].to_numpy())
    pairs = Counter((t, predicted[i]) for i, t, s in zip(fabric.ids, fabric.truth, fabric.split, strict=True) if s == "test")
    cells = ["".join(str(child) for child in node.children) for node in section.all("title")]
    found = {(match[1], match[2]): int(match[3]) for cell in cells if (match := re.fullmatch(r"(\d) read as (\d): (\d+) \(\d+% of \d\)", cell))}
    assert found == dict(pairs)
    assert m.accuracy is not None
    right = sum(count for (actual, expected), count in found.items() if actual == expected)
    assert right / sum(found.values()) == pytest.approx(m.accuracy.value)
    assert section.one("p", "lead").text.startswith(f"{right} of 80 images right. Most often confused: ")
    assert rows(section) == [[name, "", percent(m.recall[name]), str(e.n)] for name in CLASSES if (e := m.recall[name])]


def test_of_more_than_fifty_classes_the_worst_confusions_are_listed(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "many", images=300, test=0.5, classes=[f"class {i:02}" for i in range(60)])
    fabric.round("r001", budget=60)
    section = part(read(write_report(fabric.workspace, "r001")), "Test split by class")
    assert not section.all("svg", "matrix")
    predicted = dict(Predictions.load(fabric.root / "rounds/r001/predictions.parquet").frame[["id", "prediction"]].to_numpy())
    pairs = Counter((t, predicted[i]) for i, t, s in zip(fabric.ids, fabric.truth, fabric.split, strict=True) if s == "test" and t != predicted[i])
    listed = [row for row in rows(section) if len(row) == 4 and row[3].endswith("%")]
    assert 1 < len(listed) <= 20
    assert [int(row[2]) for row in listed] == sorted(pairs.values(), reverse=True)[: len(listed)]
    assert all(pairs[row[0], row[1]] == int(row[2]) for row in listed)


def test_the_map_holds_every_train_image_once(fabric: Fabric, page: Node) -> None:
    section = part(page, "Map of the pool")
    assert [node.text for node in section.one("ul", "legend").all("li")] == [
        " unlabelled (220)",
        " labelled before this round (50)",
        " picked by the method (45)",
        " control arm, drawn at random (5)",
    ]
    drawn = section.one("svg", "map")
    assert [node.attributes["d"].count("M") for node in drawn.all("path", "dots")] == [220, 50]
    assert [len(drawn.all(kind=f"{arm}")) for arm in ("acquired", "control")] == [45, 5]


def test_a_map_that_has_no_room_for_all_picks_says_so(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_map, "MOST", 100)

    def lead() -> str:
        return part(read(write_report(fabric.workspace, "r002")), "Map of the pool").one("p", "lead").text

    assert "100 images of the pool's 320 train images: the picks, and others drawn at random." in lead()
    monkeypatch.setattr(pool_map, "MOST_PICKS", 20)
    assert "100 images of the pool's 320 train images: the first 20 picks, and others drawn at random." in lead()


def test_times_and_hashes_are_those_of_the_files(fabric: Fabric, page: Node) -> None:
    stages = json.loads((fabric.root / "rounds/r002/environment.json").read_text("utf-8"))["stages"]
    expected = [["r002", name, "", f"{stages[name]['seconds']:.1f}"] for name in ROUND_STAGES] + [
        ["p001", "ingest", "", "1.2"],
        ["p001", "pretrain", "", "60.5"],
    ]
    assert rows(part(page, "Stage times")) == expected
    assert f"took {sum(stage['seconds'] for stage in stages.values()):.1f} s" in part(page, "Stage times").one("p", "lead").text
    lock = yaml.safe_load((fabric.root / "rounds/r002/dvc.lock").read_text("utf-8"))["stages"]
    entries = {(path_of("r002", entry["path"]), entry["md5"]) for stage in lock.values() for entry in stage["deps"] + stage["outs"]}
    section = part(page, "What went in and what came out")
    shown = [tuple(row[-3:-1]) for row in rows(section)]
    assert set(shown) == entries and len(shown) == len(entries) == 8
    assert hashlib.sha256((fabric.root / "rounds/r002/params.yaml").read_bytes()).hexdigest() in section.text
    assert "Rondo 0.1.0+abcdef1234" in section.text
    assert part(page, "Parameters").one("pre").text == (fabric.root / "rounds/r002/params.yaml").read_text("utf-8")


def path_of(name: str, path: str) -> str:
    return path.replace("../../", "") if path.startswith("../../") else path.replace("../", "rounds/") if path.startswith("../") else f"rounds/{name}/{path}"


# ---- states --------------------------------------------------------------------------------------------------------------


def test_a_whole_round_has_all_parts(page: Node) -> None:
    assert titles(page) == WHOLE


def test_a_round_that_waits_for_labels(fabric: Fabric) -> None:
    page = read(write_report(fabric.workspace, "r003"))
    assert "stateawaiting labels" in page.one("dl", "about").text
    assert [node.text for node in page.one(kind="headline").all("p")] == [
        "100 labels bought (2 say: cannot be labelled). 50 images picked (45 acquired, 5 control) and not yet labelled.",
        "This round's model is not trained yet.",
    ]
    assert titles(page) == [title for title in WHOLE if title != "Test split by class"]
    assert not page.all("svg", "right") and not page.all("span", "wrong") and not page.all("dl", "figures")
    assert rows(part(page, "Accuracy over labels"))[-1] == ["r003", "margin", "", "", ""]


def test_answers_that_cannot_be_read_do_not_hinder_the_report(fabric: Fabric) -> None:
    folder = fabric.root / "answers" / "r003"
    folder.mkdir(parents=True)
    (folder / "answers.csv").write_bytes(b"\xff\xfe\x00 not a table")
    try:
        assert gather(fabric.workspace, "r003").state == "unreadable answers"
    finally:
        shutil.rmtree(fabric.root / "answers")


def test_a_round_that_is_only_open(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "new", images=100)
    fabric.round("r001", stages=())
    page = read(write_report(fabric.workspace, "r001"))
    assert titles(page) == ALWAYS
    assert [node.text for node in page.one(kind="headline").all("p")] == [
        "0 labels bought. Nothing is picked yet in this round.",
        "This round's model is not trained yet.",
    ]
    assert "stateopen, before embed" in page.one("dl", "about").text


def test_a_first_round_has_no_model_to_have_expected_anything(fabric: Fabric) -> None:
    page = read(write_report(fabric.workspace, "r001"))
    assert titles(page) == WHOLE
    assert (
        page.one(kind="headline").all("p")[2].text == "The control arm measures nothing in this round: no model had looked at it before its labels were known."
    )
    assert not part(page, "Picks").all("svg", "mark")
    assert (
        part(page, "Picks").one("p", "lead").text
        == "Under each picture: rank; the answer. Of 50 images asked about: 49 labelled, 1 cannot be labelled (labeller: oracle)."
    )


def test_a_control_arm_that_nobody_could_label_had_a_model_that_looked_at_it(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "skipped", images=200, control=0.5)
    for name in ("r001", "r002"):
        fabric.round(name, budget=20)
    folder = fabric.root / "rounds/r002"
    labels = Labels.load(folder / "labels.parquet").frame.astype({"label": object})
    labels.loc[(labels["round"] == "r002") & (labels["arm"] == "control"), "label"] = None
    Labels.of(labels).save(folder / "labels.parquet")
    metrics(fabric, "r002").model_copy(update={"control_accuracy": None}).save(folder / "metrics.json")
    lines = [node.text for node in read(write_report(fabric.workspace, "r002")).one(kind="headline").all("p")]
    assert lines[2] == "The control arm measures nothing in this round: none of its images has got a label."


def test_what_a_newer_pools_source_carries_was_known_before_as_acquire_knew_it(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "newer", images=200)
    fabric.round("r001", budget=20)
    fabric.round("r002", budget=20, stages=("embed",))
    pool, folder = fabric.root / "pools/p002", fabric.root / "rounds/r002"
    shutil.copytree(fabric.root / "pools/p001", pool)
    train = np.flatnonzero((fabric.split == "train") & ~np.isin(fabric.ids, fabric.labels["id"]))[:15]
    carried = fabric.label_rows(train, "p002", ["source"] * len(train))
    Labels.of(pd.concat([Labels.load(pool / "labels.parquet").frame, carried])).save(pool / "labels.parquet")
    frozen = (folder / "params.yaml").read_text("utf-8").replace("pool: ../../pools/p001", "pool: ../../pools/p002").replace("name: margin", "name: random")
    (folder / "params.yaml").write_text(frozen, "utf-8")
    (tmp_path / "scratch").mkdir()
    params = Params.load(folder / "params.yaml")
    made = acquire(
        Signals.load(folder / "signals"), Manifest.load(pool / "manifest.parquet"), PreviousLabels.load(fabric.root / "rounds/r001/labels.parquet"),
        StartLabels.load(pool / "labels.parquet"), params.acquire, Run("r002", params.seed, tmp_path / "scratch", params),
    )  # fmt: skip
    made.selection.save(folder / "selection.parquet")
    made.report.save(folder / "acquire.json")
    facts = gather(fabric.workspace, "r002")
    assert len(candidates(facts)) == made.report.unlabelled == 160 - 20 - 15
    page = read(write_report(fabric.workspace, "r002"))
    assert page.one(kind="headline").all("p")[0].text.startswith("20 labels bought")
    assert " labelled before this round (35)" in [node.text for node in part(page, "Map of the pool").one("ul", "legend").all("li")]


def test_without_a_test_split_and_without_a_control_arm(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "blind", images=150, test=0.0, control=0.0)
    fabric.round("r001", budget=30)
    page = read(write_report(fabric.workspace, "r001"))
    assert "There is neither a test split nor a control arm: nothing measures this model." in page.one(kind="headline").text
    assert titles(page) == ["Picks", "Class balance of the picks", "Map of the pool", *ALWAYS]
    assert "statecomplete" in page.one("dl", "about").text


def test_without_a_test_split_the_control_arm_measures(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "untested", images=200, test=0.0, control=0.4)
    for name in ("r001", "r002"):
        fabric.round(name, budget=40)
    page = read(write_report(fabric.workspace, "r002"))
    lines = [node.text for node in page.one(kind="headline").all("p")]
    assert lines[1] == "There is no test split, so accuracy is known from the control arms alone."
    assert lines[2].startswith("The previous model (r001) scored ")
    assert len(part(page, "Accuracy over labels").all("title")) == 1
    assert "Test split by class" not in titles(page)


def test_another_pool_has_another_test_split(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "pools", images=200)
    for name in ("r001", "r002"):
        fabric.round(name, budget=30)
    shutil.copytree(fabric.root / "pools/p001", fabric.root / "pools/p002")
    frozen = fabric.root / "rounds/r002/params.yaml"
    frozen.write_text(frozen.read_text("utf-8").replace("pool: ../../pools/p001", "pool: ../../pools/p002"), "utf-8")
    page = read(write_report(fabric.workspace, "r002"))
    text, before = page.one(kind="headline").text, metrics(fabric, "r001").accuracy
    assert f"; r001 scored {percent(before).replace(' ', '% ', 1)} on the test split of p001" in text
    assert "points" not in text and change(gather(fabric.workspace, "r002")) is None
    assert not part(page, "Accuracy over labels").all("line", "join")


def test_what_is_not_fetched_is_said(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "bare", images=150)
    fabric.round("r001", budget=30)
    shutil.rmtree(fabric.root / "pools/p001/shards")
    shutil.rmtree(fabric.root / "rounds/r001/signals")
    (fabric.root / "rounds/r001/predictions.parquet").unlink()
    page = read(write_report(fabric.workspace, "r001"))
    command = "dvc pull pools/p001/dvc.yaml rounds/r001/dvc.yaml"
    for title in ("Picks", "Map of the pool", "Test split by class"):
        assert f"The files for this part are not on this machine; {command} brings them." in part(page, title).text
    assert len(page.all("figure", "tile")) == 30 and not page.all("img")


def test_an_unknown_round_is_refused(fabric: Fabric) -> None:
    with pytest.raises(WorkspaceError, match=re.escape(f"there is no 'r009' in {fabric.root}; there are: p001, r001, r002, r003")):
        write_report(fabric.workspace, "r009")
    with pytest.raises(WorkspaceError, match=r"p001 is a pool and reports are of rounds; the rounds are: r001, r002, r003"):
        write_report(fabric.workspace, "p001")


def test_picks_that_the_pool_does_not_have_are_an_error(tmp_path: Path) -> None:
    fabric = Fabric(tmp_path / "strange", images=100)
    folder = fabric.round("r001", budget=20, stages=BEFORE_ANSWERS)
    chosen = Selection.load(folder / "selection.parquet").frame
    chosen.loc[3, "id"] = "f" * 64
    Selection.of(chosen).save(folder / "selection.parquet")
    with pytest.raises(ArtifactError, match=f"selection.parquet names 1 images that the pool does not have, first {'f' * 64}; run acquire again"):
        write_report(fabric.workspace, "r001")
    assert not (folder / "report.html").exists()


# ---- one file, safe and reproducible -------------------------------------------------------------------------------------


def test_the_page_refers_to_nothing_outside(fabric: Fabric, page: Node) -> None:
    for node in page.walk():
        assert node.tag not in ("script", "link", "iframe", "object", "embed", "base", "video", "audio")
        for key, value in node.attributes.items():
            assert not key.startswith("on"), f"{node.tag} has {key}"
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("data:image/", "#")), value
            assert "url(" not in value
    style = "".join(str(child) for child in page.one("style").children)
    assert "url(" not in style and "@import" not in style and "<" not in style
    assert (fabric.root / "rounds/r002/report.html").stat().st_size < 500_000


def test_the_same_files_give_the_same_page_and_it_names_no_place_on_this_machine(fabric: Fabric) -> None:
    first = write_report(fabric.workspace, "r002").read_bytes()
    path = write_report(fabric.workspace, "r002")
    assert path == fabric.root / "rounds/r002/report.html"
    assert path.read_bytes() == first
    assert str(fabric.root).encode() not in first
    assert [each.name for each in path.parent.iterdir() if "partial" in each.name] == []


def test_text_from_data_is_never_markup(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "</style><b>", "a & b", '"quoted"', "'single'", "ünï ☃", "x" * 80, "&lt;", "<img src=x onerror=alert(1)>", "]]>"]
    fabric = Fabric(tmp_path / "<i>&amp;", images=200, classes=names)
    fabric.round("r001", budget=40)
    folder = fabric.round("r002", budget=40, method="margin")
    chosen = Selection.load(folder / "selection.parquet").frame.assign(reason='"><script>alert(2)</script>')
    Selection.of(chosen).save(folder / "selection.parquet")
    page = read(write_report(fabric.workspace, "r002"))
    assert page.one("h1").text == "<i>&amp; r002"
    assert {node.tag for node in page.walk()}.isdisjoint({"script", "b>", "i"})
    assert all(node.attributes["src"].startswith("data:image/png;base64,") for node in page.all("img"))
    assert [row[0] for row in rows(part(page, "Class balance of the picks"))] == names
    assert page.all("figure", "tile")[0].attributes["title"] == '"><script>alert(2)</script>'
    assert rows(part(page, "Test split by class")) and [row[0] for row in rows(part(page, "Test split by class"))] == names


@pytest.mark.slow
def test_it_opens_offline_in_chromium_without_a_word_on_the_console(fabric: Fabric, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine; install chromium to run this")

    def opened(path: Path, profile: str) -> subprocess.CompletedProcess[str]:
        quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--user-data-dir={tmp_path / profile}"]
        command = [browser or "", "--headless", "--no-sandbox", *quiet, *offline, "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><script>nothing.there()</script><img src='http://example.org/x.png'>", "utf-8")
    assert "CONSOLE" in opened(broken, "broken").stderr  # so that silence below means something
    shown = opened(write_report(fabric.workspace, "r002"), "report")
    assert "CONSOLE" not in shown.stderr
    assert "100 labels bought" in shown.stdout


# ---- pieces --------------------------------------------------------------------------------------------------------------


def test_markup_escapes_text_and_attributes_alike() -> None:
    made = element("p", "<b>&", Html("<i>x</i>"), None, 1.50, ["a", ["b"]], class_="q", title='"><b>', data_x=2, hidden=True, style=None)
    assert made == '<p class="q" title="&quot;&gt;&lt;b&gt;" data-x="2" hidden>&lt;b&gt;&amp;<i>x</i>1.5ab</p>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


@pytest.mark.parametrize(
    ("low", "high", "most"), [(0.88, 0.94, 6), (0.0, 1.0, 6), (0.9, 0.9, 6), (100, 300, 7), (0.9871, 0.9932, 6), (5000, 5300, 7), (0.0, 0.0, 5)]
)
def test_ticks_are_round_numbers_around_the_range(low: float, high: float, most: int) -> None:
    found = ticks(low, high, most)
    steps = np.diff(found)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9
    assert 2 <= len(found) <= most + 2
    assert np.allclose(steps, steps[0])
    assert round(float(steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)), 6) in (1, 2, 5)
    assert len({f"{tick:.{decimals(found)}f}" for tick in found}) == len(found)


def test_whiskers_reach_from_low_to_high_on_the_charts_own_scale() -> None:
    marks = [Mark(100, Estimate(value=0.5, low=0.4, high=0.6, n=9), "r001", "p"), Mark(200, Estimate(value=0.8, low=0.7, high=0.9, n=9), "r002", "p")]
    reader = Reader()
    reader.feed(intervals([Series("test split", "test", marks, joined=True)], "x", "y"))
    drawn = reader.open[0]
    grid = {
        float(text.text) / 100: float(text.attributes["y"]) for text in drawn.all("text") if text.attributes.get("text-anchor") == "end" and text.text.isdigit()
    }
    (bottom, low_y), (top, high_y) = min(grid.items()), max(grid.items())

    def value(y: float) -> float:
        return bottom + (low_y - y) / (low_y - high_y) * (top - bottom)

    centres = [(float(node.attributes["cx"]), value(float(node.attributes["cy"]))) for node in drawn.all("circle")]
    assert [y for _, y in centres] == pytest.approx([0.5, 0.8], abs=1e-3)
    assert centres[0][0] < centres[1][0]
    ends = [re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", node.attributes["d"]) for node in drawn.all("path", "whisker")]
    assert [(value(float(end[1])), value(float(end[2]))) for end in ends if end] == [pytest.approx((0.4, 0.6), abs=1e-3), pytest.approx((0.7, 0.9), abs=1e-3)]
    assert len(drawn.all("line", "join")) == 1


def test_bars_are_as_long_as_their_shares() -> None:
    reader = Reader()
    reader.feed(bars([("acquired", 0.25), ("pool", 1.0)]))
    assert [float(node.attributes["width"]) for node in reader.open[0].all("rect")] == [25, 100]


def test_the_map_has_one_scale_for_both_axes() -> None:
    square = np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    reader = Reader()
    reader.feed(scatter([Layer("labelled", "labelled", square, ["a", "b", "c", "d"])]))
    places = np.array([[float(node.attributes["cx"]), float(node.attributes["cy"])] for node in reader.open[0].all("circle")])
    assert np.ptp(places[:, 0]) == pytest.approx(np.ptp(places[:, 1]))
    assert places[0][1] > places[1][1]  # up is up


@pytest.mark.parametrize("count", [2, 10, 20, 50])
def test_the_matrix_is_wide_enough_for_its_numbers(count: int) -> None:
    reader = Reader()
    reader.feed(matrix(np.full((count, count), 12), [f"name {i}" for i in range(count)]))
    drawn = reader.open[0]
    cells = drawn.all("rect", "shade")
    assert len(cells) == count**2
    assert min(float(cell.attributes["width"]) for cell in cells) >= 17
    width = float(drawn.one("svg").attributes["viewbox"].split()[2])
    assert max(float(cell.attributes["x"]) + float(cell.attributes["width"]) for cell in cells) <= width <= 1120


def test_a_large_pools_map_is_a_sample_that_holds_the_picks() -> None:
    train = np.arange(0, 20_000, 2)
    picks = np.array([8, 4, 19_998, 12])
    rows = sample(train, picks, seed=7)
    assert len(rows) == 2000 and set(picks) <= set(rows.tolist()) <= set(train.tolist())
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(rows, sample(train, picks, seed=7)) and not np.array_equal(rows, sample(train, picks, seed=8))
    assert 8000 < np.mean(rows) < 12_000  # from everywhere
    assert np.array_equal(sample(train, train[:1500], seed=7)[:900], sample(train, train[:1500], seed=7)[:900])
    assert set(train[:1000].tolist()) <= set(sample(train, train[:1500], seed=7).tolist())
    assert np.array_equal(sample(train[:50][::-1], picks[:1], seed=7), train[:50])


def test_the_plane_keeps_groups_together_and_lies_on_its_longer_side() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16))
    group = np.repeat(np.arange(3), 30)
    places = plane((centres[group] + 0.02 * rng.normal(size=(90, 16))).astype(np.float32), seed=1)
    assert places is not None and places.shape == (90, 2)
    gap = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(90, np.inf))
    assert (group[gap.argmin(1)] == group).all()
    assert places[:, 0].std() >= places[:, 1].std()


def test_embeddings_that_are_all_alike_have_no_map() -> None:
    assert plane(np.ones((100, 8), dtype=np.float32), seed=1) is None
    assert plane(np.zeros((100, 8), dtype=np.float32), seed=1) is None
    assert plane(np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32), seed=1) is None


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_250_000, "1.2 MB"), (3_000_000_000, "3.0 GB"), (5 * 10**15, "5000.0 TB")]
)
def test_sizes_are_read_easily(size: int, text: str) -> None:
    assert in_bytes(size) == text
