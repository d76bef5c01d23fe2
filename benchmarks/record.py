"""What every benchmark writes: its figures beside the machine that they hold for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, memory, GPUs where there are any, Python and the main libraries; no host name, no paths."""
    names = ("torch", "numpy", "dvc", "prefect", "mlflow", "faiss-gpu")
    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        **({"gpus": gpus, "cuda": torch.version.cuda} if gpus else {}),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: installed[name] for name in names if name in installed},
    }


def processor() -> str:
    """Model name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def place(name: str, device: str = "cpu") -> Path:
    """benchmarks/results/NAME.json, or NAME-gpu.json of figures of another device than the CPU."""
    return RESULTS / f"{name}{'' if device == 'cpu' else '-gpu'}.json"


def write(name: str, figures: dict[str, Any], device: str = "cpu") -> Path:
    """Save `figures` in their place."""
    RESULTS.mkdir(exist_ok=True)
    path = place(name, device)
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=2, sort_keys=True) + "\n", "utf-8")
    return path
