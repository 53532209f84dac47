"""Reading and writing the records of one study."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, inspect, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from calibrate.errors import CalibrateError
from calibrate.files import digest
from calibrate.store.models import DriverRecord, Environment, Generation, GenerationDetail, ProfileRecord, StudyRecord
from calibrate.store.optuna_tables import STUDIES, refuse_foreign
from calibrate.store.storage import Storage

FULL_COMPUTE = "full-compute"
# Kinds of generations: policies on search cases; on guarantee cases, and the stock clips that these are held against.
CANDIDATE = "candidate"
GUARANTEE = "guarantee"
GUARANTEE_STOCK = "guarantee_stock"
# Stock clips that were made once more beside a pipeline that is set up otherwise, for their time.
PAIRED_STOCK = "paired_stock"
_STOCK = ("stock", PAIRED_STOCK)
PAIRED = "paired"
"""Whether the stock clip was made once more beside a generation, for its time, among its metrics."""
# What tells generations apart, beside the times at which they ran.
_NAMED_BY = ("study_id", "kind", "policy_digest", "prompt_digest", "seed", "state")
PREPARATION = "preparation"
"""Under this name settings say what the pipeline was set up with; see `scope_runtime.Preparation`."""
CONTENT = "content"
"""Under this name a study's model says what its parts are, by digests; before, it had one digest, of file names too."""


def policy_digest(policy: dict[str, Any] | None, preparation: dict[str, Any] | None = None) -> str:
    """The name under which a policy's measurements are found again.

    Args:
        policy: As JSON; None is full computation.
        preparation: What the pipeline was set up with beyond how it was loaded, as its settings have it.
    """
    if preparation is not None:
        return digest({"policy": policy, "preparation": preparation})
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
            CalibrateError: If a study of that name exists with other fixed parts or another model, whose measurements
                could not be compared with new ones; or one of Optuna's that is not ours.
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

        def update_text(session: Session) -> StudyRecord:
            record = session.scalars(select(StudyRecord).where(StudyRecord.name == name)).one()
            refuse_changes(record, fixed_parts, model)
            record.yaml_text = yaml_text
            if CONTENT not in record.model:
                record.model = model
            return record

        refuse_foreign(storage, name, lambda session: _find(session, name) is not None)
        _add_unless_there(storage, new)
        return cls(storage, storage.transaction(update_text))

    @classmethod
    def find_study(cls, storage: Storage, name: str) -> Store:
        """Finds a study that has been started.

        Raises:
            CalibrateError: If there is none of that name, or one of Optuna's that is not ours.
        """
        record = recorded(storage, name)
        if record is None:
            raise CalibrateError(f"name: study {name!r} has not been started; start it with `scope-calibrate run`.")
        return cls(storage, record)

    def delete(self) -> None:
        """Removes the study with everything that was recorded for it."""
        # The database removes what hangs on the study; loading it first would take long.
        removal = delete(StudyRecord).where(StudyRecord.id == self.study.id)
        self.storage.transaction(lambda session: session.execute(removal))

    def rename(self, name: str) -> None:
        """Gives the study another name, in Optuna's table too.

        Raises:
            CalibrateError: If there is a study of that name.
        """

        def change(session: Session) -> None:
            session.execute(update(StudyRecord).where(StudyRecord.id == self.study.id).values(name=name))
            if inspect(session.connection()).has_table(STUDIES.name):
                session.execute(update(STUDIES).where(STUDIES.c.study_name == self.study.name).values(study_name=name))

        refuse_foreign(self.storage, name, lambda session: _find(session, name) is not None)
        try:
            self.storage.transaction(change)
        except IntegrityError as error:
            raise CalibrateError(f"name: there is a study {name!r} already; choose another name.") from error

    def environment(self, hardware: dict[str, Any], versions: dict[str, Any]) -> int:
        """The id of the environment, recorded once."""
        key = digest({"hardware": hardware, "versions": versions})
        query = select(Environment.id).where(Environment.digest == key)
        known = self.storage.transaction(lambda session: session.scalar(query))
        if known is not None:
            return known
        _add_unless_there(self.storage, Environment(digest=key, hardware=hardware, versions=versions))
        return self.storage.transaction(lambda session: session.scalars(query).one())

    def add(self, generation: Generation, detail: dict[str, Any] | None = None) -> Generation:
        """Records a generation of this study, with its digests filled in, and what is drawn of it, if anything."""
        generation.study_id = self.study.id
        generation.policy_digest = policy_digest(generation.policy, (generation.settings or {}).get(PREPARATION))
        generation.prompt_digest = digest(generation.prompt)
        generation.reason = None if generation.reason is None else _storable(generation.reason)
        names = [column.key for column in Generation.__mapper__.column_attrs if column.key != "id"]
        fields = {name: getattr(generation, name) for name in names}
        same = select(Generation).where(
            *(getattr(Generation, name) == fields[name] for name in (*_NAMED_BY, "started", "finished"))
        )

        def write(session: Session) -> Generation:
            # It is there already where the server was lost after it had kept it, and before it said so.
            if there := session.scalar(same):
                return there
            row = Generation(**fields)
            session.add(row)
            if detail is not None:
                session.flush()
                session.add(GenerationDetail(generation_id=row.id, detail=detail))
            return row

        return self.storage.transaction(write)

    def record(
        self, generation: Generation, detail: dict[str, Any] | None = None, completing: str | None = None
    ) -> Generation:
        """Like `add`, unless the same has been measured before; gives the one that counts.

        Args:
            generation: What was measured.
            detail: What is drawn of it.
            completing: A mapping among its metrics with entries that one from before may lack, and gets.
        """
        try:
            return self.add(generation, detail)
        except IntegrityError:
            first = self.measured(
                generation.kind,
                generation.policy,
                generation.prompt,
                generation.seed,
                metric_version=generation.metric_version,
                preparation=(generation.settings or {}).get(PREPARATION),
            )
            if first is None:
                raise
            more = (generation.metrics or {}).get(completing or "", {})
            return self.with_more(first, completing, more) if completing and more else first

    def with_more(self, generation: Generation, part: str, more: dict[str, Any]) -> Generation:
        """Adds entries to a mapping among a recorded generation's metrics."""

        def add(session: Session) -> Generation:
            row = session.get_one(Generation, generation.id)
            metrics = row.metrics or {}
            row.metrics = {**metrics, part: {**metrics.get(part, {}), **more}}
            return row

        return self.storage.transaction(add)

    def measured(
        self,
        kind: str,
        policy: dict[str, Any] | None,
        prompt: str,
        seed: int,
        *,
        metric_version: int | None = None,
        preparation: dict[str, Any] | None = None,
    ) -> Generation | None:
        """The complete measurement of a policy on a case, if there is one; None: by the newest version of figures."""
        query = (
            self._complete(kind, metric_version)
            .where(
                Generation.policy_digest == policy_digest(policy, preparation),
                Generation.prompt_digest == digest(prompt),
                Generation.seed == seed,
            )
            .order_by(Generation.metric_version.desc(), Generation.id)
            .limit(1)
        )
        return self.storage.transaction(lambda session: session.scalar(query))

    def complete(
        self, kind: str, *, metric_version: int | None = None, trials: Sequence[int] | None = None
    ) -> Sequence[Generation]:
        """The complete generations of a kind, oldest first: all, or those of one metric version, or of some trials."""
        query = self._complete(kind, metric_version).where(*of_trials(trials)).order_by(Generation.id)
        return self.storage.transaction(lambda session: session.scalars(query).all())

    def _complete(self, kind: str, metric_version: int | None) -> Select[Generation]:
        return select(Generation).where(
            Generation.study_id == self.study.id,
            Generation.kind == kind,
            Generation.state == "complete",
            *measured_by(metric_version),
        )

    def equivalents(self, *, metric_version: int | None = None) -> float:
        """Full generations' worth of block evaluations spent on baselines, fits and candidates, over all search cases.

        Stock runs that candidates were timed beside are among them.

        Args:
            metric_version: If given, candidates with another version of the quality figures do not count.
        """
        own = Generation.study_id == self.study.id, Generation.state == "complete"
        # Not each by its own stock evaluations: a generation that was ended early counts for what it did.
        full = self._full_evaluations()
        searched = and_(Generation.kind == CANDIDATE, *measured_by(metric_version))
        spent = select(func.sum(Generation.evaluations)).where(
            *own, or_(Generation.kind.in_((*_STOCK, "exact", "fit")), searched)
        )
        # Whole generations of the stock pipeline, whatever came of the candidates.
        beside = select(func.count()).where(*own, searched, Generation.metrics[PAIRED].as_boolean().is_(True))
        return self.storage.transaction(
            lambda session: (
                float(session.scalar(spent) or 0.0) / float(session.scalar(full) or math.inf)
                + float(session.scalar(beside) or 0)
            )
        )

    def guarantee_equivalents(self) -> float:
        """The same for what a guarantee was tested on, in all: stock clips and policies, beside the search's budget."""
        own = Generation.study_id == self.study.id, Generation.state == "complete"
        full = self._full_evaluations()
        spent = select(func.sum(Generation.evaluations)).where(*own, Generation.kind == GUARANTEE)
        stock = select(func.count()).where(*own, Generation.kind == GUARANTEE_STOCK)
        return self.storage.transaction(
            lambda session: (
                float(session.scalar(stock) or 0)
                + float(session.scalar(spent) or 0.0) / float(session.scalar(full) or math.inf)
            )
        )

    def _full_evaluations(self) -> Select[float]:
        """Block evaluations of a stock generation, in the mean."""
        return select(func.avg(Generation.evaluations)).where(
            Generation.study_id == self.study.id, Generation.state == "complete", Generation.kind.in_(_STOCK)
        )

    def last_activity(self) -> datetime | None:
        """When the newest generation finished."""
        query = select(func.max(Generation.finished)).where(Generation.study_id == self.study.id)
        return self.storage.transaction(lambda session: session.scalar(query))

    def counts(self) -> dict[str, int]:
        """How many generations of each kind are complete, and under `failed` how many failed."""
        query = (
            select(Generation.kind, Generation.state, func.count())
            .where(Generation.study_id == self.study.id)
            .group_by(Generation.kind, Generation.state)
        )
        counts: dict[str, int] = {}
        for kind, state, count in self.storage.transaction(lambda session: session.execute(query).all()):
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
        found = self.storage.transaction(lambda session: session.execute(query).all())
        return {reason or "unknown": count for reason, count in found}

    def keep_driver(self, host: str, process: int, state: dict[str, Any]) -> None:
        """Says which process runs the study, and what it is at; see `DriverRecord`."""

        def write(session: Session) -> None:
            session.merge(
                DriverRecord(study_id=self.study.id, host=host, process=process, state=state, seen=datetime.now(UTC))
            )

        self.storage.transaction(write)

    def driver(self) -> DriverRecord | None:
        """The process that runs the study or ran it last; None if none ever did."""
        return self.storage.transaction(lambda session: session.get(DriverRecord, self.study.id))

    def add_profile(self, trial_number: int, rule: str, path: str, profile: dict[str, Any]) -> None:
        """Records an export."""
        created = datetime.now(UTC)
        same = select(ProfileRecord.id).where(
            ProfileRecord.study_id == self.study.id, ProfileRecord.path == path, ProfileRecord.created == created
        )

        def write(session: Session) -> None:
            # It is there already where the server was lost after it had kept it, and before it said so.
            if session.scalar(same) is None:
                session.add(
                    ProfileRecord(
                        study_id=self.study.id,
                        trial_number=trial_number,
                        rule=rule,
                        path=path,
                        profile=profile,
                        created=created,
                    )
                )

        self.storage.transaction(write)

    def profiles(self) -> Sequence[ProfileRecord]:
        """The study's exports, oldest first."""
        query = select(ProfileRecord).where(ProfileRecord.study_id == self.study.id).order_by(ProfileRecord.id)
        return self.storage.transaction(lambda session: session.scalars(query).all())


def measured_by(metric_version: int | None) -> list[ColumnElement[bool]]:
    """The condition that figures have a version; none where any will do."""
    return [] if metric_version is None else [Generation.metric_version == metric_version]


def of_trials(trials: Sequence[int] | None) -> list[ColumnElement[bool]]:
    """The condition that generations belong to some trials; none where any will do."""
    return [] if trials is None else [Generation.trial_number.in_(trials)]


def _given(part: Any) -> Any:
    """A part without what is left out (None, or a choice of nothing else): new optional fields end no study."""
    if isinstance(part, dict):
        return {name: _given(value) for name, value in part.items() if value not in (None, [None])}
    return part


def _add_unless_there(storage: Storage, record: StudyRecord | Environment) -> None:
    """Adds a record with a unique name; if another process was first, its record stays."""
    with contextlib.suppress(IntegrityError):
        storage.transaction(lambda session: session.add(record))


def recorded(storage: Storage, name: str) -> StudyRecord | None:
    """A study's record, if it was started.

    Raises:
        CalibrateError: If Optuna has a study of that name that is not ours.
    """
    refuse_foreign(storage, name, lambda session: _find(session, name) is not None)
    return storage.transaction(lambda session: _find(session, name))


def _find(session: Session, name: str) -> StudyRecord | None:
    return session.scalar(select(StudyRecord).where(StudyRecord.name == name))


def _storable(text: str) -> str:
    """A text from somewhere, without what no database keeps."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _changed_parts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The parts of a model that differ; what a record from before contents were told apart does not say is let be."""
    found = [name for name in now if name in before and name != CONTENT and now[name] != before[name]]
    old, new = before.get(CONTENT), now.get(CONTENT)
    if old is not None and new is not None:
        found += [name for name in sorted({*old, *new}) if old.get(name) != new.get(name) and name not in found]
    return found


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
    changed += [f"model.{part} (what its folder holds)" for part in _changed_parts(record.model, model or {})]
    if changed:
        raise CalibrateError(
            f"{', '.join(changed)}: study {record.name!r} was started with another value; give the changed study "
            "another name, or put the old value back."
        )
