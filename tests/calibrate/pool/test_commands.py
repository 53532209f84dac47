"""`scope-calibrate run` on Ray: what a user does wrong, stops, kills and looks at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from calibrate import workflow
from calibrate.pool import opening
from tests.calibrate.conftest import TINY_STUDY, Workplace
from tests.calibrate.pool.conftest import Nodes

REPOSITORY = Path(__file__).parents[3]
CORES = os.cpu_count() or 1


@pytest.fixture(scope="module")
def workplace(make_workplace: Callable[..., Workplace]) -> Workplace:
    return make_workplace(name="refused")


def _one_sentence(workplace: Workplace, *options: str) -> str:
    result = workplace.scope("run", "study.yaml", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.rstrip().endswith(errors[0])
    return errors[0]


class TestRefusals:
    def test_without_ray(self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(opening, "find_spec", lambda _: None)
        for options, field in ((("--devices", "2"), "--devices"), (("--ray", "auto"), "--ray")):
            said = _one_sentence(workplace, *options)
            assert said.startswith(f"Error: {field}: ")
            assert "install scope-calibrate[ray]" in said

    @pytest.mark.parametrize(
        ("address", "because"),
        [
            ("127.0.0.1:1", "refused"),
            ("ray://127.0.0.1:1", "refused"),
            ("nonsense", "HOST:PORT"),
            ("host.invalid:6379", "could be joined"),
        ],
    )
    def test_an_address_where_nobody_listens(self, workplace: Workplace, address: str, because: str) -> None:
        start = time.monotonic()
        said = _one_sentence(workplace, "--ray", address)
        assert said.startswith(f"Error: --ray: {address}: no Ray cluster could be joined")
        assert because in said
        assert time.monotonic() - start < 30

    def test_an_address_that_the_environment_names_and_nobody_listens_at(
        self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert "refused" in _one_sentence(workplace, "--ray", "auto")

    def test_more_devices_than_this_machine_has(self, workplace: Workplace) -> None:
        said = _one_sentence(workplace, "--devices", str(CORES + 1))
        assert f"--devices: {CORES + 1} devices take {CORES + 1} CPU cores, and there are {CORES}" in said

    def test_more_devices_than_the_cluster_has(
        self, workplace: Workplace, make_workplace: Callable[..., Workplace], nodes: Nodes
    ) -> None:
        said = _one_sentence(workplace, "--ray", nodes.address, "--devices", "5")
        assert "--devices: 5 devices take 5 CPU cores, and there are 4 CPU cores; ask for fewer" in said
        wide = make_workplace(name="wide", model={"path": "pipe", "threads": 3})
        said = _one_sentence(wide, "--ray", nodes.address)
        assert f"--ray: a device takes 3 CPU cores, and no machine of {nodes.address} has as much" in said
        # The machine that drives needs no GPU itself.
        gpus = make_workplace(name="gpus", model={"path": "pipe", "threads": 1, "device": "cuda"})
        said = _one_sentence(gpus, "--ray", nodes.address)
        assert "a device takes 1 GPU and 1 CPU core, and no machine" in said

    def test_a_model_that_a_node_does_not_see(
        self, make_workplace: Callable[..., Workplace], nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = make_workplace(name="unseen")
        # It was there when the study was checked, on the machine that drives.
        monkeypatch.setattr(workflow, "refuse_unsound", lambda *_, **__: shutil.rmtree(there.folder / "pipe"))
        said = _one_sentence(there, "--ray", nodes.address)
        assert "model.path" in said
        assert str(there.folder / "pipe") in said


def _start(workplace: Workplace, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "calibrate.cli", "run", "study.yaml", *options],
        cwd=workplace.folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for_candidates(workplace: Workplace, process: subprocess.Popen[str], number: int) -> dict[str, Any]:
    """The state of a study when so many generations of candidates were measured, and this process measures another."""
    while process.poll() is None:
        shown = workplace.scope("status", "study.yaml", "--json")
        if shown.exit_code == 0:
            state: dict[str, Any] = json.loads(shown.stdout)
            driver = state["driver"] or {"process": None, "devices": ()}
            busy = driver["process"] == process.pid and any(
                "candidate" in found["doing"] for found in driver["devices"]
            )
            if busy and state["generations"].get("candidate", 0) >= number:
                return state
        time.sleep(0.2)
    pytest.fail(f"the run ended by itself: {process.communicate()[1]}")


def _rays_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in found)
    assert any("ray::" in child.name() or "ray::" in " ".join(child.cmdline()) for child in found)
    return found


@pytest.mark.slow
def test_a_run_on_ray_is_stopped_killed_and_completed(make_workplace: Callable[..., Workplace]) -> None:
    # So many that it cannot have come to its end before it is stopped.
    workplace = make_workplace(
        name="stopped", search=TINY_STUDY["search"] | {"method": "replay"}, budget={"trials": 200}
    )
    devices = ("--devices", "2")
    for number, sent in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)):
        process = _start(workplace, *devices)
        state = _wait_for_candidates(workplace, process, 2 * number + 1)
        told = [found["doing"] for found in state["driver"]["devices"]]
        assert state["driver"]["stage"] == "candidates"
        assert len(told) == 2
        assert all("process" in found["device"] for found in state["driver"]["devices"] if found["doing"] != "starting")
        assert any(doing.startswith("candidate ") and "(seed " in doing for doing in told)
        children = _rays_processes(process)
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)
        output, errors = process.communicate(timeout=60)
        assert output == ""
        if sent == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130, errors
            assert "continue with `scope-calibrate run study.yaml --devices 2`" in errors
            assert "Traceback" not in errors
        if sent == signal.SIGKILL:
            # Two helpers of Ray look for their lost cluster for a minute or two; they hold no device.
            children = [child for child in children if not (child.is_running() and child.name().endswith("Agent"))]
        _, left = psutil.wait_procs(children, timeout=20)
        assert not left
        assert json.loads(workplace.scope("status", "study.yaml", "--json").stdout)["driver"] is None
    workplace.study.write_text(workplace.study.read_text().replace("trials: 200", "trials: 6"))
    result = workplace.scope("run", "study.yaml", "--json")
    assert result.exit_code == 0, result.output
    state = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert state["candidates"] >= 6
    assert (state["trials"]["running"], state["generations"]["stock"]) == (0, 2)
