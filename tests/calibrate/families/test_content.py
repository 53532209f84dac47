"""What a study is measured with is told apart by content, and a study never mixes two."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline
from safetensors.torch import load_file, save_file
from sqlalchemy import select

from calibrate.families import load_target
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.files import folder_digest
from calibrate.spec.generation import Generation as Settings
from calibrate.store import Generation, Storage, StudyRecord
from scope_runtime import Profile
from tests.calibrate.conftest import Workplace
from tests.tiny import CALL

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def _content(folder: Path) -> dict[str, str]:
    return load_target(folder, SkyReelsV2Spec(path="pipe"), Settings.model_validate(CALL)).model["content"]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "pipe"))


def _in_parts(folder: Path) -> None:
    pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder)
    shutil.rmtree(folder)
    pipe.save_pretrained(folder, max_shard_size="10KB")


def _as_a_cache(folder: Path) -> None:
    """As a hub's cache has it: names that point into a heap of files named by their content."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))


def _with_more(folder: Path) -> None:
    (folder / "README.md").write_text("Downloaded on a Tuesday.")
    (folder / "transformer" / "old.safetensors").write_bytes(b"nobody reads this")
    (folder / "vae" / ".cache").mkdir()


@pytest.mark.parametrize("change", [_in_parts, _as_a_cache, _with_more])
def test_the_layout_of_a_folder_makes_no_difference(
    tiny_folder: Path, folder: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    assert _content(folder) == _content(tiny_folder)


def _change_one_number(path: Path) -> None:
    """Changes one weight, neither the first nor the last, and leaves size and time as they were."""
    stamp = path.stat()
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    changed = tensors[name].clone().reshape(-1)
    changed[changed.numel() // 3 + 1] += 2**-20
    save_file(tensors | {name: changed.reshape(tensors[name].shape)}, path, metadata={"format": "pt"})
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size


def _change_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


CHANGES: dict[str, Callable[[Path], None]] = {
    "transformer": lambda folder: _change_one_number(folder / "transformer/diffusion_pytorch_model.safetensors"),
    "vae": lambda folder: _change_one_number(folder / "vae/diffusion_pytorch_model.safetensors"),
    "text_encoder": lambda folder: _change_one_number(folder / "text_encoder/model.safetensors"),
    "tokenizer": lambda folder: _change_text(folder / "tokenizer/tokenizer.json", '"red"', '"rot"'),
    "scheduler": lambda folder: _change_text(
        folder / "scheduler/scheduler_config.json", '"flow_shift": 3.0', '"flow_shift": 5.0'
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_change_of_any_part_is_seen_by_its_name(tiny_folder: Path, folder: Path, part: str) -> None:
    CHANGES[part](folder)
    before, now = _content(tiny_folder), _content(folder)
    assert set(before) == set(PARTS)
    assert [name for name in PARTS if before[name] != now[name]] == [part]


def test_a_study_goes_on_with_the_same_content_and_never_with_another(copied: Workplace) -> None:
    weights = copied.folder / "pipe/vae/diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    _change_one_number(weights)
    for command in ("run", "export"):
        result = copied.scope(command, "study.yaml")
        assert result.exit_code == 2, result.output
        assert "model.vae" in result.stderr
    weights.write_bytes(kept)
    _in_parts(copied.folder / "pipe")
    result = copied.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    assert "kept from before" in result.stderr
    profile = Profile.load(copied.folder / "profiles/tiny.json")
    assert profile.evidence["content"] == _content(copied.folder / "pipe")


def _records(copied: Workplace) -> Storage:
    return Storage(f"sqlite:///{copied.folder / 'runs/tiny.db'}")


def test_a_study_from_before_goes_on_and_is_held_to_its_content_from_then_on(copied: Workplace) -> None:
    storage = _records(copied)
    with storage.sessions.begin() as session:
        record = session.scalars(select(StudyRecord)).one()
        record.model = {name: value for name, value in record.model.items() if name != "content"} | {"files": "0" * 16}
        made = session.query(Generation).count()
    storage.close()
    result = copied.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    storage = _records(copied)
    with storage.sessions() as session:
        assert session.scalars(select(StudyRecord)).one().model["content"] == _content(copied.folder / "pipe")
        assert session.query(Generation).count() > made
    storage.close()
    _change_one_number(copied.folder / "pipe/text_encoder/model.safetensors")
    assert "model.text_encoder" in copied.scope("run", "study.yaml").stderr


def test_verify_says_that_another_decoder_was_used(copied: Workplace) -> None:
    _change_one_number(copied.folder / "pipe/vae/diffusion_pytorch_model.safetensors")
    result = copied.scope("verify", "profiles/tiny.json", "--model", "pipe")
    assert result.exit_code == 0, result.output
    assert "content.vae" in result.stdout


def test_a_folder_is_told_apart_by_what_is_read_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a/model.bin"
    file.write_bytes(bytes(1 << 20))
    before = folder_digest(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/lock").touch()
    (tmp_path / "README.md").touch()
    assert folder_digest(tmp_path) == before
    content = bytearray(1 << 20)
    content[300_000] = 1
    file.write_bytes(content)
    assert folder_digest(tmp_path) != before


def test_every_bit_of_a_tensor_counts() -> None:
    from calibrate.families.content import module_digest

    def of(value: torch.Tensor) -> str:
        module: Any = torch.nn.Module()
        module.register_buffer("x", value)
        return module_digest(module)

    zeros = torch.zeros(4, 4, dtype=torch.bfloat16)
    assert of(zeros) == of(zeros.clone().T)
    assert len({of(zeros), of(-zeros), of(zeros.float()), of(zeros.reshape(2, 8)), of(torch.zeros(()))}) == 5
