"""Optuna's tables, read directly where its own reader would build every parameter of every trial first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, DateTime, Select, String, cast, column, func, inspect, select, table
from sqlalchemy.dialects.postgresql import JSONB

if TYPE_CHECKING:
    from calibrate.store.storage import Storage
    from calibrate.store.store import Store

STUDIES = table("studies", column("study_id"), column("study_name"))
TRIALS = table(
    "trials",
    *(column(name) for name in ("trial_id", "number", "study_id", "state")),
    column("datetime_complete", DateTime()),
)
ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
STUDY_ATTRIBUTES = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))
PARAMETERS = table(
    "trial_params", *(column(name) for name in ("trial_id", "param_name", "param_value", "distribution_json"))
)
HEARTBEATS = table("trial_heartbeats", column("trial_id"))

# PostgreSQL keeps states as an enumeration, which does not compare with text.
_STATE = cast(TRIALS.c.state, String)


def complete_attributes(store: Store, key: str, *, without: str | None = None) -> Sequence[str]:
    """A user attribute of all complete trials that have it, as JSON texts in the order of the trials.

    Args:
        store: The study's records.
        key: Which attribute.
        without: A field of it that the database leaves out, because reading a large one takes most of the time.
    """
    query = _attributes(store, key, without).where(_STATE == "COMPLETE").order_by(TRIALS.c.number)
    return _texts(store, query)


def attributes_of(store: Store, key: str, trials: Collection[int]) -> Sequence[str]:
    """A user attribute of the trials of these numbers, whatever became of them, as JSON texts."""
    return _texts(store, _attributes(store, key).where(TRIALS.c.number.in_(trials)))


def _attributes(store: Store, key: str, without: str | None = None) -> Select[str]:
    value: ColumnElement[str] = ATTRIBUTES.c.value_json
    if without is not None and store.storage.url.get_backend_name() == "sqlite":
        value = func.json_remove(value, f"$.{without}")
    elif without is not None:
        value = cast(cast(value, JSONB) - without, String)
    return (
        select(value)
        .select_from(ATTRIBUTES)
        .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
        .join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .where(STUDIES.c.study_name == store.study.name, ATTRIBUTES.c.key == key)
    )


def _texts(store: Store, query: Select[str]) -> Sequence[str]:
    if not inspect(store.storage.engine).has_table(TRIALS.name):
        return []
    with store.storage.sessions() as session:
        return session.scalars(query).all()


def study_attribute(store: Store, key: str) -> str | None:
    """A user attribute of Optuna's study as JSON text, if it is there."""
    if not inspect(store.storage.engine).has_table(STUDY_ATTRIBUTES.name):
        return None
    query = (
        select(STUDY_ATTRIBUTES.c.value_json)
        .join(STUDIES, STUDIES.c.study_id == STUDY_ATTRIBUTES.c.study_id)
        .where(STUDIES.c.study_name == store.study.name, STUDY_ATTRIBUTES.c.key == key)
    )
    with store.storage.sessions() as session:
        return session.scalar(query)


def trial_states(storage: Storage, study: str) -> dict[str, int]:
    """How many of a study's trials are in each of Optuna's states (``COMPLETE``, ``FAIL``, ``RUNNING``, ...)."""
    if not inspect(storage.engine).has_table(TRIALS.name):
        return {}
    query = (
        select(_STATE, func.count())
        .join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .where(STUDIES.c.study_name == study)
        .group_by(_STATE)
    )
    with storage.sessions() as session:
        return {state: count for state, count in session.execute(query)}  # noqa: C416 (rows are no pairs to mypy)
