"""Groups of the running processes."""

from typing import Any

import torch


def get_cp_group() -> Any:
    """The context-parallel group: all processes."""
    return torch.distributed.group.WORLD
