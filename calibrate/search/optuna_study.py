"""Optuna's study behind ours: opened with the trials that can be compared, and what is counted of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from calibrate.errors import CalibrateError
from calibrate.quality.metrics import METRIC_VERSION, metric_version
from calibrate.results.result import RESULT, Result
from calibrate.search.plans import EXTRAS
from calibrate.search.quiet import quiet_optuna
from calibrate.store import PREPARATION, Store
from calibrate.store.optuna_storage import open_optuna
from calibrate.store.optuna_tables import OBJECTIVES, TIMED_OBJECTIVES
from scope_runtime import Policy, Preparation

# User attributes of trials, beside `RESULT`: why a candidate failed; the trial whose candidate this one repeats; how
# many processes will have died over it if the one that measures it dies now.
FAILURE, REPEATED, DEATHS = "failure", "repeated", "deaths"
# And what the pipeline is set up with, where that is anything: `calibrate.store.PREPARATION`.

PROPOSED = "replay:proposed"
"""System attribute of a trial that holds what the sampler proposed, before its parameters are all known."""


class ComparableTrials(optuna.Study):
    """Optuna's study without the complete trials whose figures have another metric version.

    They stay in the database; but counting, sampling and looking for repeats go by trials that can be compared. Those
    of a pipeline that is set up in another way are left out too.

    Attributes:
        preparation: What the pipeline of its trials is set up with, as JSON; None for nothing.
    """

    preparation: dict[str, Any] | None = None

    def ask(self, *args: Any, **more: Any) -> optuna.Trial:
        """A trial for the pipeline that is set up so."""
        trial = super().ask(*args, **more)
        if self.preparation is not None:
            trial.set_user_attr(PREPARATION, self.preparation)
        return trial

    def enqueue_trial(
        self, params: dict[str, Any], user_attrs: dict[str, Any] | None = None, skip_if_exists: bool = False
    ) -> None:
        """Queues a trial for the pipeline that is set up so."""
        own = {} if self.preparation is None else {PREPARATION: self.preparation}
        super().enqueue_trial(params, {**(user_attrs or {}), **own}, skip_if_exists)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = super()._get_trials(deepcopy, states, use_cache)
        return [trial for trial in found if self._is_own(trial) and not _measured_otherwise(trial)]

    def _is_own(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get(PREPARATION) == self.preparation

    def _pop_waiting_trial_id(self) -> int | None:
        """As Optuna's, of its own trials alone; one process drives a study, so nobody else takes them."""
        for trial in self._storage.get_all_trials(self._study_id, deepcopy=False, states=(TrialState.WAITING,)):
            if self._is_own(trial) and self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return trial._trial_id
        return None


def _measured_otherwise(trial: FrozenTrial) -> bool:
    return (
        trial.state == TrialState.COMPLETE
        and RESULT in trial.user_attrs
        and metric_version(trial.user_attrs[RESULT]) != METRIC_VERSION
    )


def open_optuna_study(
    store: Store, *, create: bool, preparation: Preparation = Preparation(), timed: bool = False
) -> optuna.Study:
    """Optuna's study of the same name in the same database, with the trials that can be compared.

    Args:
        store: Our records of the study.
        create: Whether to make it if it is not there.
        preparation: What the pipeline of its trials is set up with: those of another are left out.
        timed: Whether one that is made maximises the speed-up of denoising in place of that in block evaluations. One
            that is there keeps what it maximises.

    Raises:
        CalibrateError: If it is not there and must not be made.
    """
    with quiet_optuna():
        storage = open_optuna(store.storage)
        if create:
            study = optuna.create_study(
                study_name=store.study.name,
                storage=storage,
                directions=["maximize"] * len(OBJECTIVES),
                load_if_exists=True,
            )
            if study.metric_names is None:
                study.set_metric_names(list(TIMED_OBJECTIVES if timed else OBJECTIVES))
        try:
            opened = ComparableTrials(study_name=store.study.name, storage=storage)
        except KeyError as error:
            raise CalibrateError(
                f"name: study {store.study.name!r} has hardly been started; continue it with `scope-calibrate run`."
            ) from error
    opened.preparation = preparation.to_dict() if preparation else None
    return opened


def tell(study: optuna.Study, trial: optuna.Trial, result: Result) -> None:
    """Tells a trial's result in what its study maximises; evaluations stand beside the time in any case."""
    speedup, (evaluations, _) = result.speedup_evaluations, OBJECTIVES
    if study.metric_names == list(TIMED_OBJECTIVES):
        trial.set_user_attr(evaluations, speedup)
        speedup = result.speedup_denoise
    trial.set_user_attr(RESULT, result.to_dict())
    study.tell(trial, (speedup, result.figures["psnr_db"]))


def plain_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's own, which learns from real runs alone."""
    with quiet_optuna():
        # Trials that are running count as poor ones, so that several devices keep away from each other's candidates.
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=8
        )


def take_up(study: optuna.Study) -> list[optuna.Trial]:
    """The trials that run and that nobody has, to be gone on with: those of a process that died or was stopped.

    Those that have got no parameters yet are no loss, and end here.
    """
    found = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.params or PROPOSED in trial.system_attrs or "fixed_params" in trial.system_attrs:
            found.append(optuna.trial.Trial(study, trial._trial_id))
        else:
            study.tell(trial.number, state=TrialState.FAIL)
    return found


def enqueue(study: optuna.Study, candidates: Sequence[Mapping[str, Any]]) -> None:
    """Queues candidates to be tried before the search draws its own; ones that it already has are left out.

    What it has from before the present metric version, or lost before there was one driver, is tried again.
    """
    trials = study.get_trials(deepcopy=False)
    there = [_asked_for(trial) for trial in trials if trial.state != TrialState.FAIL or FAILURE in trial.user_attrs]
    for parameters in candidates:
        if dict(parameters) not in there:
            study.enqueue_trial(dict(parameters))
            there.append(dict(parameters))


def count(study: optuna.Study) -> tuple[int, int]:
    """What the budget counts, and what has ended.

    Returns:
        Different candidates that were measured or failed; trials that ended with a result or a reason, repeats of
        earlier candidates included.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    results = [trial.user_attrs[RESULT]["trial"] for trial in trials if _has_result(trial)]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and FAILURE in trial.user_attrs]
    different = len(set(results)) + len({_told_apart(trial) for trial in failed})
    return different, len(results) + len(failed)


def known_result(study: optuna.Study, policy: Policy) -> Result | None:
    """What a trial with the same policy came to; a result counts as soon as it is written down."""
    wanted = policy.to_dict()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)):
        found = trial.user_attrs.get(RESULT)
        if found is not None and found["policy"] == wanted and metric_version(found) == METRIC_VERSION:
            return Result.from_dict(found)
    return None


def _told_apart(trial: FrozenTrial) -> object:
    """Equal for trials of one candidate; plans with equal numbers differ in their rows."""
    return frozenset(trial.params.items()), str(trial.user_attrs.get(EXTRAS))


def _asked_for(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a trial was queued with, or else those that it drew."""
    return trial.system_attrs.get("fixed_params", trial.params)


def _has_result(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and RESULT in trial.user_attrs
