"""Files of a study, and what to say where they cannot be read or written."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scope_runtime.files import read_text, write_atomically

__all__ = ["digest", "file_failure", "folder_digest", "read_text", "remove_leftovers", "write_atomically"]


_FAILURES = {
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "this is a folder, not a file; choose another path",
    errno.EEXIST: "a file is in the way where a folder must be; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead in a circle; choose another path",
    errno.EFBIG: "the file is too large; choose another one",
    errno.EACCES: "no permission; choose a path of your own",
    errno.EPERM: "no permission; choose a path of your own",
    errno.EROFS: "nothing can be written there; choose another path",
    errno.EDQUOT: "your share of the disk is used up; free some space and run the same command again",
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EIO: "the disk does not answer as it should; check it, or choose another path",
    errno.ESTALE: "the file system has lost it; run the same command again",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close other programs",
    errno.ENOMEM: "out of memory; close other programs",
}


def file_failure(error: OSError) -> str:
    """What the system reports of a file, and the mend: the end of a sentence that names the file."""
    return _FAILURES.get(error.errno or 0) or f"{(error.strerror or type(error).__name__).lower()}; check the path"


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of a file, for one who knows that nobody else is writing it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        leftover.unlink(missing_ok=True)


def digest(data: Any) -> str:
    """A short, stable name for plain JSON data: equal data give equal digests on every machine."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def folder_digest(folder: Path, pattern: str = "*") -> str:
    """A digest of the files below a folder, by name and content, but for hidden ones and documentation.

    Takes as long as reading them, by as many threads as there are cores.
    """
    inside = {path.relative_to(folder): path for path in folder.rglob(pattern) if path.is_file()}
    read = {
        name.as_posix(): path
        for name, path in sorted(inside.items())
        if not any(part.startswith(".") for part in name.parts) and name.suffix != ".md"
    }
    with ThreadPoolExecutor() as threads:
        return digest(dict(zip(read, threads.map(_file_digest, read.values()), strict=True)))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
