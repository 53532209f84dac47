"""Profiles on the Hugging Face Hub, by huggingface_hub: addresses such as ``hf://owner/name@revision/profile.json``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scope_runtime.errors import ProfileError

PREFIX = "hf://"
_FORM = f"{PREFIX}owner/name/profile.json or {PREFIX}owner/name@revision/profile.json"
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address on the Hub."""
    return os.fspath(path).startswith(PREFIX)


def download(address: str, most_bytes: int) -> Path:
    """The file behind an address, from huggingface_hub's cache where it is there already.

    Args:
        address: ``hf://owner/name/file`` or ``hf://owner/name@revision/file``.
        most_bytes: A larger file is not downloaded.

    Raises:
        ProfileError: If huggingface_hub is not installed, or the file cannot be had.
    """
    hub = _library()
    place = _parsed(hub, address)
    which = {"repo_id": place.id, "repo_type": place.type, "revision": place.revision, "filename": place.path_in_repo}
    with _told(hub, place):
        size = hub.hf_hub_download(**which, dry_run=True).file_size
        if (size or 0) > most_bytes:
            raise ProfileError("", f"{address} is too large for a profile ({size} bytes): check the address")
        return Path(hub.hf_hub_download(**which))


def upload(content: bytes, address: str, *, private: bool | None, message: str) -> str:
    """Puts a file on the Hub as one commit, in a repository that is made if there is none.

    Args:
        content: Of the file.
        address: As for `download`; a revision is a branch.
        private: Whether a new repository is; None leaves it to the account.
        message: Of the commit.

    Returns:
        The address with the commit as its revision.

    Raises:
        ProfileError: If huggingface_hub is not installed, or the Hub does not take the file.
    """
    hub = _library()
    place = _parsed(hub, address)
    api = hub.HfApi()
    with _told(hub, place):
        api.create_repo(place.id, repo_type=place.type, private=private, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=content, path_in_repo=place.path_in_repo, repo_id=place.id, repo_type=place.type,
            revision=place.revision, commit_message=message,
        )  # fmt: skip
    folder = "" if place.type == "model" else f"{place.type}s/"
    return f"{PREFIX}{folder}{place.id}@{commit.oid}/{place.path_in_repo}"


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ProfileError(
            "", f"{PREFIX} addresses take huggingface_hub: pip install 'scope-calibrate[hub]'"
        ) from error
    return huggingface_hub


def _parsed(hub: Any, address: str) -> Any:
    """The parts of an address; what is wrong is told without it, for it may hold a password."""
    try:
        place = hub.utils.parse_hf_uri(address)
    except hub.errors.HfUriError as error:
        raise ProfileError("", f"this {PREFIX} address is malformed: write {_FORM}") from error
    if place.type not in ("model", "dataset") or not place.path_in_repo:
        raise ProfileError("", f"this {PREFIX} address names no file of a repository: write {_FORM}")
    return place


@contextmanager
def _told(hub: Any, place: Any) -> Iterator[None]:
    """Raises one sentence in place of the Hub's own errors, which may quote addresses and headers."""
    try:
        yield
    except (hub.errors.HTTPError, OSError, hub.errors.EntryNotFoundError) as error:
        missing = isinstance(error, hub.errors.LocalEntryNotFoundError)
        cause = error.__cause__ if missing and isinstance(error.__cause__, hub.errors.HfHubHTTPError) else error
        problem = _problem(hub.errors, cause, place)
        raise ProfileError("", f"{PREFIX}{place.id}/{place.path_in_repo}: {problem}") from error


def _problem(errors: Any, error: BaseException, place: Any) -> str:
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated: ask for access on its page, and {_LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or none that may be read: check the name, and for a private one {_LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no revision {place.revision}: check it, or leave it out"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"there is no such file{f' at {place.revision}' if place.revision else ''}: check its name"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the Hub refuses it ({status}): {_LOGIN}, with a token that is allowed to"
        return f"the Hub answers with an error ({status}): try again later"
    if isinstance(error, OSError) and not isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)):
        return f"its copy cannot be kept ({error.strerror or type(error).__name__}): check HF_HOME"
    return "the Hub cannot be reached, and no copy is kept here: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
