"""Who does what: a process registers as a worker, shows that it lives, and claims pieces of work.

A claim holds for as long as its worker lives. A worker that was killed falls silent, and after the grace period its
claims are taken over. Measurements stay safe even if a worker was only slow: the store keeps the first of two.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from calibrate.store import Claim, DatabaseFailed, Heartbeat, Store, WorkerRecord

# How often someone who waits for another worker looks again.
_POLL_SECONDS = 0.5


class Worker:
    """This process among the workers of a study; to be used in a `with` block."""

    def __init__(self, store: Store, heartbeat: Heartbeat) -> None:
        """Prepares the registration.

        Args:
            store: The study's records.
            heartbeat: How often to show life, and when others count as dead; equal for all workers of a study.
        """
        self.store = store
        self.heartbeat = heartbeat
        self.id = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="scope-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        def register(session: Session) -> int:
            now = self.store.storage.now(session)
            record = WorkerRecord(study_id=self.store.study.id, started=now, seen=now)
            session.add(record)
            session.flush()
            return record.id

        self.id = self.store.storage.transaction(register)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

        def take_leave(session: Session) -> None:
            session.execute(delete(Claim).where(Claim.worker_id == self.id))
            now = self.store.storage.now(session)
            session.execute(update(WorkerRecord).where(WorkerRecord.id == self.id).values(seen=now, finished=now))

        # A database that is gone has raised already; its complaint about the farewell would hide that.
        with suppress(DatabaseFailed):
            self.store.storage.transaction(take_leave, wait=False)

    def try_claim(self, work: str) -> bool:
        """Takes on a piece of work unless a living worker has it; says whether that succeeded.

        Args:
            work: Its name, at most 80 characters.
        """
        storage, study = self.store.storage, self.store.study.id
        own = Claim.study_id == study, Claim.work == work

        def take_over(session: Session) -> int | None:
            now = storage.now(session)
            over: ColumnElement[bool] = WorkerRecord.finished.is_not(None)
            if not storage.lost_within(self.heartbeat.grace):
                # Otherwise nobody could show that he lives.
                over = or_(over, WorkerRecord.seen < now - timedelta(seconds=self.heartbeat.grace))
            return session.scalar(
                update(Claim)
                .where(*own, Claim.worker_id.in_(select(WorkerRecord.id).where(over)))
                .values(worker_id=self.id, since=now)
                .returning(Claim.worker_id)
                .execution_options(synchronize_session=False)
            )

        def make(session: Session) -> None:
            session.add(Claim(study_id=study, work=work, worker_id=self.id, since=storage.now(session)))

        if storage.transaction(take_over) is not None:
            return True
        try:
            storage.transaction(make)
        except IntegrityError:
            # Its own, if the server was lost after it had kept the claim, and before it said so.
            return self.holds(work)
        return True

    def holds(self, work: str) -> bool:
        """Whether a claim is still this worker's: one that was silent for too long has lost it."""
        holder = select(Claim.worker_id).where(Claim.study_id == self.store.study.id, Claim.work == work)
        return self.store.storage.transaction(lambda session: session.scalar(holder)) == self.id

    def release(self, work: str) -> None:
        """Gives back a claim, so that others need not wait for the end of this worker."""
        own = Claim.study_id == self.store.study.id, Claim.work == work, Claim.worker_id == self.id
        self.store.storage.transaction(lambda session: session.execute(delete(Claim).where(*own)))

    @contextmanager
    def claimed(self, work: str) -> Iterator[None]:
        """Holds a claim, after waiting for it if another worker has it."""
        while not self.try_claim(work):
            self.wait()
        try:
            yield
        finally:
            self.release(work)

    def wait(self) -> None:
        """Lets a moment pass before looking again at what others do."""
        time.sleep(_POLL_SECONDS)

    def _beat(self) -> None:
        def beat(session: Session) -> None:
            now = self.store.storage.now(session)
            session.execute(update(WorkerRecord).where(WorkerRecord.id == self.id).values(seen=now))

        while not self._stop.wait(self.heartbeat.interval):
            # A database that cannot be reached for a moment is no reason to fall silent for good.
            with suppress(DatabaseFailed):
                self.store.storage.transaction(beat, wait=False)
