"""Reading a whole database: what studies there are and everything that was measured for one of them.

Only reads, and only what is asked for. Optuna's trials are read from its tables directly, because its own reader builds
every parameter of every trial first, which takes many seconds when there are thousands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import optuna
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from calibrate.errors import CalibrateError
from calibrate.store.models import Environment, Generation, GenerationDetail, ProfileRecord, StudyRecord
from calibrate.store.optuna_tables import ATTRIBUTES, PARAMETERS, STUDIES, TRIALS, trial_states
from calibrate.store.storage import Storage
from calibrate.store.store import CANDIDATE, PAIRED_STOCK, measured_by, of_trials, policy_digest


@dataclass(frozen=True)
class Overview:
    """One study at a glance.

    Attributes:
        study: Its record.
        generations: How many of each kind are complete, and under ``failed`` how many failed.
        seconds: Wall-clock time of all its generations together.
        last_activity: When the newest generation finished.
        hardware: What most of its generations ran on; empty before the first.
        trials: How many of Optuna's trials are in each state (``complete``, ``fail``, ``running``, ``waiting``).
    """

    study: StudyRecord
    generations: Mapping[str, int]
    seconds: float
    last_activity: datetime | None
    hardware: Mapping[str, Any]
    trials: Mapping[str, int]


@dataclass(frozen=True)
class Trial:
    """One of Optuna's trials.

    Attributes:
        number: Within its study.
        state: ``COMPLETE``, ``FAIL``, ``RUNNING``, ``WAITING`` or ``PRUNED``.
        finished: When it ended.
        attributes: Its user attributes.
    """

    number: int
    state: str
    finished: datetime | None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Means:
    """Means over the generations of a kind.

    Attributes:
        generations: How many there are.
        evaluations: Block evaluations.
        seconds_denoise: Denoising.
        seconds_end_to_end: From prompt to frames.
    """

    generations: int
    evaluations: float
    seconds_denoise: float
    seconds_end_to_end: float


def pulse(storage: Storage) -> tuple[Any, ...]:
    """Changes whenever anything is recorded: what was read under an equal pulse is still true.

    Raises:
        CalibrateError: If the database file has gone away.
    """
    storage.require_file()
    queries: list[Select[*tuple[Any, ...]]] = [
        select(func.count(), func.max(StudyRecord.id)).select_from(StudyRecord),
        select(func.count(), func.max(Generation.id)).select_from(Generation),
        select(func.count(), func.max(ProfileRecord.id)).select_from(ProfileRecord),
    ]
    if storage.has_table(TRIALS.name):
        queries.append(
            select(TRIALS.c.state, func.count(), func.max(TRIALS.c.trial_id))
            .group_by(TRIALS.c.state)
            .order_by(TRIALS.c.state)
        )
    with storage.reading() as session:
        return tuple(tuple(row) for query in queries for row in session.execute(query))


def overviews(storage: Storage) -> list[Overview]:
    """All studies, the one that was last active first."""
    with storage.reading() as session:
        records = session.scalars(select(StudyRecord)).all()
        found = [_overview(storage, session, record) for record in records]
    return sorted(found, key=lambda o: o.last_activity or o.study.created, reverse=True)


def study_record(storage: Storage, name: str) -> StudyRecord:
    """A study's record.

    Raises:
        CalibrateError: If there is none of that name.
    """
    with storage.reading() as session:
        record = session.scalar(select(StudyRecord).where(StudyRecord.name == name))
    if record is None:
        raise CalibrateError(f"Study {name!r} is not in this database; it may have been deleted or renamed.")
    return record


def trials(storage: Storage, name: str, keys: Sequence[str]) -> list[Trial]:
    """Optuna's trials of a study in order, each with those of its user attributes that `keys` name."""
    if not storage.has_table(TRIALS.name):
        return []
    listed = select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, TRIALS.c.datetime_complete)
    with storage.reading() as session:
        found = {
            trial_id: Trial(number, str(state), finished)
            for trial_id, number, state, finished in session.execute(_of_study(listed, name).order_by(TRIALS.c.number))
        }
        attributes = select(ATTRIBUTES.c.trial_id, ATTRIBUTES.c.key, ATTRIBUTES.c.value_json).join(
            TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id
        )
        for trial_id, key, value in session.execute(_of_study(attributes, name).where(ATTRIBUTES.c.key.in_(keys))):
            if trial_id in found:
                found[trial_id].attributes[key] = json.loads(value)
    return list(found.values())


def parameters(storage: Storage, name: str) -> dict[int, dict[str, tuple[Any, optuna.distributions.BaseDistribution]]]:
    """Per trial number and parameter name, the value and the distribution that it was drawn from."""
    if not storage.has_table(PARAMETERS.name):
        return {}
    query = select(
        TRIALS.c.number, PARAMETERS.c.param_name, PARAMETERS.c.param_value, PARAMETERS.c.distribution_json
    ).join(TRIALS, TRIALS.c.trial_id == PARAMETERS.c.trial_id)
    found: dict[int, dict[str, tuple[Any, optuna.distributions.BaseDistribution]]] = {}
    with storage.reading() as session:
        for number, parameter, value, text in session.execute(_of_study(query, name)):
            distribution = _distribution(text)
            found.setdefault(number, {})[parameter] = (distribution.to_external_repr(value), distribution)
    return found


def means_by_kind(storage: Storage, study_id: int) -> dict[str, Means]:
    """The means of stock and exact runs, and of those that weights were fitted in.

    Their kinds are ``stock`` and ``paired_stock``, ``exact``, and ``fit``.
    """
    query = (
        select(
            Generation.kind,
            func.count(),
            func.avg(Generation.evaluations),
            func.avg(Generation.seconds_denoise),
            func.avg(Generation.seconds_end_to_end),
        )
        .where(
            Generation.study_id == study_id,
            Generation.state == "complete",
            Generation.kind.in_(("stock", PAIRED_STOCK, "exact", "fit")),
        )
        .group_by(Generation.kind)
    )
    with storage.reading() as session:
        return {
            kind: Means(count, *(float(value or 0.0) for value in means))
            for kind, count, *means in session.execute(query)
        }


def measurements(
    storage: Storage,
    study_id: int,
    policy: dict[str, Any],
    metric_version: int | None = None,
    preparation: dict[str, Any] | None = None,
) -> list[tuple[Generation, dict[str, Any]]]:
    """The complete generations under a policy, each with its detail (empty if none was kept).

    If a version of the quality figures is given, those that were measured by another one are left out. Those under
    another `preparation` of the pipeline are.

    Those of the search cases come first, then those of the held-out cases, in the order in which they were made.
    """
    query = (
        select(Generation)
        .where(
            Generation.study_id == study_id,
            Generation.state == "complete",
            Generation.kind.in_((CANDIDATE, "held_out_scope")),
            Generation.policy_digest == policy_digest(policy, preparation),
            *measured_by(metric_version),
        )
        .order_by(Generation.kind, Generation.id)
    )
    with storage.reading() as session:
        rows = session.scalars(query).all()
        details: dict[int, dict[str, Any]] = {}
        if storage.has_table(GenerationDetail.__tablename__):
            kept = select(GenerationDetail).where(GenerationDetail.generation_id.in_([row.id for row in rows]))
            details = {record.generation_id: record.detail for record in session.scalars(kept)}
    return [(row, details.get(row.id, {})) for row in rows]


def complete(
    storage: Storage, study_id: int, kind: str, metric_version: int, trials: Sequence[int]
) -> Sequence[Generation]:
    """The complete generations of a kind and of some trials whose quality figures have one version, oldest first."""
    query = (
        select(Generation)
        .where(
            Generation.study_id == study_id,
            Generation.kind == kind,
            Generation.state == "complete",
            *measured_by(metric_version),
            *of_trials(trials),
        )
        .order_by(Generation.id)
    )
    with storage.reading() as session:
        return session.scalars(query).all()


def profiles(storage: Storage, study_id: int) -> Sequence[ProfileRecord]:
    """A study's exports, oldest first."""
    query = select(ProfileRecord).where(ProfileRecord.study_id == study_id).order_by(ProfileRecord.id)
    with storage.reading() as session:
        return session.scalars(query).all()


def _overview(storage: Storage, session: Session, record: StudyRecord) -> Overview:
    own = Generation.study_id == record.id
    generations: dict[str, int] = {}
    seconds, last = 0.0, None
    spent_by_kind = func.sum(Generation.seconds_end_to_end)
    grouped = (
        select(Generation.kind, Generation.state, func.count(), spent_by_kind, func.max(Generation.finished))
        .where(own)
        .group_by(Generation.kind, Generation.state)
    )
    for kind, state, count, spent, finished in session.execute(grouped):
        key = kind if state == "complete" else "failed"
        generations[key] = generations.get(key, 0) + count
        seconds += spent or 0.0
        last = max(last, finished) if last else finished
    environment = session.scalar(
        select(Environment)
        .join(Generation, Generation.environment_id == Environment.id)
        .where(own)
        .group_by(Environment.id)
        .order_by(func.count().desc())
        .limit(1)
    )
    states = {state.lower(): count for state, count in trial_states(storage, record.name).items()}
    return Overview(record, generations, seconds, last, environment.hardware if environment else {}, states)


def _of_study(query: Select[Any], name: str) -> Select[Any]:
    """Limits a query on Optuna's trials to one study."""
    return query.where(
        TRIALS.c.study_id == select(STUDIES.c.study_id).where(STUDIES.c.study_name == name).scalar_subquery()
    )


@lru_cache(maxsize=1024)
def _distribution(text: str) -> optuna.distributions.BaseDistribution:
    return optuna.distributions.json_to_distribution(text)
