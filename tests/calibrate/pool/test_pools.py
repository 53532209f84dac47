"""What every pool does, in this process and on a cluster of two nodes; and what only a cluster can do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.errors import CalibrateError
from calibrate.measure.baseline import MakeBaseline, Reference, write_baseline
from calibrate.measure.candidate import UNWANTED, Measure, Measurement
from calibrate.pool.here import Here
from calibrate.pool.opening import Where, open_pool
from calibrate.pool.pool import Activity, Pool, call
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.study.study_file import Study
from scope_runtime import Policy, ProfileError
from tests.calibrate.pool import jobs
from tests.calibrate.pool.conftest import Nodes
from tests.calibrate.pool.jobs import Die, Echo, Fail, MeanOf, NotLoadable, Sleep

ray_pool = pytest.importorskip("calibrate.pool.ray_pool")

DEVICES = 4
CASE = Case(prompt="a red circle moving left", seed=1)


def on_ray(
    nodes: Nodes, *, load: Callable[[], Any] = jobs.load, told: Callable[[str], None] = lambda _: None, **options: Any
) -> Any:
    where = Where(options.pop("devices", None), nodes.address)
    return ray_pool.RayPool(load, where, cpus=options.pop("cpus", 1), gpus=0, told=told, **options)


@pytest.fixture(scope="class", params=["here", "ray"])
def shared_pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    opened: AbstractContextManager[Pool] = Here(jobs.load)
    if request.param == "ray":
        nodes = request.getfixturevalue("whole_cluster")
        nodes.restore()
        opened = on_ray(nodes)
    with opened as entered:
        yield entered


@pytest.fixture
def pool(shared_pool: Pool) -> Iterator[Pool]:
    yield shared_pool
    shared_pool.changed = lambda: None


def _reference(path: Path, value: float) -> Reference:
    return Reference(CASE, np.full((5, 16, 16, 3), value, dtype=np.float32), 1.0, 30, path)


class TestEveryPool:
    def test_results_come_back_with_their_jobs(self, pool: Pool) -> None:
        assert pool.size == (1 if pool.here else DEVICES)
        submitted = [Echo(number) for number in range(10)]
        for job in submitted:
            pool.submit(job)
        done = [pool.next() for _ in submitted]
        assert sorted(found.job.number for found in done) == list(range(10))
        for found in done:
            assert found.result()[:2] == (found.job.number, "target")
            assert (found.result()[2] == os.getpid()) is pool.here

    @pytest.mark.parametrize(
        ("kind", "error", "told"),
        [
            ("calibrate", CalibrateError, "cache: is full; make room."),
            ("profile", ProfileError, "policy.max_skip: is negative"),
            ("fault", ZeroDivisionError, "by 0"),
        ],
    )
    def test_what_a_job_raises_comes_back_as_it_was(
        self, pool: Pool, kind: str, error: type[Exception], told: str
    ) -> None:
        with pytest.raises(error) as raised:
            call(pool, Fail(kind))
        assert type(raised.value) is error
        assert str(raised.value) == told
        assert call(pool, Echo(1))[0] == 1

    def test_whoever_looks_on_sees_what_each_device_does(self, pool: Pool) -> None:
        seen: list[Sequence[Activity]] = []
        pool.changed = lambda: seen.append(pool.activity())
        call(pool, Sleep(0.3))
        told = [[str(found.job) for found in activity if found.job is not None] for activity in seen]
        assert ["sleep"] in told
        assert all(len(activity) == pool.size for activity in seen)
        assert all(found.job is None and found.ready for found in pool.activity() if found.ready)
        assert all(abs(found.since - time.time()) < 60 for found in pool.activity())

    def test_stock_clips_reach_the_jobs_that_name_them(self, pool: Pool, tmp_path: Path) -> None:
        references = [_reference(tmp_path / f"{value}.safetensors", value) for value in (0.25, 0.5)]
        for reference in references * 3:
            pool.submit(MeanOf(reference))
        done = [pool.next() for _ in range(6)]
        assert sorted(found.result()[0] for found in done) == [0.25] * 3 + [0.5] * 3
        assert {id(found.job.reference) for found in done} == {id(reference) for reference in references}


class TestRay:
    def test_a_running_job_ends_sooner_and_a_waiting_one_is_not_begun(self, nodes: Nodes) -> None:
        with on_ray(nodes, devices=1) as pool:
            running, waiting = Sleep(60), Sleep(61)

            def stop() -> None:
                if pool.activity()[0].job is running:
                    pool.stop(running)
                    pool.stop(waiting)

            pool.changed = stop
            pool.submit(running)
            pool.submit(waiting)
            ended = {found.job: found for found in (pool.next(), pool.next())}
            assert ended[running].result() == "stopped"
            assert ended[waiting].died
            assert call(pool, Echo(1))[0] == 1

    def test_one_that_dies_is_handed_back_and_its_device_goes_on(self, nodes: Nodes, tmp_path: Path) -> None:
        told: list[str] = []
        with on_ray(nodes, devices=1, told=told.append) as pool:
            assert call(pool, Die(tmp_path / "twice", 2)) == 2
            with pytest.raises(CalibrateError, match="3 processes died while they ran one job"):
                call(pool, Die(tmp_path / "always", 100))
            assert (tmp_path / "always").read_text().count("death") == 3
        assert len(told) == 5
        assert all("it is started again" in line for line in told)

    def test_a_silent_device_is_killed_and_an_idle_one_is_not(self, nodes: Nodes) -> None:
        told: list[str] = []
        with on_ray(nodes, devices=1, silence_seconds=2.0, told=told.append) as pool:
            process = call(pool, Echo(1))[2]
            time.sleep(2.5)
            assert call(pool, Sleep(3.0)) == "slept"
            assert told == []
            os.kill(process, signal.SIGSTOP)
            pool.submit(Echo(2))
            assert pool.next().died
            assert call(pool, Echo(2))[2] != process
        assert "silent for 2 seconds" in told[0]

    def test_a_job_is_not_blamed_for_a_device_that_was_dead_before_it(self, nodes: Nodes) -> None:
        told: list[str] = []
        with on_ray(nodes, devices=1, told=told.append) as pool:
            for number in range(3):
                process = call(pool, Echo(number))[2]
                os.kill(process, signal.SIGKILL)
                assert call(pool, Echo(number), most_deaths=1)[2] != process
        assert not [line for line in told if "died over" in line]

    def test_large_stock_clips_are_read_from_the_folder(
        self, nodes: Nodes, tiny_folder: Path, tiny_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray_pool, "STORE_BYTES", 1)
        told: list[str] = []
        study = Study.model_validate(tiny_study)
        with open_pool(tiny_folder, study.model, study.generation, Where(1, nodes.address), told.append) as pool:
            baseline = call(pool, MakeBaseline(CASE))
            path = tmp_path / "cache" / "clip.safetensors"
            path.parent.mkdir()
            write_baseline(path, baseline)
            reference = baseline.reference(path)
            assert call(pool, MeanOf(reference)) == (float(baseline.frames.mean()), baseline.frames.shape)
            elsewhere = baseline.reference(tmp_path / "not-shared" / "clip.safetensors")
            with pytest.raises(CalibrateError, match=r"^cache: .*not-shared.* cannot be read on .*all machines see"):
                call(pool, MeanOf(elsewhere))
            # And a real generation ends in its midst, with what it has.
            policy = Policy(warmup=4, max_skip=1)
            job = Measure(0, policy, CASE, Floors(), (), 1, None, reference=reference)
            pool.changed = lambda: pool.stop(job)
            measured: Measurement = call(pool, job)
            assert measured.failure is None
            assert measured.fields["reason"].startswith(UNWANTED)
            assert measured.fields["evaluations"] < reference.stock_evaluations
        assert told == [f"Stock clips (0 MiB each) are read by every device from {path.parent}."]

    def test_a_device_that_cannot_be_started_is_told_in_one_sentence(self, nodes: Nodes) -> None:
        with (
            on_ray(nodes, devices=1, load=NotLoadable()) as pool,
            pytest.raises(CalibrateError, match=r"^--ray: device 0 cannot be started .*every machine needs"),
        ):
            call(pool, Echo(1))

    def test_a_node_that_is_lost_is_replaced_by_one_that_comes(self, nodes: Nodes) -> None:
        with on_ray(nodes) as pool:

            def lose() -> None:
                if all(found.job is not None for found in pool.activity()):
                    pool.changed = lambda: None
                    nodes.remove(2)
                    nodes.restore()

            pool.changed = lose
            for number in range(DEVICES):
                pool.submit(Sleep(120.0 + number))
            assert all(pool.next().died for _ in range(DEVICES))
            assert call(pool, Echo(7))[0] == 7
