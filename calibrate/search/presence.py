"""What the process that runs a study is at, written down for those who look on."""

from __future__ import annotations

import os
import socket
from typing import Any

from calibrate.pool.pool import Activity, Pool
from calibrate.store import Store


def keep_presence(store: Store, pool: Pool, stage: str, seconds_left: float | None = None) -> None:
    """Records this process as the driver, with what each of its devices does.

    Args:
        store: The study's records.
        pool: The devices.
        stage: What they are at together.
        seconds_left: How long the stage will take, if that is known.
    """
    state = {"stage": stage, "seconds_left": seconds_left, "devices": [_told(found) for found in pool.activity()]}
    store.keep_driver(socket.gethostname(), os.getpid(), state)


def _told(found: Activity) -> dict[str, Any]:
    doing = str(found.job) if found.job is not None else "waiting" if found.ready else "starting"
    return {"device": found.device, "doing": doing, "since": found.since}
