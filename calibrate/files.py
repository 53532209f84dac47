"""Files that are either complete or absent."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a temporary file beside `path` and renames it, so that no reader and no crash sees half of it.

    Raises:
        OSError: If the folder cannot be written or the disk is full; `path` is then as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # temporary files are private, results are not
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of a file, for one who knows that nobody else is writing it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        leftover.unlink(missing_ok=True)


def digest(data: Any) -> str:
    """A short, stable name for plain JSON data: equal data give equal digests on every machine."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def folder_digest(folder: Path, pattern: str = "*") -> str:
    """A digest of a folder's file names, sizes and samples of their content; a second for 30 GB of weights."""
    chunk = 1 << 16
    seen = hashlib.sha256()
    for path in sorted(p for p in folder.rglob(pattern) if p.is_file()):
        size = path.stat().st_size
        seen.update(f"{path.relative_to(folder).as_posix()}:{size};".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - chunk)):
                file.seek(start)
                seen.update(file.read(chunk))
    return seen.hexdigest()[:16]
