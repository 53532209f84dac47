"""A study as one run of MLflow, for who compares runs there: parameters, figures, profile and what lies beside it.

MLflow is told and never asked: what decides is in the study's own database. A server that fails costs a warning.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrate.errors import CalibrateError
from calibrate.progress import Narrator
from calibrate.store import StudyRecord, database_file
from calibrate.study.outputs import left_beside, require_file
from calibrate.study.study_file import Study, StudyFile
from scope_runtime import Profile

EXPERIMENT = "scope-calibrate"
"""The MLflow experiment that all studies are runs of."""

_FIELD = "tracking.mlflow"
_AT_ONCE = 100  # what a server takes in one request
# MLflow reports home by default, and waits for a server for minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def require_tracking(file: StudyFile, address: str) -> None:
    """Makes sure that MLflow can be told of a study; a database file is not made by that.

    Raises:
        CalibrateError: If mlflow is not installed, the server does not answer or the file cannot be written.
    """
    client = _library()
    database = _database(address)
    if database is not None:
        require_file(file, database, _FIELD)
        if not database.exists():
            return
    try:
        client(tracking_uri=address).search_experiments(max_results=1)
    except Exception as error:  # whatever a server and its transport may raise
        raise CalibrateError(
            f"{_FIELD}: nothing answers there as MLflow does ({type(error).__name__}); check the address, the "
            "account (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN), or leave "
            "tracking out."
        ) from error


class Tracked:
    """One run of MLflow. What goes wrong with it is told once, and whatever is tracked goes on."""

    def __init__(self, file: StudyFile, record: StudyRecord, narrator: Narrator) -> None:
        """Begins a run, or goes on with the one of this study that is there.

        Args:
            file: The study, whose `tracking` says where.
            record: The study's own.
            narrator: Told of the first failure.
        """
        assert file.study.tracking is not None
        self._narrator = narrator
        self._failed = False
        self._run: str | None = None  # until MLflow has one
        with self._tolerated():
            self._client = _library()(tracking_uri=file.study.tracking.mlflow)
            self._run = self._found(file.study, record)
            self._describe(file)

    def finish(self, profile: Profile, path: Path) -> None:
        """Hands over a profile's figures, and the files that an export has left.

        Args:
            profile: The profile.
            path: Where it is.
        """
        if self._run is None:
            return
        with self._tolerated():
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            figures = figures_of(profile.evidence)
            self._client.log_batch(self._run, metrics=[Metric(key, value, now, 0) for key, value in figures.items()])
            for left in left_beside(path):
                self._client.log_artifact(self._run, str(left))

    def end(self, status: str) -> None:
        """Ends the run as ``FINISHED``, ``FAILED`` or ``KILLED``; `Tracked` again makes it go on."""
        if self._run is None:
            return
        with self._tolerated():
            self._client.set_terminated(self._run, status)

    def _found(self, study: Study, record: StudyRecord) -> str:
        """The study's run: one that goes on, or a new one with all that cannot change while the study lasts."""
        from mlflow.entities import Param

        own = {"scope.study": study.name, "scope.digest": record.fixed_digest, "scope.created": str(record.created)}
        experiment = self._experiment(study)
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in own.items())
        there = self._client.search_runs([experiment], wanted, max_results=1)
        if there:
            run = str(there[0].info.run_id)
            self._client.update_run(run, status="RUNNING")
            return run
        run = str(self._client.create_run(experiment, tags=own, run_name=study.name).info.run_id)
        fixed = {**record.fixed_parts, "search_cases": len(study.search_cases)}
        params = [Param(key, value) for key, value in _flat(fixed).items()]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(run, params=params[start : start + _AT_ONCE])
        return run

    def _describe(self, file: StudyFile) -> None:
        """What may be another from one run of the command to the next, and so is no parameter of MLflow's."""
        from mlflow.entities import RunTag

        parts = {"floors", "budget", "export", "guarantee"}
        changing = file.study.model_dump(mode="json", include=parts, exclude_none=True)
        self._client.log_batch(self._run, tags=[RunTag(key, value) for key, value in _flat(changing).items()])
        self._client.log_text(self._run, file.masked_text, "study.yaml")

    def _experiment(self, study: Study) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        assert study.tracking is not None
        database = _database(study.tracking.mlflow)
        # A server knows where its files go; of a database file MLflow would put them into the working directory.
        place = database.absolute().with_suffix(".artifacts").as_uri() if database else None
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=place))

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a server and its transport may raise
            if not self._failed:
                self._narrator.say(
                    f"Warning: {_FIELD}: MLflow could not be told ({type(error).__name__}); the study goes on without."
                )
            self._failed = True


@contextmanager
def tracked(file: StudyFile, record: StudyRecord, narrator: Narrator) -> Iterator[Tracked | None]:
    """Tells MLflow of what is done inside, if the study asks for it; None if it does not."""
    if file.study.tracking is None:
        yield None
        return
    run = Tracked(file, record, narrator)
    try:
        yield run
    except BaseException as error:
        run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.end("FINISHED")


def figures_of(evidence: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a profile's evidence as MLflow takes them: numbers by name."""
    numbers = {key: value for key, value in evidence.items() if isinstance(value, (int, float))}
    scores = {f"score.{name}": value for name, value in evidence.get("scores", {}).items()}
    return {key: float(value) for key, value in (numbers | scores).items()}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted names, as text that is short enough for MLflow."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)[:500]}
    return flat


def _database(address: str) -> Path | None:
    return database_file(address) if address.startswith("sqlite:") else None


def _library() -> Any:
    """MLflow's client, a class."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise CalibrateError(f"{_FIELD} takes mlflow: pip install 'scope-calibrate[mlflow]'.") from error
    return MlflowClient
