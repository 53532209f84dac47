"""One call at a time: a pipeline keeps what it is doing in its own attributes, so a second call would mix with it."""

from __future__ import annotations

import sys
import threading
from types import CodeType
from typing import Any

from scope_runtime.errors import ConcurrentCallError

_BUSY = (
    "this pipeline is in the middle of another generation: a pipeline generates one video at a time, so give every "
    "thread its own, with a transformer of its own"
)


class CallGate:
    """Refuses a call of a pipeline while another one runs, before the second has touched anything.

    It stands in for ``pipe.check_inputs``, the first thing that a diffusers pipeline does. Whether the admitted call
    still runs is read off its thread's stack: an exception, however deep, ends it without telling anybody.

    Args:
        pipe: A diffusers pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._check_inputs = pipe.check_inputs
        self._lock = threading.Lock()
        self._admitted: tuple[int, int, CodeType] | None = None
        pipe.check_inputs = self._admit

    def owns(self) -> bool:
        """Whether what happens in this thread belongs to the admitted call.

        Raises:
            ConcurrentCallError: If that call runs in another thread.
        """
        if self._admitted is None:
            return True  # a pipeline that does not check its inputs
        runs = self._runs_beside(None)
        if runs and self._admitted[0] != threading.get_ident():
            raise ConcurrentCallError(_BUSY)
        return runs

    def close(self) -> None:
        """Gives ``pipe.check_inputs`` back; harmless when called twice."""
        self._pipe.__dict__.pop("check_inputs", None)

    def _admit(self, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if caller.f_code.co_name == "__call__":
            with self._lock:
                if self._runs_beside(id(caller)):
                    raise ConcurrentCallError(_BUSY)
                self._admitted = threading.get_ident(), id(caller), caller.f_code
        return self._check_inputs(*args, **kwargs)

    def _runs_beside(self, newcomer: int | None) -> bool:
        """Whether the admitted call is on its thread's stack, ``newcomer`` (the id of a frame) left aside."""
        if self._admitted is None:
            return False
        thread, admitted, code = self._admitted
        frame = sys._current_frames().get(thread)
        while frame is not None:
            # The newcomer may have been given the place in memory of a call that is over.
            if id(frame) == admitted and frame.f_code is code and admitted != newcomer:
                return True
            frame = frame.f_back
        return False
