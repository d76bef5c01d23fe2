"""Where it all comes from: stage times, what they ran on, every hash in and out, and the frozen parameters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks import environment
from tasks.report import charts
from tasks.report.facts import Facts
from tasks.report.layout import pairs, section, table
from tasks.report.markup import Child, Html, element, join
from tasks.workspace import Round

Ran = tuple[str, str, dict[str, Any]]  # round or pool, stage, what environment.json says of it


def times(facts: Facts) -> Html | None:
    """How long each stage of the round and of its pool took, and on what; None before the first."""
    ran = [*stages_of(facts.this), *stages_of(facts.pool)]
    if not ran:
        return None
    longest = max(about["seconds"] for _, _, about in ran) or 1.0
    rows: list[list[Child]] = [[name, stage, charts.bars([("time", about["seconds"] / longest)]), f"{about['seconds']:,.1f}"] for name, stage, about in ran]
    here = sum(about["seconds"] for name, _, about in ran if name == facts.name)
    lead = f"This round's stages took {here:,.1f} s, DVC's own work around them not counted; those of {facts.pool.name} serve all rounds over it."
    return section("Stage times", table(["of", "stage", "time", ">seconds"], rows, "times"), machines(ran), lead=lead)


def stages_of(this: Round) -> list[Ran]:
    """What `environment.json` says of the stages, in pipeline order."""
    recorded = environment.load(this.path)
    return [(this.name, stage, recorded[stage]) for stage in this.stages if stage in recorded]


def machines(ran: Sequence[Ran]) -> Html:
    """The environments, each with the stages that ran in it."""
    groups: dict[str, list[str]] = {}
    for name, stage, about in ran:
        told = [f"{key.removeprefix('libraries.')} {value}" for key, value in environment.flatten(about).items() if key != "seconds"]
        groups.setdefault(", ".join(told), []).append(f"{name} {stage}")
    lines = [element("p", element("b", "all stages" if len(groups) == 1 else ", ".join(stages)), ": ", told, class_="small") for told, stages in groups.items()]
    return element("details", element("summary", "What they ran on"), lines)


def files(facts: Facts) -> Html:
    """Code, seed and params of the round, and what its stages read and wrote, by hash."""
    lock, folder = facts.this.lock, facts.this.folder
    digest = hashlib.sha256((facts.this.path / "params.yaml").read_bytes()).hexdigest()
    origin = [
        ("code", f"Rondo {facts.params.code}"),
        ("image", facts.params.image or "none"),
        ("seed", str(facts.params.seed)),
        (f"sha256 of {folder}/params.yaml", digest),
    ]
    about = pairs([(name, element("span", value, class_="hash")) for name, value in origin], "origin")
    if not lock:
        return section("What went in and what came out", about)
    stages = [stage for stage in facts.this.stages if stage in lock]
    made = {entry["path"] for stage in stages for entry in lock[stage].get("outs", [])}
    read = {entry["path"]: entry for stage in stages for entry in lock[stage].get("deps", []) if entry["path"] not in made}
    went_in = [cells(facts.this, read[path]) for path in sorted(read)]
    came_out = [[stage, *cells(facts.this, entry)] for stage in stages for entry in lock[stage].get("outs", [])]
    command = element("code", f"rondo reproduce {facts.name}")
    lead = join(f"From {folder}/dvc.lock. ", command, " runs a closed round again from its tag and compares the hashes of what comes out.")
    tables = [table(["went in", "md5", ">size"], went_in, "files"), table(["stage", "came out", "md5", ">size"], came_out, "files")]
    return section("What went in and what came out", about, tables, lead=lead)


def cells(this: Round, entry: dict[str, Any]) -> list[Child]:
    """Path in the workspace, hash and size of an entry of `dvc.lock`."""
    path = Path(os.path.normpath(f"{this.folder}/{entry['path']}")).as_posix()
    size = in_bytes(entry["size"]) if "size" in entry else None
    return [element("span", path, class_="path"), element("span", str(entry.get("md5", "")), class_="hash"), size]


def in_bytes(size: int) -> str:
    """`512 B`, `1.2 MB`."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def parameters(facts: Facts) -> Html:
    """The frozen params, folded away."""
    text = (facts.this.path / "params.yaml").read_text("utf-8")
    return section("Parameters", element("details", element("summary", f"{facts.this.folder}/params.yaml as frozen"), element("pre", text)))
