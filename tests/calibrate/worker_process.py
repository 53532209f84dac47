"""What a worker process of the tests does; forked from a process that has the imports behind it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from calibrate import workflow
from calibrate.progress import Narrator
from calibrate.session import open_session


def work(folder: str) -> None:
    """`scope-calibrate worker study.yaml` in a folder, with what it says in a file of its own."""
    os.chdir(folder)
    sys.stderr = Path(f"worker-{os.getpid()}.log").open("w", buffering=1)  # noqa: SIM115 (for the whole process)
    with Narrator() as narrator, open_session(Path("study.yaml"), narrator, create=True) as session:
        workflow.work(session)
