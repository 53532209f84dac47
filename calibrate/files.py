"""Files of a study, and what to say where they cannot be read or written."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
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
