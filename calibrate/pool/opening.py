"""Which pool a command runs on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from calibrate.errors import CalibrateError
from calibrate.families import load_target
from calibrate.pool.here import Here
from calibrate.pool.pool import Pool, Where
from calibrate.spec.generation import Generation, ModelSpec


def open_pool(folder: Path, spec: ModelSpec, generation: Generation, where: Where, told: Callable[[str], None]) -> Pool:
    """Opens a pool of devices that load a study's model when they get their first job.

    Args:
        folder: `model.path`.
        spec: Family, data type, device and number of CPU threads.
        generation: What all generations share.
        where: What the command line says.
        told: Told in one line of what becomes of devices.

    Raises:
        CalibrateError: If Ray is needed and not there, or has not as many devices.
    """
    if where.ray is None and where.devices in (None, 1):
        return Here(lambda: load_target(folder, spec, generation))
    if find_spec("ray") is None:
        raise CalibrateError(
            f"--{'ray' if where.ray else 'devices'}: more than one device needs Ray; install scope-calibrate[ray]."
        )
    from calibrate.pool.ray_pool import RayPool

    # Each process sees its own GPU alone, under the first number.
    spec = spec.model_copy(update={"device": spec.device.partition(":")[0]})
    return RayPool(
        partial(load_target, folder.absolute(), spec, generation),
        where,
        cpus=spec.threads or 1,
        gpus=int(spec.device == "cuda"),
        told=told,
    )
