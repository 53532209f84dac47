"""What a study can promise by its records."""

from __future__ import annotations

from collections.abc import Sequence

from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.promise_table import PromiseTable, recorded_table
from calibrate.results.result import results_of_trials
from calibrate.results.sequence import SEQUENCES, sequences_in
from calibrate.store import Generation, Store
from calibrate.store.optuna_tables import study_attribute
from calibrate.study.study_file import Study


def recorded_promises(store: Store, study: Study) -> PromiseTable | None:
    """What can be promised by what was measured so far; None if the study asks for nothing, or no test was begun."""
    if study.guarantee is None:
        return None
    sequences = sequences_in(study_attribute(store.storage, store.study.name, SEQUENCES))

    def complete(kind: str, trials: Sequence[int]) -> Sequence[Generation]:
        return store.complete(kind, metric_version=METRIC_VERSION, trials=trials)

    return recorded_table(
        study.guarantee, study.floors, study.guarantee_cases, study.search_cases, sequences, complete,
        lambda trials: results_of_trials(store, trials),
    )  # fmt: skip
