"""Failures that a user can cause or mend, each turned into one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from calibrate.errors import CalibrateError
from calibrate.files import file_failure
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
    except (MemoryError, RuntimeError) as error:
        # It asks torch, which whoever runs out of its memory has loaded.
        from calibrate.measure.memory import is_out_of_memory

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
