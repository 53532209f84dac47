"""Reading and writing the records of one study."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, inspect, or_, select, update
from sqlalchemy.exc import IntegrityError

from calibrate.errors import CalibrateError
from calibrate.files import digest
from calibrate.store.models import Environment, Generation, GenerationDetail, ProfileRecord, StudyRecord, WorkerRecord
from calibrate.store.optuna_tables import STUDIES
from calibrate.store.storage import Heartbeat, Storage

FULL_COMPUTE = "full-compute"


def policy_digest(policy: dict[str, Any] | None) -> str:
    """The name under which a policy's measurements are found again; None is full computation."""
    return FULL_COMPUTE if policy is None else digest(policy)


class Store:
    """The records of one study in an open database."""

    def __init__(self, storage: Storage, study: StudyRecord) -> None:
        self.storage = storage
        self.study = study

    @classmethod
    def open_study(
        cls,
        storage: Storage,
        *,
        name: str,
        yaml_text: str,
        fixed_parts: dict[str, Any],
        settings: dict[str, Any],
        model: dict[str, Any],
    ) -> Store:
        """Finds the study by name, or makes it.

        Raises:
            CalibrateError: If a study of that name exists with other fixed parts or another model; its measurements
                could not be compared with new ones.
        """
        new = StudyRecord(
            name=name,
            yaml_text=yaml_text,
            fixed_digest=digest(fixed_parts),
            fixed_parts=fixed_parts,
            settings=settings,
            model=model,
            created=datetime.now(UTC),
        )
        _add_unless_there(storage, new)
        with storage.sessions.begin() as session:
            record = session.scalars(select(StudyRecord).where(StudyRecord.name == name)).one()
            refuse_changes(record, fixed_parts, model)
            record.yaml_text = yaml_text
        return cls(storage, record)

    @classmethod
    def find_study(cls, storage: Storage, name: str) -> Store:
        """Finds a study that has been started.

        Raises:
            CalibrateError: If there is none of that name.
        """
        with storage.sessions() as session:
            record = session.scalar(select(StudyRecord).where(StudyRecord.name == name))
        if record is None:
            raise CalibrateError(f"name: study {name!r} has not been started; start it with `scope-calibrate run`.")
        return cls(storage, record)

    def delete(self) -> None:
        """Removes the study with everything that was recorded for it."""
        with self.storage.sessions.begin() as session:
            # The database removes what hangs on the study; loading it first would take long.
            session.execute(delete(StudyRecord).where(StudyRecord.id == self.study.id))

    def rename(self, name: str) -> None:
        """Gives the study another name, in Optuna's table too.

        Raises:
            CalibrateError: If there is a study of that name.
        """
        try:
            with self.storage.sessions.begin() as session:
                session.execute(update(StudyRecord).where(StudyRecord.id == self.study.id).values(name=name))
                if inspect(session.connection()).has_table(STUDIES.name):
                    session.execute(
                        update(STUDIES).where(STUDIES.c.study_name == self.study.name).values(study_name=name)
                    )
        except IntegrityError as error:
            raise CalibrateError(f"name: there is a study {name!r} already; choose another name.") from error

    def environment(self, hardware: dict[str, Any], versions: dict[str, Any]) -> int:
        """The id of the environment, recorded once."""
        key = digest({"hardware": hardware, "versions": versions})
        query = select(Environment.id).where(Environment.digest == key)
        with self.storage.sessions() as session:
            known = session.scalar(query)
        if known is not None:
            return known
        _add_unless_there(self.storage, Environment(digest=key, hardware=hardware, versions=versions))
        with self.storage.sessions() as session:
            return session.scalars(query).one()

    def add(self, generation: Generation, detail: dict[str, Any] | None = None) -> Generation:
        """Records a generation of this study, with its digests filled in, and what is drawn of it, if anything."""
        generation.study_id = self.study.id
        generation.policy_digest = policy_digest(generation.policy)
        generation.prompt_digest = digest(generation.prompt)
        with self.storage.sessions.begin() as session:
            session.add(generation)
            if detail is not None:
                session.flush()
                session.add(GenerationDetail(generation_id=generation.id, detail=detail))
        return generation

    def record(self, generation: Generation, detail: dict[str, Any] | None = None) -> Generation:
        """Like `add`, unless another worker has measured the same meanwhile; gives the one that counts."""
        try:
            return self.add(generation, detail)
        except IntegrityError:
            first = self.measured(
                generation.kind,
                generation.policy,
                generation.prompt,
                generation.seed,
                metric_version=generation.metric_version,
            )
            if first is None:
                raise
            return first

    def measured(
        self, kind: str, policy: dict[str, Any] | None, prompt: str, seed: int, *, metric_version: int | None = None
    ) -> Generation | None:
        """The complete measurement of a policy on a case, if there is one; None: by the newest version of figures."""
        query = (
            self._complete(kind, metric_version)
            .where(
                Generation.policy_digest == policy_digest(policy),
                Generation.prompt_digest == digest(prompt),
                Generation.seed == seed,
            )
            .order_by(Generation.metric_version.desc(), Generation.id)
            .limit(1)
        )
        with self.storage.sessions() as session:
            return session.scalar(query)

    def complete(self, kind: str, *, metric_version: int | None = None) -> Sequence[Generation]:
        """All complete generations of a kind, or those with one version of the quality figures, oldest first."""
        with self.storage.sessions() as session:
            return session.scalars(self._complete(kind, metric_version).order_by(Generation.id)).all()

    def _complete(self, kind: str, metric_version: int | None) -> Select[Generation]:
        return select(Generation).where(
            Generation.study_id == self.study.id,
            Generation.kind == kind,
            Generation.state == "complete",
            *measured_by(metric_version),
        )

    def equivalents(self, *, metric_version: int | None = None) -> float:
        """Full generations' worth of block evaluations spent on baselines and candidates, over all search cases.

        Args:
            metric_version: If given, candidates with another version of the quality figures do not count.
        """
        own = Generation.study_id == self.study.id, Generation.state == "complete"
        # Not each by its own stock evaluations: a generation that was ended early counts for what it did.
        full = select(func.avg(Generation.evaluations)).where(*own, Generation.kind == "stock")
        searched = and_(Generation.kind == "candidate", *measured_by(metric_version))
        spent = select(func.sum(Generation.evaluations)).where(
            *own, or_(Generation.kind.in_(("stock", "exact")), searched)
        )
        with self.storage.sessions() as session:
            return float(session.scalar(spent) or 0.0) / float(session.scalar(full) or math.inf)

    def last_activity(self) -> datetime | None:
        """When the newest generation finished."""
        query = select(func.max(Generation.finished)).where(Generation.study_id == self.study.id)
        with self.storage.sessions() as session:
            return session.scalar(query)

    def counts(self) -> dict[str, int]:
        """How many generations of each kind are complete, and under `failed` how many failed."""
        query = (
            select(Generation.kind, Generation.state, func.count())
            .where(Generation.study_id == self.study.id)
            .group_by(Generation.kind, Generation.state)
        )
        counts: dict[str, int] = {}
        with self.storage.sessions() as session:
            for kind, state, count in session.execute(query):
                key = kind if state == "complete" else "failed"
                counts[key] = counts.get(key, 0) + count
        return counts

    def failures(self) -> dict[str, int]:
        """How many generations failed, by reason, the most frequent first."""
        query = (
            select(Generation.reason, func.count())
            .where(Generation.study_id == self.study.id, Generation.state == "failed")
            .group_by(Generation.reason)
            .order_by(func.count().desc())
        )
        with self.storage.sessions() as session:
            return {reason or "unknown": count for reason, count in session.execute(query)}

    def workers(self, heartbeat: Heartbeat) -> int:
        """How many workers are at it."""
        with self.storage.sessions() as session:
            silent = self.storage.now(session) - timedelta(seconds=heartbeat.grace)
            query = select(func.count()).where(
                WorkerRecord.study_id == self.study.id, WorkerRecord.finished.is_(None), WorkerRecord.seen >= silent
            )
            return session.execute(query).scalar_one()

    def add_profile(self, trial_number: int, rule: str, path: str, profile: dict[str, Any]) -> None:
        """Records an export."""
        with self.storage.sessions.begin() as session:
            session.add(
                ProfileRecord(
                    study_id=self.study.id,
                    trial_number=trial_number,
                    rule=rule,
                    path=path,
                    profile=profile,
                    created=datetime.now(UTC),
                )
            )

    def profiles(self) -> Sequence[ProfileRecord]:
        """The study's exports, oldest first."""
        query = select(ProfileRecord).where(ProfileRecord.study_id == self.study.id).order_by(ProfileRecord.id)
        with self.storage.sessions() as session:
            return session.scalars(query).all()


def measured_by(metric_version: int | None) -> list[ColumnElement[bool]]:
    """The condition that figures have a version; none where any will do."""
    return [] if metric_version is None else [Generation.metric_version == metric_version]


def _given(part: Any) -> Any:
    """A part without what is left out (None, or a choice of nothing else): new optional fields end no study."""
    if isinstance(part, dict):
        return {name: _given(value) for name, value in part.items() if value not in (None, [None])}
    return part


def _add_unless_there(storage: Storage, record: StudyRecord | Environment) -> None:
    """Adds a record with a unique name; if another process was first, its record stays."""
    with contextlib.suppress(IntegrityError), storage.sessions.begin() as session:
        session.add(record)


def refuse_changes(record: StudyRecord, fixed_parts: dict[str, Any], model: dict[str, Any] | None = None) -> None:
    """Checks that a study can be continued.

    Args:
        record: As it was started.
        fixed_parts: What the study file says now.
        model: What its folder holds now, if that is known.

    Raises:
        CalibrateError: If something differs; its measurements could not be compared with new ones.
    """
    before = record.fixed_parts
    changed = [field for field, value in fixed_parts.items() if _given(before.get(field)) != _given(value)]
    if model is not None and record.model != model:
        changed.append("model (the files in its folder)")
    if changed:
        raise CalibrateError(
            f"{', '.join(changed)}: study {record.name!r} was started with another value; give the changed study "
            "another name, or put the old value back."
        )
