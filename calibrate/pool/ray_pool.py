"""A pool of Ray actors: one per device, on this machine or on all those of a cluster.

An actor loads its target with its first job and keeps it. One whose process or node dies is started again by Ray; the
job that it had is handed back. One that gives no sign of life, because it was stopped or its machine hangs, is killed
first.

The stock clips that candidates are compared with go through Ray's object store, once to every machine; those above
`STORE_BYTES` are read by every actor from the study's cache folder, which all machines must then see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

# Ray reads these when it is imported: it reports home by default, and takes the machine's outer address for itself.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from calibrate.errors import CalibrateError
from calibrate.families.target import Target
from calibrate.measure.baseline import Reference, read_baseline
from calibrate.pool.pool import Activity, Done, Job, Where
from calibrate.spec.generation import Case

STORE_BYTES = 256 * 2**20
"""Stock clips above this size, in bytes each, are read from the cache folder."""

# How often devices are asked whether they live, and after how much silence they are killed.
_ASK_SECONDS, _SILENCE_SECONDS = 15.0, 180.0
_POLL_SECONDS = 0.5
# An idle device takes milliseconds to say that it is there, and Ray a second or two to say that it is not.
_ANSWER_SECONDS = 5.0
# Ray itself takes three minutes to find out that nobody listens.
_CONNECT_SECONDS = 5.0
# A device that cannot even be started so many times in a row ends the run.
_MOST_STARTS = 3


@dataclass(frozen=True)
class InFolder:
    """A stock clip that is to be read from the cache folder."""

    case: Case
    path: Path


class _Device:
    """The process of one device."""

    def __init__(self, load: Callable[[], Target]) -> None:
        self._load = load
        self._target: Target | None = None
        self._read: dict[Path, Reference] = {}
        self._unwanted: int | None = None

    def alive(self) -> dict[str, Any]:
        """Where it runs."""
        context = ray.get_runtime_context()
        gpus = ",".join(str(number) for number in ray.get_gpu_ids())
        return {
            "name": f"{os.uname().nodename} {f'GPU {gpus}' if gpus else f'process {os.getpid()}'}",
            "process": os.getpid(),
            "node": context.get_node_id(),
        }

    def run(self, number: int, job: Job, reference: Reference | InFolder | None) -> Any:
        """Runs a job."""
        if self._target is None:
            self._target = self._load()
        if isinstance(reference, InFolder):
            reference = self._from_folder(reference)
        if reference is not None:
            job = dataclasses.replace(job, reference=reference)  # type: ignore[type-var]
        return job.run(self._target, lambda: self._unwanted == number)

    def stop(self, number: int) -> None:
        """Says that a job is no longer wanted, while it is run by another thread."""
        self._unwanted = number

    def _from_folder(self, there: InFolder) -> Reference:
        if there.path not in self._read:
            baseline = read_baseline(there.path, there.case)
            if baseline is None:
                raise CalibrateError(
                    f"cache: {there.path} cannot be read on {os.uname().nodename}; put `cache` into a folder that all "
                    "machines see under the same path."
                )
            self._read[there.path] = baseline.reference(there.path)
        return self._read[there.path]


@dataclass
class _Slot:
    """What is known of one device.

    Attributes:
        actor: Ray's handle.
        name: How people are told of it.
        where: What `_Device.alive` said last.
        greeting: Its answer that it is there, while it is being started.
        number: Of the job that it has.
        running: That job's outcome.
        asked: The question whether it lives that has not been answered yet.
        heard: Value of `time.monotonic` when it last gave a sign of life.
        since: Value of `time.time` at which its present state began.
        failed_starts: How many times in a row it could not be started at all.
    """

    actor: Any
    name: str
    where: dict[str, Any] = field(default_factory=dict)
    greeting: Any = None
    number: int | None = None
    running: Any = None
    asked: Any = None
    heard: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.time)
    failed_starts: int = 0


class RayPool:
    """Devices that are Ray actors; see the module's text."""

    here = False

    def __init__(
        self,
        load: Callable[[], Target],
        where: Where,
        *,
        cpus: int,
        gpus: int,
        told: Callable[[str], None],
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        """Prepares the pool; `__enter__` starts it.

        Args:
            load: Gives a device's target.
            where: Which cluster, and how many of its devices.
            cpus: CPU cores that a device takes.
            gpus: GPUs that a device takes.
            told: Told in one line of what becomes of devices.
            silence_seconds: After how long a device that gives no sign of life is started again.
        """
        self._load = load
        self._where = where
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._told = told
        self._silence_seconds = silence_seconds
        self._slots: list[_Slot] = []
        self._waiting: deque[int] = deque()
        self._jobs: dict[int, Job] = {}
        self._count = 0
        self._sent: dict[int, tuple[Any, Any]] = {}
        self._told_of_clips = False
        self._dropped: deque[Job] = deque()
        self._news = False
        self._held = contextlib.ExitStack()
        self.changed: Callable[[], None] = lambda: None
        self.size = where.devices or 0

    def __enter__(self) -> Self:
        try:
            # Ray prints what it has to say to standard output, which is for results.
            self._held.enter_context(contextlib.redirect_stdout(sys.stderr))
            with _signals_kept():
                self._connect()
            room = self._room()
            self.size = self._where.devices or room
            if not room or self.size > room:
                raise self._too_many(self.size, self._told_room())
            self._slots = [_Slot(self._start(), f"device {number}") for number in range(self.size)]
            for slot in self._slots:
                self._greet(slot)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for slot in self._slots:
            with contextlib.suppress(Exception):
                ray.kill(slot.actor)
        with contextlib.suppress(Exception):
            ray.shutdown()
        self._held.close()

    def submit(self, job: Job) -> None:
        """See `Pool.submit`."""
        self._count += 1
        self._jobs[self._count] = job
        self._waiting.append(self._count)
        self._assign()

    def next(self) -> Done:
        """See `Pool.next`."""
        while True:
            if self._dropped:
                return Done(self._dropped.popleft(), died=True)
            self._assign()
            self._ask_for_life()
            if self._news:
                self._news = False
                self.changed()
            pending = [ref for slot in self._slots for ref in (slot.running, slot.greeting) if ref is not None]
            ended, _ = ray.wait(pending, timeout=_POLL_SECONDS) if pending else ([], [])
            if not pending:
                time.sleep(_POLL_SECONDS)
            for ref in ended:
                slot = next(slot for slot in self._slots if ref in (slot.running, slot.greeting))
                if ref == slot.greeting:
                    self._welcome(slot)
                else:
                    return self._ended(slot)

    def stop(self, job: Job) -> None:
        """See `Pool.stop`."""
        waiting = next((number for number in self._waiting if self._jobs[number] is job), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self._dropped.append(self._jobs.pop(waiting))
        for slot in self._slots:
            if slot.number is not None and self._jobs[slot.number] is job:
                slot.actor.stop.options(concurrency_group="beside").remote(slot.number)

    def activity(self) -> Sequence[Activity]:
        """See `Pool.activity`."""
        return [
            Activity(
                slot.name,
                None if slot.number is None else self._jobs[slot.number],
                slot.since,
                ready=slot.greeting is None,
            )
            for slot in self._slots
        ]

    def _connect(self) -> None:
        """Joins the cluster, or starts one on this machine that ends with this process."""
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        try:
            if self._where.ray is not None:
                _refuse_silence(self._where.ray)
                ray.init(self._where.ray, **options)
                return
            devices, cores = self._where.devices or 1, os.cpu_count() or 1
            if not self._needs["GPU"] and devices * self._needs["CPU"] > cores:
                raise self._too_many(devices, self._told_amounts(0, cores))
            # Not the cluster that the environment or an earlier run's file names; and Ray's processes give way to all
            # others of a machine unless they are told not to.
            ray.init("local", include_dashboard=False, _system_config={"worker_niceness": 0}, **options)
        # Ray ends the process where a cluster's head does not answer.
        except (RayError, ConnectionError, TimeoutError, RuntimeError, ValueError, OSError, SystemExit) as error:
            place = f"--ray: {self._where.ray}" if self._where.ray else "--devices: this machine"
            told = "it does not answer" if isinstance(error, SystemExit) else _first_line(error)
            raise CalibrateError(
                f"{place}: no Ray cluster could be {'joined' if self._where.ray else 'started'} ({told}); "
                + ("check the address, or start one with `ray start --head`." if self._where.ray else "see Ray's logs.")
            ) from error

    def _too_many(self, devices: int, room: str) -> CalibrateError:
        if not devices:
            return CalibrateError(
                f"--ray: a device takes {self._told_needs(1)}, and no machine of {self._where.ray} has as much "
                f"({room} in all); start nodes that have, or lower model.threads."
            )
        return CalibrateError(
            f"--devices: {devices} devices take {self._told_needs(devices)}, and there are {room}; ask for fewer, or "
            "lower model.threads."
        )

    def _room(self) -> int:
        """How many devices the cluster has room for, machine by machine."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needs = {name: amount for name, amount in self._needs.items() if amount}
        return sum(int(min(node.get(name, 0) // amount for name, amount in needs.items())) for node in nodes)

    def _told_needs(self, devices: int) -> str:
        return self._told_amounts(devices * self._needs["GPU"], devices * self._needs["CPU"])

    def _told_room(self) -> str:
        found = ray.cluster_resources()
        return self._told_amounts(int(found.get("GPU", 0)), int(found.get("CPU", 0)))

    def _told_amounts(self, gpus: int, cores: int) -> str:
        told = f"{cores} CPU core{'' if cores == 1 else 's'}"
        return f"{gpus} GPU{'' if gpus == 1 else 's'} and {told}" if self._needs["GPU"] else told

    def _start(self) -> Any:
        # Beside the job: questions, and that it is no longer wanted.
        device = ray.remote(concurrency_groups={"beside": 1})(_Device).options(  # type: ignore[call-overload]
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs["GPU"],
            max_restarts=-1,
            # A job that was lost is handed back, and the driver decides.
            max_task_retries=0,
        )
        return device.remote(self._load)

    def _greet(self, slot: _Slot) -> None:
        self._news = True
        slot.greeting, slot.since, slot.asked = slot.actor.alive.remote(), time.time(), None

    def _welcome(self, slot: _Slot) -> None:
        """Counts a device in that says it is there, or asks again."""
        try:
            slot.where = ray.get(slot.greeting)
        except RayError as error:
            # Not one that is only not there yet.
            if isinstance(error, ActorDiedError | RayTaskError):
                slot.failed_starts += 1
                if slot.failed_starts >= _MOST_STARTS:
                    raise CalibrateError(
                        f"--{'ray' if self._where.ray else 'devices'}: {slot.name} cannot be started "
                        f"({_last_line(error)}); every machine needs scope-calibrate[calibrate,ray] in this version."
                    ) from error
                slot.actor = self._start()
            time.sleep(_POLL_SECONDS)
            self._greet(slot)
            return
        slot.greeting, slot.name, slot.since, slot.failed_starts = None, slot.where["name"], time.time(), 0
        self._news = True

    def _assign(self) -> None:
        """Gives jobs that wait to devices that are free."""
        for slot in self._slots:
            if not self._waiting:
                return
            if slot.greeting is None and slot.running is None and self._is_there(slot):
                slot.number = self._waiting.popleft()
                slot.heard, slot.since, self._news = time.monotonic(), time.time(), True
                job = self._jobs[slot.number]
                reference = getattr(job, "reference", None)
                if reference is not None:
                    job = dataclasses.replace(job, reference=None)  # type: ignore[type-var]
                slot.running = slot.actor.run.remote(slot.number, job, self._to_send(reference))

    def _is_there(self, slot: _Slot) -> bool:
        """Whether a device that had nothing to do still lives: a job must not answer for a death before it."""
        try:
            # Ray may have started it again meanwhile.
            slot.where = ray.get(slot.actor.alive.remote(), timeout=_ANSWER_SECONDS)
            slot.name = slot.where["name"]
        except GetTimeoutError:
            return True  # slow, or stopped: that is what its silence will tell
        except RayError:
            self._told(f"The process of {slot.name} died; it is started again.")
            self._greet(slot)
            return False
        return True

    def _to_send(self, reference: Any) -> Any:
        """What an actor is given for what jobs share: the thing itself, sent ahead once, or where it lies."""
        if reference is None:
            return None
        if id(reference) not in self._sent:
            there = self._in_folder(reference) if isinstance(reference, Reference) else None
            self._sent[id(reference)] = reference, there or ray.put(reference)
        return self._sent[id(reference)][1]

    def _in_folder(self, clip: Reference) -> InFolder | None:
        """Where a stock clip lies that is too large to be sent; None for others."""
        large = clip.frames.nbytes > STORE_BYTES
        if not self._told_of_clips:
            self._told_of_clips = True
            size = f"{clip.frames.nbytes / 2**20:.0f} MiB each"
            self._told(
                f"Stock clips ({size}) are read by every device from {clip.path.parent}."
                if large
                else f"Stock clips ({size}) reach the devices through Ray's object store."
            )
        return InFolder(clip.case, clip.path.absolute()) if large else None

    def _ended(self, slot: _Slot) -> Done:
        """What came of the job that a device had."""
        assert slot.number is not None
        job = self._jobs.pop(slot.number)
        running, slot.running, slot.number, slot.since = slot.running, None, None, time.time()
        slot.asked, self._news = None, True
        try:
            return Done(job, ray.get(running))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if cause is not error:
                cause.__cause__ = error  # tells where it was raised
            return Done(job, error=cause)
        except RayError:
            self._told(f"The process of {slot.name} died over {job}; it is started again.")
            self._greet(slot)
            return Done(job, died=True)

    def _ask_for_life(self) -> None:
        """Has devices that work show that they live, and kills those that do not."""
        for slot in self._slots:
            if slot.running is None:
                continue
            if slot.asked is not None:
                answered, _ = ray.wait([slot.asked], timeout=0)
                if answered:
                    slot.asked = None
                    slot.heard = time.monotonic()
                elif time.monotonic() - slot.heard > self._silence_seconds:
                    self._told(f"{slot.name} has been silent for {self._silence_seconds:.0f} seconds; it is killed.")
                    self._kill(slot)
                    slot.asked, slot.heard = None, time.monotonic()
            elif time.monotonic() - slot.heard > min(_ASK_SECONDS, self._silence_seconds / 2):
                slot.asked = slot.actor.alive.options(concurrency_group="beside").remote()

    def _kill(self, slot: _Slot) -> None:
        """Kills a device's process from its own machine: one that is stopped hears nothing."""
        node = NodeAffinitySchedulingStrategy(slot.where["node"], soft=False)
        killed = ray.remote(_kill_process).options(num_cpus=0, scheduling_strategy=node).remote(slot.where["process"])
        with contextlib.suppress(RayError, GetTimeoutError):
            ray.get(killed, timeout=30)


def _refuse_silence(address: str) -> None:
    """Makes sure that somebody listens at an address, where it is one.

    Raises:
        OSError: If nobody does.
        ValueError: If it is no address.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        with contextlib.suppress(ImportError, AttributeError):
            from ray._private.services import canonicalize_bootstrap_address_or_die

            address = canonicalize_bootstrap_address_or_die("auto")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("it has not the form HOST:PORT")
    with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
        pass


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _last_line(error: RayError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]


def _kill_process(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts back what happens on a request to terminate: Ray ends the process without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
