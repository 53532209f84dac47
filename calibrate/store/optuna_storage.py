"""Optuna's storage in our database: as patient as ours, and with the same sentences for what goes wrong.

Optuna takes long to load, and those who only look need none of it: this file is imported where it is used.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from alembic.util import CommandError
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from calibrate.errors import CalibrateError
from calibrate.store.address import masked_url
from calibrate.store.storage import Storage, engine_options, opening_url


def open_optuna(storage: Storage) -> PatientStorage:
    """Optuna's own storage, in the same database as ours and as patient.

    Args:
        storage: Ours.

    Raises:
        CalibrateError: If the tables belong to another version of Optuna, or to another program.
    """

    def connect() -> PatientStorage:
        # Optuna makes its tables one by one; two processes that do so at once would trip over each other.
        with storage.alone():
            url = opening_url(storage.url).render_as_string(hide_password=False)
            return PatientStorage(storage, url, engine_options(storage.url))

    return storage.patiently(connect)


class PatientStorage(RDBStorage):
    """Waits for a database that is locked or lost, in each of its methods; one of them is one transaction."""

    def __init__(self, owner: Storage, url: str, engine_kwargs: dict[str, Any]) -> None:
        """Opens it, and makes Optuna's tables where they are missing.

        Args:
            owner: Ours, which knows how to wait.
            url: To open.
            engine_kwargs: See `optuna.storages.RDBStorage`.

        Raises:
            CalibrateError: If the tables belong to another version of Optuna, or to another program.
        """
        self._owner = owner
        try:
            super().__init__(url, engine_kwargs=engine_kwargs)
        except (CommandError, RuntimeError) as error:
            raise CalibrateError(
                f"storage: {masked_url(owner.url)}: its tables were made by another version of Optuna or by another "
                "program; use another database, or upgrade it with `optuna storage upgrade`."
            ) from error

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; a trial that has ended so already, before the database was lost, has been ended by this."""
        first = True

        def once() -> bool:
            nonlocal first
            again, first = not first, False
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if again and self.get_trial(trial_id).state == state:
                    return True
                raise

        return self._owner.patiently(once)


# What asks no database: that it succeeds says nothing.
_LOCAL = {
    "get_heartbeat_interval", "get_heartbeat_stale_trial_callback", "remove_session", "get_head_version",
    "get_all_versions",
}  # fmt: skip


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def patient(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self._owner.patiently(lambda: method(self, *arguments, **named))

    return patient


for _name, _method in vars(RDBStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("__") and _name not in {*vars(PatientStorage), *_LOCAL}:
        setattr(PatientStorage, _name, _patient(_method))
