"""Images that videos start from: where they lie, and what is in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from calibrate.errors import CalibrateError
from calibrate.files import file_failure
from calibrate.spec.generation import Case


def with_image(case: Case, field: str, folder: Path) -> Case:
    """A case whose image is found wherever the process runs, with the digest of its content.

    Args:
        case: As it was written.
        field: Where, for the sentence about an image that cannot be read.
        folder: That its image is relative to.

    Raises:
        CalibrateError: If the image is missing, or another one than the digest says.
    """
    if case.image is None:
        return case
    path = (folder / case.image).resolve()
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise CalibrateError(f"{field}: there is no {path}; check the path.") from error
    except OSError as error:
        raise CalibrateError(f"{field}: {file_failure(error)}.") from error
    if case.image_digest not in (None, found):
        raise CalibrateError(f"{field}: {path} is not the image that image_digest names; remove one of the two.")
    return case.model_copy(update={"image": str(path), "image_digest": found})
