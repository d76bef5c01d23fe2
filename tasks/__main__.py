"""`python -m tasks STAGE [FOLDER]` runs a stage in a folder with a `params.yaml`; `python -m tasks dvc` prints the root `dvc.yaml`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from tasks.errors import RondoError
from tasks.process import die_with_supervisor
from tasks.stage import POOL_STAGES, ROUND_STAGES, execute


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tasks", description=__doc__)
    parser.add_argument("stage", choices=[*POOL_STAGES, *ROUND_STAGES, "dvc"], help="stage to run, or dvc: print the pipeline as dvc.yaml")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="folder with params.yaml, such as rounds/r003 (default: this one)")
    arguments = parser.parse_args()
    if arguments.stage == "dvc":
        from tasks.workspace import dvc_yaml

        sys.stdout.write(dvc_yaml())
        return 0
    die_with_supervisor()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's matrix products are deterministic only so
    try:
        execute(arguments.stage, arguments.folder)
    except RondoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"error: {error or type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
