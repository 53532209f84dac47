"""Paths, devices and memory that a machine does not have: one sentence, exit code 2, nothing lost or half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from calibrate.failures import explained
from calibrate.families.devices import has_device
from calibrate.families.skyreels_v2.target import SkyReelsV2Target
from calibrate.measure.memory import is_out_of_memory
from scope_runtime import ContextTooLarge, Profile
from tests.calibrate.conftest import Workplace

Make = Callable[..., Workplace]


def _assert_refused(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("Error: ")
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in last


COMMANDS = {
    "run": ["run", "{}"],
    "run with its profile": ["run", "study.yaml", "--warm-start", "{}"],
    "run with its front": ["run", "study.yaml", "--warm-start", "{}.yaml"],
    "doctor": ["doctor", "{}"],
    "status": ["status", "{}"],
    "front": ["front", "{}"],
    "export": ["export", "{}"],
    "export to": ["export", "study.yaml", "--output", "{}"],
    "compare": ["compare", "study.yaml", "{}"],
    "rename": ["rename", "{}", "other"],
    "delete": ["delete", "{}", "--yes"],
    "generations": ["generations", "{}"],
    "generations to": ["generations", "study.yaml", "--output", "{}"],
    "report": ["report", "{}"],
    "report to": ["report", "study.yaml", "--output", "{}"],
    "verify": ["verify", "{}"],
    "verify with study": ["verify", "profiles/tiny.json", "{}"],
    "verify with model": ["verify", "profiles/tiny.json", "--model", "{}"],
}


@pytest.fixture(scope="module")
def with_loop(ran_once: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A finished study's folder, free to be changed, with a link that leads to itself."""
    folder = shutil.copytree(ran_once.folder, tmp_path_factory.mktemp("copied") / "work")
    (folder / "loop").symlink_to("loop")
    return Workplace(folder, folder / "study.yaml")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("path", ["study.yaml/x", "x" * 300, "loop/x", "pipe"], ids=["below", "long", "loop", "folder"])
def test_a_path_that_leads_nowhere_is_one_sentence(with_loop: Workplace, command: list[str], path: str) -> None:
    if path == "pipe" and "--model" in command:
        pytest.skip("that is the model's folder")
    before = sorted(with_loop.folder.iterdir())
    _assert_refused(with_loop.scope(*(part.format(path) for part in command)), path)
    assert sorted(with_loop.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("pipe", "is a folder"),
        ("study.yaml", "is the study file itself"),
        ("./pipe/../study.yaml", "is the study file itself"),
        ("runs/tiny.db", "is the study's database"),
        ("profiles/tiny.mp4", "end it in .json"),
        ("profiles/tiny.png", "end it in .json"),
        ("profiles/tiny.html", "end it in .json"),
        ("pipe/model_index.json", "is no profile"),
        ("/dev/null/x/profile.json", "a part of the path is a file"),
        ("x" * 246, "the name is too long"),
        ("x" * 236 + ".json", "-front.png cannot be written: the name is too long"),
        ("new/" + "x" * 300 + "/profile.json", "the name is too long"),
        ("new/" * 1500 + "profile.json", "the name is too long"),
        ("loop/profile.json", "links lead in a circle"),
        ("taken", "is a folder"),
    ],
)
def test_where_the_profile_goes_is_looked_at_before_anything_runs(
    make_workplace: Make, path: str, complaint: str
) -> None:
    workplace = make_workplace(export={"path": path})
    (workplace.folder / "loop").symlink_to("loop")
    (workplace.folder / "taken.mp4").mkdir()
    texts = {name: (workplace.folder / name).read_bytes() for name in ("study.yaml", "pipe/model_index.json")}
    doctor = workplace.scope("doctor", "study.yaml", "--json")
    assert doctor.exit_code == 2
    (check,) = (check for check in json.loads(doctor.stdout)["checks"] if check["name"] == "export")
    assert check["message"].startswith("export.path: ")
    assert complaint in check["message"]
    result = workplace.scope("run", "study.yaml")
    _assert_refused(result, complaint, "export.path: ")
    assert "Loading" not in result.stderr
    assert not (workplace.folder / "new").exists()
    for name, text in texts.items():
        assert (workplace.folder / name).read_bytes() == text


@pytest.mark.parametrize("path", ["study.yaml", "runs/tiny.db", "pipe", "x" * 250])
def test_lists_do_not_overwrite_the_study(with_loop: Workplace, path: str) -> None:
    before = (with_loop.folder / "study.yaml").read_bytes()
    _assert_refused(with_loop.scope("generations", "study.yaml", "--output", path), "--output: ", path)
    assert (with_loop.folder / "study.yaml").read_bytes() == before
    assert json.loads(with_loop.scope("status", "study.yaml", "--json").stdout)["candidates"] == 5


@pytest.mark.parametrize(
    ("cache", "complaint"),
    [("study.yaml", "is a file"), ("pipe/model_index.json/x", "is a file"), ("x" * 300, "too long")],
)
def test_a_cache_that_cannot_be_written_is_found_before_anything_runs(
    make_workplace: Make, cache: str, complaint: str
) -> None:
    workplace = make_workplace(cache=cache)
    result = workplace.scope("run", "study.yaml")
    _assert_refused(result, f"cache: {cache} cannot be written: ", complaint)
    assert "Loading" not in result.stderr


@pytest.mark.parametrize("storage", ["sqlite:///" + "x" * 300, "sqlite:///loop/x.db", "sqlite:///study.yaml/x.db"])
def test_a_database_that_cannot_be_made_is_one_sentence(make_workplace: Make, storage: str) -> None:
    workplace = make_workplace(storage=storage)
    (workplace.folder / "loop").symlink_to("loop")
    for command in ("run", "status"):
        _assert_refused(workplace.scope(command, "study.yaml"))


@pytest.mark.parametrize(
    ("device", "there"), [("mps", has_device("mps")), ("cuda:99", has_device("cuda:99")), ("cuda", has_device("cuda"))]
)
def test_a_device_that_is_not_there_is_named_with_those_that_are(
    make_workplace: Make, device: str, there: bool
) -> None:
    if there:
        pytest.skip(f"this machine has {device}")
    workplace = make_workplace(model={"path": "pipe", "device": device, "threads": 1})
    sentence = f"model.device: this machine has no {device}, only cpu"
    doctor = workplace.scope("doctor", "study.yaml", "--json")
    assert doctor.exit_code == 2
    checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert checks["device"]["message"].startswith(sentence)
    assert checks["time"]["state"] == "ok"
    shutil.rmtree(workplace.folder / "pipe/transformer")
    _assert_refused(workplace.scope("run", "study.yaml"), sentence)


def _no_room(*_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(2**62, dtype=torch.uint8)


def test_a_baseline_without_room_says_what_to_lower_and_loses_nothing(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = make_workplace(name="big", budget={"trials": 1})
    real, made = SkyReelsV2Target._generate, []

    def second_fails(target: Any, case: Any, *watching: Any) -> torch.Tensor:
        made.append(case.prompt)
        return real(target, case, *watching) if len(set(made)) == 1 else _no_room()

    monkeypatch.setattr(SkyReelsV2Target, "_generate", second_fails)
    _assert_refused(workplace.scope("run", "study.yaml"), "Out of memory: lower generation.num_frames", "torch_dtype")
    assert len(list((workplace.folder / "runs/big").iterdir())) == 1
    monkeypatch.undo()
    assert "kept from before" in workplace.scope("run", "study.yaml").stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.91 GB)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_every_name_of_too_little_memory_is_known(error: Exception) -> None:
    with pytest.raises(Exception, match="Out of memory"), explained():
        raise error


def test_other_failures_are_not_taken_for_memory() -> None:
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="must match"), explained():
        raise RuntimeError("The size of tensor a (3) must match")
    with pytest.raises(Exception, match="^context"), explained():
        raise ContextTooLarge("context: too large")
    with pytest.raises(BrokenPipeError), explained():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("suffix", ["best.mp4", "best-front.png", "best.json"])
def test_a_disk_that_fills_up_in_an_export_leaves_nothing_half_written(
    with_loop: Workplace, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    folder = with_loop.folder / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    real = os.fsync

    def full(descriptor: int) -> None:
        if f"/.{suffix}." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    result = with_loop.scope("export", "study.yaml", "--output", "exported/best.json")
    _assert_refused(result, f"exported/{suffix}: the disk is full")
    assert all(not path.name.startswith(".") and path.name != suffix for path in folder.iterdir())
    assert not (folder / "best.json").exists()


def test_a_profile_is_replaced_and_nothing_else(with_loop: Workplace) -> None:
    assert with_loop.scope("export", "study.yaml", "--output", "again.json").exit_code == 0
    assert with_loop.scope("export", "study.yaml", "--output", "again.json").exit_code == 0
    path = with_loop.folder / "again.json"
    assert Profile.load(path)
    path.write_text('{"format": "notes"}')
    _assert_refused(with_loop.scope("export", "study.yaml", "--output", "again.json"), "is no profile")
    assert path.read_text() == '{"format": "notes"}'
