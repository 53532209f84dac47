"""Too little memory, of the host or of a device, by whichever name it is reported."""

from __future__ import annotations

import torch

# What torch's allocators for CPU, CUDA, its libraries and MPS say under the name of RuntimeError.
_WORDS = ("allocate memory", "out of memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is too little memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in said for word in _WORDS)


def release() -> None:
    """Gives back what the device's allocator keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
