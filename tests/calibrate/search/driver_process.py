"""What a driver's process of the tests does; forked from a process that has the imports behind it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from calibrate import workflow
from calibrate.families.skyreels_v2 import target  # noqa: F401 - what loading the pipeline would import first
from calibrate.progress import Narrator
from calibrate.session import open_session


def run(folder: str) -> None:
    """`scope-calibrate run study.yaml` in a folder, with what it says in a file."""
    os.chdir(folder)
    sys.stderr = Path("run.log").open("a", buffering=1)  # noqa: SIM115 (for the whole process)
    with Narrator() as narrator, open_session(Path("study.yaml"), narrator, create=True) as session:
        workflow.run(session)
