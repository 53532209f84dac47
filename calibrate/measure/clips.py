"""Comparison clips of what was measured, in a folder that never grows beyond its bound."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calibrate.files import digest, write_atomically
from calibrate.store import policy_digest

_MEGABYTE = 1_000_000


class ClipShelf:
    """One H.264 clip (stock, SCOPE, difference) per policy and case; the oldest make room for new ones."""

    def __init__(self, folder: Path, max_megabytes: float) -> None:
        """Keeps clips in `folder`, which is made with the first one; 0 megabytes keep none."""
        self.folder = folder
        self.max_bytes = int(max_megabytes * _MEGABYTE)

    def path(self, policy: dict[str, Any], prompt: str, seed: int, preparation: dict[str, Any] | None = None) -> Path:
        """Where the clip of a policy (as JSON, as what the pipeline is set up with) on a case is, if it was kept."""
        case = digest({"prompt": prompt, "seed": seed})
        return self.folder / f"{policy_digest(policy, preparation)}-{case}.mp4"

    def keep(
        self,
        policy: dict[str, Any],
        prompt: str,
        seed: int,
        make: Callable[[], bytes],
        preparation: dict[str, Any] | None = None,
    ) -> None:
        """Writes the clip that `make` gives, and drops the oldest ones for it where they would be too many."""
        if not self.max_bytes:
            return
        write_atomically(self.path(policy, prompt, seed, preparation), make())
        found = []
        for path in self.folder.glob("*.mp4"):
            # Another process may be making room at the same time.
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat(), path))
        total = 0
        for about, path in sorted(found, key=lambda entry: entry[0].st_mtime_ns, reverse=True):
            total += about.st_size
            if total > self.max_bytes:
                path.unlink(missing_ok=True)
