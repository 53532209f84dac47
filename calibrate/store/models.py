"""The tables. All names start with `scope_`: Optuna's own (`studies`, `trials`, ...) live in the same database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, ForeignKey, Index, String, Text, TypeDecorator, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UtcDateTime(TypeDecorator[datetime]):
    """Times in UTC that come back with their time zone, also from SQLite, which stores none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back, with the time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Maps Python types to column types."""

    type_annotation_map = {dict[str, Any]: JSON, datetime: UtcDateTime, str: Text}  # noqa: RUF012


class StudyRecord(Base):
    """A study: its file as last run, and the parts that must not change while it lasts."""

    __tablename__ = "scope_study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    yaml_text: Mapped[str]
    fixed_digest: Mapped[str] = mapped_column(String(16))
    fixed_parts: Mapped[dict[str, Any]]
    settings: Mapped[dict[str, Any]]
    model: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class Environment(Base):
    """A machine with its software; equal ones share a row."""

    __tablename__ = "scope_environment"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(16), unique=True)
    hardware: Mapped[dict[str, Any]]
    versions: Mapped[dict[str, Any]]


class Generation(Base):
    """One generation: what was asked, what it cost, what it gave.

    `kind` is `stock` or `exact` for full-compute runs of a search or fit case, `fit` for a run that weights were fitted
    in, `candidate` for a policy on a search case, `guarantee` for one on a guarantee case, `guarantee_stock` for stock
    runs of these, `paired_stock` for a stock run beside a pipeline that is set up otherwise, and
    `held_out_stock`, `held_out_exact` and `held_out_scope` for the paired runs of an export.

    `metric_version` is that of `calibrate.quality.metrics` for the figures in `metrics`, and 0 where there are none.
    """

    __tablename__ = "scope_generation"
    __table_args__ = (
        # A measurement is made once: two complete rows for one policy, prompt and seed are a fault, unless the figures
        # of the one mean something else.
        Index(
            "ux_scope_generation_measured_once",
            "study_id",
            "kind",
            "policy_digest",
            "prompt_digest",
            "seed",
            "metric_version",
            unique=True,
            sqlite_where=text("state = 'complete' AND kind IN ('stock', 'exact', 'candidate')"),
            postgresql_where=text("state = 'complete' AND kind IN ('stock', 'exact', 'candidate')"),
        ),
        Index("ix_scope_generation_trial", "study_id", "trial_number"),
        Index("ix_scope_generation_finished", "study_id", "finished"),
        Index("ix_scope_generation_kind", "study_id", "kind", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("scope_study.id", ondelete="CASCADE"), index=True)
    environment_id: Mapped[int] = mapped_column(ForeignKey("scope_environment.id"))
    kind: Mapped[str] = mapped_column(String(20))
    trial_number: Mapped[int | None]
    prompt: Mapped[str]
    prompt_digest: Mapped[str] = mapped_column(String(16))
    seed: Mapped[int] = mapped_column(BigInteger)
    policy: Mapped[dict[str, Any] | None]
    policy_digest: Mapped[str] = mapped_column(String(16))
    settings: Mapped[dict[str, Any]]
    evaluations: Mapped[int | None]
    stock_evaluations: Mapped[int | None]
    seconds_denoise: Mapped[float | None]
    seconds_decode: Mapped[float | None]
    seconds_end_to_end: Mapped[float | None]
    stock_seconds_denoise: Mapped[float | None]
    metrics: Mapped[dict[str, Any] | None]
    metric_version: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(10))
    reason: Mapped[str | None]
    started: Mapped[datetime]
    finished: Mapped[datetime]

    study: Mapped[StudyRecord] = relationship()
    environment: Mapped[Environment] = relationship()


class GenerationDetail(Base):
    """What is drawn of one generation (`calibrate.measure.detail`); apart, so that reading many stays quick."""

    __tablename__ = "scope_generation_detail"

    generation_id: Mapped[int] = mapped_column(
        ForeignKey("scope_generation.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    detail: Mapped[dict[str, Any]]


class ProfileRecord(Base):
    """An exported profile, with the evidence it carries."""

    __tablename__ = "scope_profile"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("scope_study.id", ondelete="CASCADE"), index=True)
    trial_number: Mapped[int]
    rule: Mapped[str] = mapped_column(String(20))
    path: Mapped[str]
    profile: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class DriverRecord(Base):
    """The process that runs a study, or ran it last: whether it still does, `calibrate.store.lock` knows.

    `state` says what it was at when it was `seen`; see `calibrate.search.driver`.
    """

    __tablename__ = "scope_driver"

    study_id: Mapped[int] = mapped_column(
        ForeignKey("scope_study.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    host: Mapped[str]
    process: Mapped[int]
    state: Mapped[dict[str, Any]]
    seen: Mapped[datetime]
