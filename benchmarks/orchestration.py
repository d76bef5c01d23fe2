"""What a round costs beyond its stages' own work: trivial stages through Prefect, DVC and git, beside the same stages under bare `dvc repro`.

    python -m benchmarks.orchestration [--rounds 5]

The stages are real in their files and trivial in their work: their commands copy outputs that were computed once before. Report and tracking
run as in production and are counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.record import write
from tasks import dvc, git, rounds
from tasks.params import Params
from tasks.stage import all_stages
from tasks.workspace import Workspace, init

PARAMS = {
    "classes": list("0123456789"),
    "ingest": {"source": "example://digits", "labels": "ignore", "workers": 1},
    "pretrain": {"method": "none", "image_size": 8},
    "embed": {"workers": 0},
    "acquire": {"method": {"name": "random"}, "budget": 20},
    "import-labels": {"labeller": "oracle"},
}


def main() -> None:
    """Measure and write benchmarks/results/orchestration.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds to measure; the median counts")
    number = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        workspace = trivial_workspace(Path(folder))
        ours = seconds_of_cycles(workspace, number)
        bare = [seconds_of_bare_dvc(workspace) for _ in range(number)]
        last = workspace.all("rounds")[-1]
        figures = {
            "seconds_a_round": {"rondo": median(ours), "bare_dvc_repro": median(bare)},
            "ratio_to_bare_dvc": round(statistics.median(ours) / statistics.median(bare), 2),
            "all_seconds": {"rondo": [round(each, 2) for each in ours], "bare_dvc_repro": [round(each, 2) for each in bare]},
            "prefect_tasks_a_round": len(last.stages) + 2,
            "dvc_outputs_a_round": sum(len(entry["outs"]) for entry in last.lock.values()),
            "git_files_a_round": len(git.git(workspace.root, "ls-files", last.folder).splitlines()),
        }
    print(write("orchestration", figures).read_text())  # noqa: T201


def trivial_workspace(folder: Path) -> Workspace:
    """A workspace with a pool, whose rounds copy the outputs of one real round."""
    workspace = init(folder / "workspace", Params.check(PARAMS, "benchmark"))
    rounds.advance(workspace, rounds.run_stage, lambda _: None, max_rounds=1)
    real = workspace.root / "rounds/r001"
    kept = folder / "kept"
    shutil.copytree(real, kept)
    git.git(workspace.root, "reset", "--hard", "--quiet", "pool-p001")
    git.git(workspace.root, "tag", "--delete", "round-r001")
    shutil.rmtree(real)
    content = yaml.safe_load((workspace.root / "dvc.yaml").read_text("utf-8"))
    for stage in all_stages():
        names = " ".join(str(kept / Path(artifact.file).name) for artifact in stage.writes.values())
        content["stages"][stage.name]["cmd"] = f"cp -r {names} ."
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    git.commit(workspace.root, ["dvc.yaml"], "Trivial stages")
    return workspace


CYCLES = """
import json, sys, time
from pathlib import Path
from flows.cli import servers_at_home
from tasks.workspace import Workspace
servers_at_home(Workspace(Path(sys.argv[1])))
from flows.cycle import cycle
seconds = []
for _ in range(int(sys.argv[2])):
    started = time.monotonic()
    state = cycle(sys.argv[1], 1, return_state=True)
    assert state.name == "RoundClosed", state
    seconds.append(time.monotonic() - started)
open(sys.argv[3], "w").write(json.dumps(seconds))
"""


def seconds_of_cycles(workspace: Workspace, number: int) -> list[float]:
    """Whole rounds, one flow run each, in a process whose server and imports are up, as a worker's are: a first round warms it and does not count."""
    said = workspace.root.parent / "seconds"
    command = [sys.executable, "-c", CYCLES, str(workspace.root), str(number + 1), str(said)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds: list[float] = json.loads(said.read_text())
    return seconds[1:]


def seconds_of_bare_dvc(workspace: Workspace) -> float:
    """The newest round's five stages and nothing else, forced, by one `dvc repro`."""
    last = workspace.all("rounds")[-1]
    targets = [f"{last.folder}/dvc.yaml:{stage}" for stage in last.stages]
    started = time.monotonic()
    dvc.dvc(workspace.root, "repro", "--quiet", "--force", "--no-run-cache", "--single-item", *targets)
    return time.monotonic() - started


def median(values: list[float]) -> float:
    """Rounded to hundredths."""
    return round(statistics.median(values), 2)


if __name__ == "__main__":
    main()
