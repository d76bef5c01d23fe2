"""What a run depended on beside its inputs: kept in git beside the round, no DVC output, so that a replay elsewhere can say why it differs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.params import Params

FILE = "environment.json"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "lightly", "pillow", "pyarrow", "faiss-gpu", "faiss-cpu", "scikit-learn")
BITWISE, STATISTICAL = "bitwise", "statistical"

Description = dict[str, Any]  # what `describe` says, of this process or another


@dataclass
class Elsewhere:
    """Where else than in a stage's own process a part of it was computed."""

    processes: list[Description] = field(default_factory=list)  # of the group that it started, on all nodes
    earlier: list[Description] = field(default_factory=list)  # of runs that were cut off, and that it went on from

    def mixed(self, here: Description) -> bool:
        """Whether an earlier run was in an environment that neither this process, which is `here`, nor one of the group is in."""
        return any(each not in (here, *self.processes) for each in self.earlier)


def describe() -> Description:
    """Python, libraries, processor, threads and accelerators of this process's machine, and what CUDA it computed with, if it did."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    accelerators = nvidia_devices()
    return {
        "accelerators": accelerators,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cuda": cuda(),
        "system": platform.system(),
        "threads": threads(),
        "libraries": versions,
    }


def processor() -> str:
    """Model of the processor, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def cuda() -> str | None:
    """Versions of CUDA and cuDNN where this process has used a GPU; torch is not imported only to find that out."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def level(stage: str, params: Params) -> str:
    """How nearly a stage that is run again gives what it gave: bitwise, on the same kind of device with the same libraries and threads, or statistical."""
    compiled = stage == "pretrain" and params.pretrain.compile  # the compiler tries kernels by the clock
    method = params.acquire.method
    clocked = stage == "acquire" and (method["name"] == "robust-coreset" or method.get("index") == "hnsw")  # a time limit; threads that race
    return STATISTICAL if compiled or clocked else BITWISE


def threads() -> int:
    """Threads that numerical libraries take by default: sums come in another order with another number."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # one number for each level of nesting
    return int(first) if first.isdigit() else cores


def nvidia_devices() -> list[str]:
    """Name and driver of each NVIDIA device; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def record(folder: Path, stage: str, seconds: float, level: str = BITWISE, elsewhere: Elsewhere | None = None) -> None:
    """Note on what a stage ran, how long it took, and how nearly it can be run again, in `folder/environment.json`.

    Args:
        level: of the stage where one environment has computed it; what several have computed in turn comes again nowhere, and is statistical.
        elsewhere: where its own process has not computed it alone.
    """
    path = folder / FILE
    here, elsewhere = describe(), elsewhere or Elsewhere()
    noted = {"seconds": round(seconds, 2), "level": STATISTICAL if elsewhere.mixed(here) else level, **joined(here, elsewhere)}
    content = {"stages": load(folder) | {stage: noted}}
    beside = folder / f".{FILE}.partial"
    beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    beside.replace(path)


def joined(here: Description, elsewhere: Elsewhere) -> Description:
    """The environment of all that a stage was computed in.

    Returns:
        That of its own process, with the CUDA of its group's where it has used none itself; and where there are others, under `others`, of each what
        is different there.
    """
    whole = here | {"cuda": next((each["cuda"] for each in (here, *elsewhere.processes) if each["cuda"]), None)}
    different = [{key: value for key, value in each.items() if value != whole.get(key)} for each in (*elsewhere.earlier, *elsewhere.processes)]
    others = [each for place, each in enumerate(different) if each and each not in different[:place]]
    return whole | {"others": others} if others else whole


def load(folder: Path) -> dict[str, Any]:
    """The records by stage; one whose outputs DVC took from its run cache has none."""
    path = folder / FILE
    stages: dict[str, Any] = json.loads(path.read_text("utf-8"))["stages"] if path.exists() else {}
    return stages


def differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """What is not the same between two environments of a stage, a line each."""
    flat_here, flat_there = flatten(here), flatten(there)
    keys = sorted((flat_here.keys() | flat_there.keys()) - {"seconds"})
    return [f"{key}: {flat_there.get(key, 'absent')} then, {flat_here.get(key, 'absent')} now" for key in keys if flat_here.get(key) != flat_there.get(key)]


def flatten(content: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots; dicts in a list go by their number."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        inner = dict(enumerate(value, start=1)) if isinstance(value, list) and value and isinstance(value[0], dict) else value
        flat |= flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": str(value)}
    return flat
