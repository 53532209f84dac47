"""Failures that a user can cause or mend, each turned into one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy.exc

from calibrate.errors import CalibrateError
from calibrate.files import file_failure
from calibrate.memory import is_out_of_memory
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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CalibrateError(
            "Out of memory: lower generation.num_frames, height or width, take a smaller model.torch_dtype or a "
            "model.device with more memory, or end what else uses it; everything measured so far is kept."
        ) from error
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        problem = file_failure(error)
        raise CalibrateError(f"{place}{problem}." if place else f"{problem[0].upper()}{problem[1:]}.") from error
