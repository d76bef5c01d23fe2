from __future__ import annotations

import base64
import io
import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows import results
from tasks.artifacts import Selection
from tasks.errors import ArtifactError, RondoError, WorkspaceError
from tasks.workspace import Round, Workspace

EVERYTHING = [("p001", "ingest"), ("p001", "pretrain"), *(("r002", stage) for stage in ("embed", "acquire", "export", "import-labels", "retrain"))]


@pytest.fixture(scope="module")
def published(finished_once: Path, prefect_server: None) -> dict[str, Any]:
    """The newest artifact of each key after all stages were published in one flow run."""
    return publish(finished_once, EVERYTHING)


def publish(root: Path, stages: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Publish in a flow run; what it made, by key."""
    from prefect import flow
    from prefect.runtime import flow_run

    @flow
    def show() -> str:
        for name, stage in stages:
            results.publish(Round(root, name), stage)
        return str(flow_run.id)

    return {each["key"]: each for each in stored(flow_run_id={"any_": [show()]})}


def stored(**which: object) -> list[dict[str, Any]]:
    """What the server holds, the newest first."""
    from prefect.settings import PREFECT_API_URL

    body = json.dumps({"artifacts": which, "sort": "CREATED_DESC"}).encode()
    request = urllib.request.Request(f"{PREFECT_API_URL.value()}/artifacts/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: list[dict[str, Any]] = json.load(answer)
    return content


def rows(artifact: dict[str, Any]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(artifact["data"])
    return content


def failure(root: Path, name: str, stage: str) -> Exception:
    """What publishing raises inside a flow."""
    from prefect import flow

    @flow
    def show() -> Exception | None:
        try:
            results.publish(Round(root, name), stage)
        except RondoError as error:
            return error
        return None

    error = show()
    assert isinstance(error, Exception)
    return error


def test_every_stage_shows_itself_under_keys_that_never_change(published: dict[str, Any]) -> None:
    assert set(published) == {
        "ingest-counts",
        "pretrain-curve",
        "embed-signals",
        "acquire-summary",
        "acquire-selection",
        "export-contact-sheet",
        "import-labels-counts",
        "import-labels-rejects",
        "retrain-metrics",
    }


def test_selection_is_the_file(published: dict[str, Any], finished_once: Path) -> None:
    frame = pd.read_parquet(finished_once / "rounds" / "r002" / "selection.parquet")
    shown = rows(published["acquire-selection"])
    assert [row["id"] for row in shown] == [each[:12] for each in frame["id"]]
    assert [row["arm"] for row in shown] == list(frame["arm"])
    assert [row["score"] for row in shown] == [None if pd.isna(score) else score for score in frame["score"]]
    assert sum(row["score"] is None for row in shown) == 3


def test_metrics_are_the_file(published: dict[str, Any], finished_once: Path) -> None:
    content = json.loads((finished_once / "rounds" / "r002" / "metrics.json").read_text())
    shown = {row["metric"]: row for row in rows(published["retrain-metrics"])}
    for key in ("value", "low", "high", "n"):
        assert shown["accuracy"][key] == round(content["accuracy"][key], 4)
    assert shown["recall of zero"]["value"] == round(content["recall"]["zero"]["value"], 4)
    assert published["retrain-metrics"]["description"] == f"r002: 24 labels, accuracy {content['accuracy']['value']:.3f}"


def test_counts_are_the_files(published: dict[str, Any]) -> None:
    ingest = {row["what"]: row["count"] for row in rows(published["ingest-counts"])}
    assert (ingest["images"], ingest["known label: zero"]) == (90, 30)
    answers = {row["what"]: row["count"] for row in rows(published["import-labels-counts"])}
    assert (answers["batch"], answers["labelled"], answers["annotator: oracle"]) == (12, 12, 12)
    assert rows(published["import-labels-rejects"]) == []


def test_signals_are_named_with_their_shapes(published: dict[str, Any], finished_once: Path) -> None:
    shown = {row["signal"]: row for row in rows(published["embed-signals"])}
    assert shown["embeddings"]["shape"] == "90 x 128"
    assert shown["embeddings"]["bytes"] == np.load(finished_once / "rounds" / "r002" / "signals" / "embeddings.npy").nbytes
    assert "looked at with rounds/r001/model.safetensors;" in published["embed-signals"]["description"]


def test_the_contact_sheet_is_a_picture_in_the_page(published: dict[str, Any], finished_once: Path) -> None:
    text = published["export-contact-sheet"]["data"]
    assert "rounds/r002/batch" in text
    data = base64.b64decode(text.split("base64,")[1].rstrip(")"))
    with Image.open(io.BytesIO(data)) as shown, Image.open(finished_once / "rounds" / "r002" / "batch" / "contact_sheet.png") as sheet:
        assert shown.format == "JPEG"
        assert shown.size == sheet.size


def test_summaries_say_what_happened(published: dict[str, Any]) -> None:
    assert published["acquire-summary"]["data"].startswith("## r002: 12 images to label")
    assert "picked 9 of" in published["acquire-summary"]["data"]
    assert published["pretrain-curve"]["data"].startswith("## p001: encoder\n\nnone, small at 8 px")


def test_a_key_has_a_history(finished_once: Path, prefect_server: None) -> None:
    for name in ("r001", "r002"):
        publish(finished_once, [(name, "retrain")])
    newest, before, *_ = stored(key={"any_": ["retrain-metrics"]})
    assert newest["description"].startswith("r002: 24 labels")
    assert before["description"].startswith("r001: 12 labels")


def test_long_tables_are_cut_and_say_so(finished: Workspace, prefect_server: None) -> None:
    path = finished.root / "rounds" / "r002" / "selection.parquet"
    one = Selection.load(path).frame.iloc[:1]
    Selection.of(pd.concat([one] * 300, ignore_index=True).assign(rank=np.arange(300, dtype=np.int32))).save(path)
    shown = publish(finished.root, [("r002", "acquire")])["acquire-selection"]
    assert [row["rank"] for row in rows(shown)] == list(range(200))
    assert shown["description"].endswith("(the first 200 of 300)")


def test_quarantined_files_are_listed_without_credentials(finished: Workspace, prefect_server: None) -> None:
    from tasks.artifacts import IngestReport, Quarantine

    pool = finished.root / "pools" / "p001"
    report = IngestReport.load(pool / "ingest.json")
    report.model_copy(update={"quarantined": {"truncated": 1}}).save(pool / "ingest.json")
    Quarantine.of([{"uri": "https://me:hunter2@host/a.jpg", "reason": "truncated", "detail": "ends early"}]).save(pool / "quarantine.parquet")
    shown = publish(finished.root, [("p001", "ingest")])["ingest-quarantine"]
    assert rows(shown) == [{"uri": "https://***@host/a.jpg", "reason": "truncated", "detail": "ends early"}]


def test_outside_a_run_nothing_can_be_published(finished_once: Path) -> None:
    with pytest.raises(WorkspaceError, match="results of r001 retrain can be published inside a Prefect flow or task run only; `rondo cycle` starts one"):
        results.publish(Round(finished_once, "r001"), "retrain")


def test_missing_files_and_unknown_stages_are_named(finished: Workspace, prefect_server: None) -> None:
    shutil.rmtree(finished.root / "rounds" / "r001" / "batch")
    (finished.root / "rounds" / "r001" / "metrics.json").unlink()
    missing = failure(finished.root, "r001", "export")
    assert isinstance(missing, ArtifactError)
    assert str(missing).endswith("contact_sheet.png is missing; run the stage that writes it, or `dvc pull rounds/r001/batch`")
    assert "metrics.json is missing" in str(failure(finished.root, "r001", "retrain"))
    assert "unknown stage 'train'; the stages are ingest, pretrain, embed" in str(failure(finished.root, "r001", "train"))


def test_pictures_shrink_until_they_fit() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 1500, 3), np.uint8))
    data = base64.b64decode(results.picture(noise).removeprefix("data:image/jpeg;base64,"))
    assert 50_000 < len(data) <= 200_000
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.width / shown.height == pytest.approx(0.75, abs=0.01)


def test_sparkline_and_thinning() -> None:
    assert results.sparkline([3.0, 2.0, 1.0]) == "█▄▁"
    assert results.sparkline([5.0, 5.0]) == "▁▁"
    assert results.thinned(list(range(1000)), 5) == [0, 250, 500, 749, 999]
    assert results.thinned([1, 2], 5) == [1, 2]
