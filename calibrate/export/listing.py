"""All generations of a study as text, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select

from calibrate.store import Environment, Generation, Store

FORMATS = ("csv", "json")

_COLUMNS = (
    "id", "kind", "state", "reason", "trial_number", "prompt", "seed", "policy", "evaluations", "stock_evaluations",
    "seconds_denoise", "seconds_decode", "seconds_end_to_end", "stock_seconds_denoise", "metrics", "metric_version",
    "settings", "started", "finished",
)  # fmt: skip
_ROWS_AT_ONCE = 1000


def render(store: Store, form: str) -> Iterator[str]:
    """The generations of a study, one line after the other, oldest first.

    Args:
        store: The study's records.
        form: `csv`, with a header and nested values as JSON; or `json`, one object per line.
    """
    if form == "csv":
        yield _csv_line([*_COLUMNS, "hardware", "versions"])
    query = (
        select(Generation, Environment)
        .join(Environment, Environment.id == Generation.environment_id)
        .where(Generation.study_id == store.study.id)
        .order_by(Generation.id)
        .execution_options(yield_per=_ROWS_AT_ONCE)
    )
    with store.storage.reading() as session:
        for generation, environment in session.execute(query):
            record: dict[str, Any] = {name: getattr(generation, name) for name in _COLUMNS}
            record |= {name: record[name].isoformat() for name in ("started", "finished")}
            record |= {"hardware": environment.hardware, "versions": environment.versions}
            if form == "csv":
                yield _csv_line([_cell(value) for value in record.values()])
            else:
                yield json.dumps(record, allow_nan=False) + "\n"


def _cell(value: Any) -> Any:
    return json.dumps(value, allow_nan=False) if isinstance(value, dict) else value


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
