"""Optuna's tables, read directly where its own reader would build every parameter of every trial first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import String, cast, column, func, inspect, select, table

if TYPE_CHECKING:
    from calibrate.store.store import Store

STUDIES = table("studies", column("study_id"), column("study_name"))
TRIALS = table("trials", column("trial_id"), column("number"), column("study_id"), column("state"))
ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
HEARTBEATS = table("trial_heartbeats", column("trial_id"))

# PostgreSQL keeps states as an enumeration, which does not compare with text.
_STATE = cast(TRIALS.c.state, String)


def trial_attributes(store: Store, key: str) -> Sequence[str]:
    """A user attribute of all complete trials that have it, as JSON texts in the order of the trials."""
    if not inspect(store.storage.engine).has_table(TRIALS.name):
        return []
    query = (
        select(ATTRIBUTES.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
        .join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .where(STUDIES.c.study_name == store.study.name, ATTRIBUTES.c.key == key, _STATE == "COMPLETE")
        .order_by(TRIALS.c.number)
    )
    with store.storage.sessions() as session:
        return session.scalars(query).all()


def trial_states(store: Store) -> dict[str, int]:
    """How many trials are in each of Optuna's states (``COMPLETE``, ``FAIL``, ``RUNNING``, ...)."""
    if not inspect(store.storage.engine).has_table(TRIALS.name):
        return {}
    query = (
        select(_STATE, func.count())
        .join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .where(STUDIES.c.study_name == store.study.name)
        .group_by(_STATE)
    )
    with store.storage.sessions() as session:
        return {state: count for state, count in session.execute(query)}  # noqa: C416 (rows are no pairs to mypy)
