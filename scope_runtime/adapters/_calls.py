"""A pipeline's calls while it is held: one at a time, looked at before anything is computed, and never copied."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any, NoReturn

from scope_runtime.errors import AttachError, ConcurrentCallError

_BUSY = (
    "this pipeline is in the middle of another generation: a pipeline generates one video at a time, so give every "
    "thread its own, with a transformer of its own"
)


_NOTHING = object()


class Shadow:
    """An attribute of one object in place of what it has there, until it is removed.

    Args:
        owner: The object.
        name: Of the attribute.
        stand_in: What stands in for it.
    """

    def __init__(self, owner: Any, name: str, stand_in: Any) -> None:
        self._owner, self._name, self._stand_in = owner, name, stand_in
        self._before = vars(owner).get(name, _NOTHING)
        setattr(owner, name, stand_in)

    @property
    def in_place(self) -> bool:
        """Whether nobody has put something else there."""
        return bool(vars(self._owner).get(self._name) == self._stand_in)

    def remove(self) -> None:
        """Puts back what was there; what others have put there meanwhile stays. Harmless when called twice."""
        if not self.in_place:
            return
        self.undo(self._owner)

    def undo(self, owner: Any) -> None:
        """Puts back what was there on the object, or on a copy of it."""
        if self._before is _NOTHING:
            delattr(owner, self._name)
        else:
            setattr(owner, self._name, self._before)


class NotCopied:
    """Base of what holds a pipeline: a copy would be held by the original, so there are none."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise AttachError(
            "this pipeline is accelerated by scope_runtime and cannot be pickled or copied as it is: do that before "
            "attaching or after closing the scope, and attach to the copy on its own"
        )


class CallGate(NotCopied):
    """Refuses a call of a pipeline while another one runs, before the second has touched anything.

    It stands in for ``pipe.check_inputs``, the first thing that a diffusers pipeline does. Whether the admitted call
    still runs is read off its thread's stack: an exception, however deep, ends it without telling anybody.

    Attributes:
        arguments: Of the admitted call by name, those at their defaults included, until `forget`.

    Args:
        pipe: A diffusers pipeline.
        look: Called when a call is admitted, before it does anything; what it raises ends the call.
    """

    def __init__(self, pipe: Any, look: Callable[[], None]) -> None:
        self._look = look
        self._check_inputs = pipe.check_inputs
        self._lock = threading.Lock()
        self._admitted: tuple[int, int, CodeType] | None = None
        self.arguments: dict[str, Any] = {}
        self._shadow = Shadow(pipe, "check_inputs", self._admit)

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

    @property
    def busy(self) -> bool:
        """Whether the admitted call still runs."""
        return self._runs_beside(None)

    @property
    def in_place(self) -> bool:
        """Whether calls still come by here."""
        return self._shadow.in_place

    def forget(self) -> None:
        """Lets go of the call's arguments, among them whatever it was given to start from."""
        self.arguments = {}

    def close(self) -> None:
        """Gives ``pipe.check_inputs`` back; harmless when called twice."""
        self._shadow.remove()

    def _admit(self, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if caller.f_code.co_name == "__call__":
            with self._lock:
                if self._runs_beside(id(caller)):
                    raise ConcurrentCallError(_BUSY)
                self._admitted = threading.get_ident(), id(caller), caller.f_code
            code, values = caller.f_code, caller.f_locals
            names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]  # without self
            self.arguments = {name: values[name] for name in names}
            self._look()
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
