"""Optuna's tables, read directly where its own reader would build every parameter of every trial first."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Select, String, cast, column, func, select, table
from sqlalchemy.orm import Session

from calibrate.errors import CalibrateError
from calibrate.store.storage import Storage

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
DIRECTIONS = table("study_directions", column("study_id"), column("direction"))
SYSTEM_ATTRIBUTES = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))

# What our studies maximise; by these names they are told from other people's.
OBJECTIVES = ("speed-up in block evaluations", "PSNR in dB")
# Those that may set the pipeline up in several ways, between which evaluations say nothing.
TIMED_OBJECTIVES = ("speed-up of denoising", "PSNR in dB")
# The trial's user attribute that holds its result.
RESULT = "result"

# PostgreSQL keeps states as an enumeration, which does not compare with text.
_STATE = cast(TRIALS.c.state, String)


def complete_attributes(
    storage: Storage, study: str, key: str, *, without: str | None = None
) -> Sequence[dict[str, Any]]:
    """A user attribute of all complete trials that have it, in the order of the trials.

    Args:
        storage: The database.
        study: The study's name.
        key: Which attribute.
        without: A field of it that the database leaves out, because reading a large one takes most of the time.
    """
    query = _attributes(storage, study, key, without).where(_STATE == "COMPLETE").order_by(TRIALS.c.number)
    return _decoded(storage, query)


def attributes_of(storage: Storage, study: str, key: str, trials: Collection[int]) -> Sequence[dict[str, Any]]:
    """A user attribute of the trials of these numbers, whatever became of them."""
    return _decoded(storage, _attributes(storage, study, key).where(TRIALS.c.number.in_(trials)))


def _attributes(storage: Storage, study: str, key: str, without: str | None = None) -> Select[str]:
    value: ColumnElement[str] = ATTRIBUTES.c.value_json
    if without is not None and storage.url.get_backend_name() == "sqlite":
        value = func.json_remove(value, f"$.{without}")
    elif without is not None:
        from sqlalchemy.dialects.postgresql import JSONB

        value = cast(cast(value, JSONB) - without, String)
    return (
        select(value)
        .select_from(ATTRIBUTES)
        .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
        .join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .where(STUDIES.c.study_name == study, ATTRIBUTES.c.key == key)
    )


def _decoded(storage: Storage, query: Select[str]) -> Sequence[dict[str, Any]]:
    if not storage.has_table(TRIALS.name):
        return []
    # All at once: one by one takes twice as long.
    return storage.transaction(lambda session: json.loads(f"[{','.join(session.scalars(query))}]"))


def study_attribute(storage: Storage, study: str, key: str) -> Any:
    """A user attribute of Optuna's study, or None if it is not there."""
    if not storage.has_table(STUDY_ATTRIBUTES.name):
        return None
    query = (
        select(STUDY_ATTRIBUTES.c.value_json)
        .join(STUDIES, STUDIES.c.study_id == STUDY_ATTRIBUTES.c.study_id)
        .where(STUDIES.c.study_name == study, STUDY_ATTRIBUTES.c.key == key)
    )
    return storage.transaction(lambda session: json.loads(session.scalar(query) or "null"))


def trial_states(storage: Storage, study: str) -> dict[str, int]:
    """How many of a study's trials are in each of Optuna's states (``COMPLETE``, ``FAIL``, ``RUNNING``, ...)."""
    if not storage.has_table(TRIALS.name):
        return {}
    query = (
        select(_STATE, func.count())
        .join(STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .where(STUDIES.c.study_name == study)
        .group_by(_STATE)
    )
    return storage.transaction(lambda session: dict(session.execute(query).tuples().all()))


def refuse_foreign(storage: Storage, name: str, is_started: Callable[[Session], bool]) -> None:
    """Makes sure that Optuna's study of a name, if there is one, was made by this program.

    Args:
        storage: The database.
        name: Of the study.
        is_started: Whether we have a record of it. That is always made before Optuna's study, and looked for after it.

    Raises:
        CalibrateError: If it was not; it must be neither continued nor deleted.
    """
    if not storage.has_table(TRIALS.name):
        return
    find = select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    if storage.transaction(
        lambda session: (
            (study_id := session.scalar(find)) is not None and not (is_started(session) and _is_ours(session, study_id))
        )
    ):
        raise CalibrateError(
            f"name: this database holds an Optuna study {name!r} that scope-calibrate did not make, and leaves it "
            "alone; give one of the two another name, or use another database."
        )


def _is_ours(session: Session, study_id: int) -> bool:
    """Whether an Optuna study has our objectives, or from before they had names, results of ours if it has any."""
    names = session.scalar(
        select(SYSTEM_ATTRIBUTES.c.value_json).where(
            SYSTEM_ATTRIBUTES.c.study_id == study_id, SYSTEM_ATTRIBUTES.c.key == "study:metric_names"
        )
    )
    if names is not None:
        return tuple(json.loads(names)) in (OBJECTIVES, TIMED_OBJECTIVES)
    directions = session.scalars(
        select(cast(DIRECTIONS.c.direction, String)).where(DIRECTIONS.c.study_id == study_id)
    ).all()
    if list(directions) != ["MAXIMIZE"] * len(OBJECTIVES):
        return False
    complete = select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id, _STATE == "COMPLETE")
    results = select(ATTRIBUTES.c.key).where(ATTRIBUTES.c.trial_id.in_(complete), ATTRIBUTES.c.key == RESULT)
    return session.scalar(complete.limit(1)) is None or session.scalar(results.limit(1)) is not None
