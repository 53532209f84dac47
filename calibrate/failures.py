"""Failures that a user can cause or mend, each turned into one sentence."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy.exc

from calibrate.errors import CalibrateError
from calibrate.store import database_failure
from scope_runtime import ScopeError, ScopeWarning


@contextmanager
def explained() -> Iterator[None]:
    """Raises `CalibrateError` in place of expected failures; all others are faults of the program and pass."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ScopeWarning)
            yield
    except ScopeError as error:
        raise CalibrateError(str(error)) from error
    except sqlalchemy.exc.OperationalError as error:
        raise CalibrateError(f"storage: {database_failure(error)}") from error
    except optuna.exceptions.StorageInternalError as error:
        # Optuna wraps what the database said.
        raise CalibrateError(f"storage: {database_failure(error.__cause__ or error)}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CalibrateError("The disk is full: free some space and run the same command again.") from error
        if isinstance(error, PermissionError):
            raise CalibrateError(f"No permission for {error.filename}: choose a folder of your own.") from error
        raise
