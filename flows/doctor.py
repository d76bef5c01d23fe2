"""`rondo doctor`: what this machine and this workspace are like, and for each problem the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.table import Table
from rich.text import Text

from flows.addresses import redact, responds
from tasks import dvc
from tasks.code_version import SOURCE, code_version
from tasks.environment import threads
from tasks.errors import RondoError, WorkspaceError
from tasks.process import ChildError, run
from tasks.rounds import check_pipeline, held_by_git, uncommitted
from tasks.wording import counted
from tasks.workspace import Workspace

DISTRIBUTION = "rondo-al"
SHOWN = ("prefect", "dvc", "mlflow", "torch", "torchvision", "lightly", "numpy", "pandas", "pyarrow")  # of those in range; the others only if they are not
LEAST_FREE = 5e9  # bytes
PROBE = 180  # seconds that a child may take to import what it is asked to
TORCH = """
import json, torchvision, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([torch.__version__, torchvision.__version__, [[device.name, device.total_memory] for device in devices]]))
"""
PREFECT_SERVER = "from prefect.server.api.server import create_app; create_app(ephemeral=True)"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    fine: bool = True
    remedy: str = ""  # a command, and why; of something fine: a hint


def examine(folder: Path) -> list[Finding]:
    """Everything, in the order of the table; `folder` may lie in a workspace or not. Changes nothing."""
    findings = [python(), rondo(), *packages(), faiss(), *torch(), git_program(folder), prefect_server(), *addresses(), disk(folder)]
    try:
        workspace = Workspace.find(folder)
    except WorkspaceError:
        return [*findings, Finding("workspace", f"none at {folder.resolve()}", remedy="to look at one: rondo doctor --workspace DIR")]
    return [*findings, *of_workspace(workspace)]


def render(findings: Sequence[Finding]) -> Table:
    """Fine, or not and what to do about it."""
    table = Table(title="rondo doctor", title_justify="left")
    table.add_column("")
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        mark = Text("ok", "green") if finding.fine else Text("problem", "bold red")
        table.add_row(mark, finding.name, Text(finding.found), Text(finding.remedy, "dim" if finding.fine else "yellow"))
    return table


# ---- this machine ------------------------------------------------------------------------------------------------------------


def python() -> Finding:
    """Python's version against what the package asks for."""
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    found = platform.python_version()
    fine = SpecifierSet(wanted).contains(found, prereleases=True)
    return Finding("Python", f"{found} ({sys.executable})", fine, "" if fine else f"Rondo needs {wanted}: make clean && make setup PYTHON=python3.12")


def rondo() -> Finding:
    """The version that rounds are frozen with."""
    try:
        return Finding("Rondo", code_version())
    except WorkspaceError as error:
        return Finding("Rondo", str(error), False, f"if git finds the owner dubious: git config --global --add safe.directory {shlex.quote(str(SOURCE))}")


def packages() -> Iterator[Finding]:
    """Each declared dependency against its range: one line for those that fit, one each for the others."""
    fitting = []
    for text in importlib.metadata.requires(DISTRIBUTION) or []:
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        found = installed(needed.name)
        if found is not None and needed.specifier.contains(found, prereleases=True):
            fitting.append(f"{needed.name} {found}")
            continue
        yield Finding(
            needed.name, f"{found or 'not installed'}, expected {needed.specifier}", False, f"pip install '{needed}' (or make setup, which installs the lock)"
        )
    shown = [each for each in fitting if each.split()[0] in SHOWN]
    yield Finding("packages", ", ".join(shown) + f" and {len(fitting) - len(shown)} more, all in range")


def installed(name: str) -> str | None:
    """Version of a distribution, None where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def faiss() -> Finding:
    """Two distributions of faiss write the same files over each other."""
    names = sorted({each.metadata["Name"].lower() for each in importlib.metadata.distributions() if (each.metadata["Name"] or "").lower().startswith("faiss")})
    if len(names) <= 1:
        return Finding("faiss", f"{names[0]} {installed(names[0])}" if names else "none", bool(names), "" if names else "make setup")
    wanted = "faiss-gpu" if sys.platform == "linux" and platform.machine() == "x86_64" else "faiss-cpu"
    return Finding("faiss", f"{' and '.join(names)} together", False, f"pip uninstall --yes {' '.join(names)} && pip install {wanted}")


def torch() -> Iterator[Finding]:
    """Whether torch and torchvision import side by side, and what they can compute on. In a child: a broken build may take the process down."""
    try:
        versions = json.loads(python_child(TORCH).splitlines()[-1])
    except (ChildError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        yield Finding(
            "torch", last_line(error), False, "install both from one source: pip install --force-reinstall torch torchvision (or make clean && make setup)"
        )
        yield Finding("devices", f"{threads()} CPU threads; CUDA unknown, since torch does not import")
        return
    torch_version, vision_version, devices = versions
    yield Finding("torch", f"torch {torch_version} and torchvision {vision_version} import together")
    names = [f"{name} ({memory / 2**30:.0f} GiB)" for name, memory in devices]
    unseen = not names and nvidia()
    remedy = "the driver is too old for this torch, or CUDA_VISIBLE_DEVICES hides the device: nvidia-smi" if unseen else ""
    cuda = ", ".join(names) or ("CUDA: torch sees none, nvidia-smi lists some" if unseen else "no CUDA device")
    yield Finding("devices", f"{threads()} CPU threads; {cuda}", not unseen, remedy)


def nvidia() -> bool:
    """Whether the driver lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def git_program(folder: Path) -> Finding:
    """git, and in whose name it commits."""
    if shutil.which("git") is None:
        return Finding("git", "not on the PATH", False, "apt-get install git, brew install git, or https://git-scm.com")
    version = run(["git", "--version"], Path.cwd()).strip()
    where = folder if folder.is_dir() else Path.cwd()
    identity = subprocess.run(["git", "config", "user.email"], cwd=where, capture_output=True, text=True, check=False).stdout.strip()
    if identity:
        return Finding("git", f"{version}, commits as {identity}")
    hint = "rounds are committed as rondo@localhost; in your name: git config --global user.name NAME && git config --global user.email EMAIL"
    return Finding("git", f"{version}, knows no user", remedy=hint)


def prefect_server() -> Finding:
    """Whether the embedded server can be built: some versions of fastapi make it crash."""
    try:
        python_child(PREFECT_SERVER)
    except (ChildError, subprocess.TimeoutExpired) as error:
        return Finding("Prefect server", f"does not start: {last_line(error)}", False, "pip install 'fastapi<0.155' 'prefect>=3.8,<4' (or make setup)")
    return Finding("Prefect server", f"can start (prefect {installed('prefect')}, fastapi {installed('fastapi')})")


def addresses() -> Iterator[Finding]:
    """The servers that the environment names."""
    for name, variable, path in (("Prefect", "PREFECT_API_URL", "/health"), ("MLflow", "MLFLOW_TRACKING_URI", "/health")):
        address = os.environ.get(variable)
        if not address:
            yield Finding(name, f"{variable} is not set: kept in the workspace, see it with `rondo ui`")
        elif urlsplit(address).scheme not in ("http", "https"):
            yield Finding(name, f"{variable} is {redact(address)}: no server")
        else:
            fine = responds(f"{address.rstrip('/')}{path}")
            remedy = "" if fine else f"start that server, or: unset {variable}"
            yield Finding(name, f"{redact(address)} {'answers' if fine else 'does not answer'}", fine, remedy)


def disk(folder: Path) -> Finding:
    """Room for pools, signals and models."""
    there = next(each for each in (folder.resolve(), *folder.resolve().parents) if each.exists())
    free = shutil.disk_usage(there).free
    fine = free >= LEAST_FREE
    return Finding(
        "disk", f"{free / 1e9:.1f} GB free", fine, "" if fine else "at least 5 GB are wanted; what no commit refers to goes with: dvc gc --all-commits"
    )


def python_child(code: str) -> str:
    """What a Python of our own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE, check=False)
    if done.returncode:
        raise ChildError(["python", "-c", "..."], done.returncode, done.stderr)
    return done.stdout


def last_line(error: Exception) -> str:
    """The last line of what went wrong."""
    text = error.output if isinstance(error, ChildError) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[-1]


# ---- a workspace -------------------------------------------------------------------------------------------------------------


def of_workspace(workspace: Workspace) -> Iterator[Finding]:
    """What only a workspace has."""
    pools, rounds = (counted(len(workspace.all(kind)), kind[:-1]) for kind in ("pools", "rounds"))
    yield Finding("workspace", f"{workspace.root}: {pools}, {rounds}")
    yield params(workspace)
    yield pipeline(workspace)
    yield work_tree(workspace)
    yield remote(workspace)
    yield locks(workspace)


def params(workspace: Workspace) -> Finding:
    """`params.yaml`, key by key."""
    try:
        method = workspace.params.acquire.method.get("name")
    except RondoError as error:
        return Finding("params.yaml", str(error), False, f"edit it: {workspace.root / 'params.yaml'}")
    return Finding("params.yaml", f"valid; the next round picks by {method}")


def pipeline(workspace: Workspace) -> Finding:
    """`dvc.yaml` against the stages' signatures."""
    try:
        check_pipeline(yaml.safe_load((workspace.root / "dvc.yaml").read_text("utf-8")))
    except (OSError, yaml.YAMLError, RondoError) as error:
        return Finding(
            "dvc.yaml", str(error), False, f"cd {shlex.quote(str(workspace.root))} && python -m tasks dvc > dvc.yaml && git commit -m 'Renew dvc.yaml' dvc.yaml"
        )
    return Finding("dvc.yaml", "in step with the stages")


def work_tree(workspace: Workspace) -> Finding:
    """What would keep the next round from being opened; what the open round itself has made is as it should be."""
    try:
        closed = workspace.closed()
        unclosed = [each for kind in ("pools", "rounds") for each in workspace.all(kind) if each.name not in closed]
        changed = uncommitted(workspace, [path for each in unclosed for path in held_by_git(each)])
    except WorkspaceError as error:
        return Finding("work tree", str(error), False, f"git init {shlex.quote(str(workspace.root))}")
    if not changed:
        return Finding("work tree", "clean")
    shown = ", ".join(line.strip() for line in changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    return Finding(
        "work tree",
        f"not committed: {shown}",
        False,
        f"cd {shlex.quote(str(workspace.root))} && git add -A && git commit -m 'Describe the change' (or undo it: git stash)",
    )


def remote(workspace: Workspace) -> Finding:
    """The DVC remote, without which results are on this machine alone."""
    settings = dvc.configuration(workspace.root)
    name = settings.get("core", "remote", fallback="")
    if not name:
        return Finding(
            "DVC remote",
            "none: outputs are on this machine alone",
            remedy="dvc remote add --default storage s3://BUCKET/PATH (or a folder), then git commit .dvc/config",
        )
    address = settings.get(f"'remote \"{name}\"'", "url", fallback="")
    if not address:
        return Finding("DVC remote", f"{name} is the default but has no address", False, f"dvc remote add --force --default {name} ADDRESS")
    if urlsplit(address).scheme:
        return Finding("DVC remote", f"{name}: {redact(address)}", remedy="whether all is there: dvc status --cloud")
    path = (workspace.root / ".dvc" / address).resolve()  # DVC keeps folders relative to its configuration
    if path.is_dir() and os.access(path, os.W_OK):
        return Finding("DVC remote", f"{name}: {path}")
    state = "cannot be written" if path.exists() else "is not there"
    return Finding("DVC remote", f"{name}: {path} {state}", False, f"mount it, or: mkdir -p {shlex.quote(str(path))}, or: dvc remote modify {name} url ADDRESS")


def locks(workspace: Workspace) -> Finding:
    """Who is at work, and what a process that was killed left locked."""
    path = workspace.private / "lock"
    holder = path.read_text("utf-8").strip() if path.exists() else ""  # only a holder that was killed leaves its number
    if holder:
        if alive(int(holder)):
            return Finding("locks", f"process {holder} is at work")
        return Finding("locks", f"process {holder} was cut off at work", remedy="the next `rondo cycle` tidies up after it and goes on")
    hidden = workspace.root / ".git"
    left = [each for each in [*hidden.glob("*.lock"), *hidden.glob("refs/**/*.lock")] if each.is_file()]
    if dead_dvc(workspace):
        left.append(workspace.root / ".dvc" / "tmp" / "rwlock")
    if not left:
        return Finding("locks", "none")
    names = " ".join(shlex.quote(str(each)) for each in left)
    return Finding("locks", f"left by a program that was killed: {names}", False, f"if no git or dvc is at work there: rm {names}")


def dead_dvc(workspace: Workspace) -> bool:
    """Whether DVC's own list of readers and writers names a process that is no more."""
    try:
        content = json.loads((workspace.root / ".dvc" / "tmp" / "rwlock").read_text("utf-8") or "{}")
    except (OSError, ValueError):
        return False
    holders = [holder for entry in content.values() for holder in [entry.get("write", {}), *entry.get("read", [])] if holder]
    return any(not alive(int(holder["pid"])) for holder in holders)


def alive(pid: int) -> bool:
    """Whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
