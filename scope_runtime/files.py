"""Files that are read within bounds, and that are either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def read_text(path: str | os.PathLike[str], most_bytes: int) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put before it.

    Args:
        path: The file.
        most_bytes: What it may hold; no more is read, of a device that never ends neither.

    Raises:
        OSError: If it cannot be read, or holds more (``errno.EFBIG``).
        UnicodeDecodeError: If it is no UTF-8.
    """
    with Path(path).open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return content.decode("utf-8-sig")


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Writes a temporary file beside `path` and renames it, so that no reader and no crash sees half of it.

    Args:
        path: The file.
        content: All of it, or one part after the other.

    Raises:
        OSError: Naming `path`, if the folder cannot be written or the disk is full; `path` is then as it was before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines((content,) if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # temporary files are private, results are not
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
    except OSError as error:
        # What failed names the temporary file, or nothing at all.
        error.filename, error.filename2 = str(path), None
        raise


def temporary_name(path: Path) -> str:
    """A name as long as that under which `write_atomically` writes a file first."""
    return f".{path.name}.{'x' * 8}"
