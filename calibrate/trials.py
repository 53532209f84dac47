"""Looking after Optuna's trials while several workers run and die: counting them and taking over orphaned ones.

Optuna's heartbeats end the trials of workers that fell silent. Two gaps remain, which are closed here: a worker that
is killed before its trial's first heartbeat leaves a trial that Optuna never takes for stale, and one that is killed
between ending a stale trial and queueing it again loses that trial. So every failed trial that nobody gave a reason for
is queued again, by whoever looks first.

Counting trials, queueing them again and starting one are done by one worker at a time, under the claim `TURN`. Without
it, a trial that is queued again and started between two looks is counted in neither, and a place in the budget that is
taken looks free.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select

from calibrate.claims import Worker
from calibrate.results import RESULT
from calibrate.store.optuna_tables import HEARTBEATS

# User attributes of trials, beside `RESULT`: why a candidate failed; the number of a trial that was stopped by hand.
FAILURE, STOPPED = "failure", "stopped"

# The claim under which trials are counted, queued again and started.
TURN = "trials"


@dataclass(frozen=True)
class Tally:
    """How the trials of a study stand.

    Attributes:
        measured: Different candidates that were measured or failed: what the budget counts.
        finished: Trials that ended with a result or a reason, repeats of earlier candidates included.
        running: Trials that some worker has, or had until it died.
        queued: Trials that wait to be run, or to be queued again.
        lost: Those of them that have yet to be queued again.
        repeats: Those of them that were queued twice and would only repeat what has been measured.
    """

    measured: int
    finished: int
    running: int
    queued: int
    lost: int = 0
    repeats: int = 0

    @classmethod
    def of(cls, study: optuna.Study) -> Tally:
        """Counts."""
        trials = study.get_trials(deepcopy=False)
        results = [trial.user_attrs[RESULT]["trial"] for trial in trials if _has_result(trial)]
        failed = [trial for trial in trials if trial.state == TrialState.FAIL and FAILURE in trial.user_attrs]
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        known = [_asked_for(trial) for trial in trials if _has_result(trial)] if waiting else []
        lost = len(_lost(trials))
        return cls(
            measured=len(set(results)) + len({frozenset(trial.params.items()) for trial in failed}),
            finished=len(results) + len(failed),
            running=sum(trial.state == TrialState.RUNNING for trial in trials),
            queued=len(waiting) + lost,
            lost=lost,
            repeats=sum(_asked_for(trial) in known for trial in waiting),
        )

    @property
    def free(self) -> bool:
        """Whether something waits, and nothing that would have to be measured.

        A worker that stood still for longer than the grace period while it queued trials can have queued one that
        another worker, which took its claim over, has queued too.
        """
        return 0 < self.repeats == self.queued

    def has_place(self, budget: int) -> bool:
        """Whether a trial may be started, which takes what waits and draws a candidate only when nothing does.

        Args:
            budget: How many different candidates are to be measured.
        """
        waiting = self.queued - self.lost
        return self.free or self.measured + self.running + (0 if waiting else self.lost) < budget


def deaths(study: optuna.Study, trial: FrozenTrial) -> int:
    """How many workers died over this trial and those that it repeats; stopping one by hand does not count."""
    trials = {known.number: known for known in study.get_trials(deepcopy=False)}
    numbers = RetryHeartbeatStaleTrialCallback.retry_history(trial)
    return sum(trials[number].user_attrs.get(STOPPED) != number for number in numbers)


class Upkeep:
    """One worker's part in taking over what dead workers left."""

    def __init__(self, study: optuna.Study, worker: Worker) -> None:
        """Prepares for a study whose storage has heartbeats.

        Args:
            study: Optuna's study.
            worker: This process.
        """
        self._study = study
        self._worker = worker
        self._silent_since: dict[int, float] = {}

    def run(self) -> None:
        """Ends the trials of dead workers and queues them again; the caller holds `TURN`."""
        self._end_silent()
        optuna.storages.fail_stale_trials(self._study)
        for trial in _lost(self._study.get_trials(deepcopy=False)):
            # The callback appends to the trial's own history.
            RetryHeartbeatStaleTrialCallback()(self._study, copy.deepcopy(trial))

    def _end_silent(self) -> None:
        """Ends running trials that have shown no sign of life since this worker first saw them, a grace period ago.

        The time is measured here, so that clocks of other machines do not matter.
        """
        now = time.monotonic()
        silent = self._without_heartbeat()
        self._silent_since = {trial_id: self._silent_since.get(trial_id, now) for trial_id in silent}
        for trial_id, since in self._silent_since.items():
            grace = self._worker.heartbeat.grace
            if now - since > grace and not self._worker.store.storage.lost_within(grace):
                end_trial(self._study, trial_id)

    def _without_heartbeat(self) -> Collection[int]:
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        query = select(HEARTBEATS.c.trial_id).where(HEARTBEATS.c.trial_id.in_([t._trial_id for t in running]))
        seen = self._worker.store.storage.transaction(lambda session: session.scalars(query).all())
        return {trial._trial_id for trial in running}.difference(seen)


def end_trial(study: optuna.Study, trial_id: int) -> None:
    """Ends a trial in place of its worker, unless it has ended meanwhile."""
    try:
        study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return


def _asked_for(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that a trial was queued with, or else those that it drew."""
    return trial.system_attrs.get("fixed_params", trial.params)


def _has_result(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and RESULT in trial.user_attrs


def _lost(trials: Collection[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that failed without a reason and have not been queued again; ones without parameters are not missed."""
    repeated = {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and FAILURE not in trial.user_attrs
        and trial.number not in repeated
        and (trial.params or "fixed_params" in trial.system_attrs)
    ]
