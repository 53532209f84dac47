"""The examples that are no servers."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from examples import diffusers_script, sglang_diffusers
from scope_runtime import AttachError
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import CALL, tiny_pipeline


def test_the_script_writes_a_clip_and_says_what_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    make_profile(pipe).save(tmp_path / "profile.json")
    clip = tmp_path / "clip.mp4"
    arguments = [str(tmp_path / "pipe"), str(tmp_path / "profile.json"), "a red circle moving left", str(clip)]
    diffusers_script.main([*arguments, "--device", "cpu", "--dtype", "float32", "--fps", "8"])
    with av.open(str(clip)) as container:
        assert sum(1 for _ in container.decode(video=0)) == CALL["num_frames"]
    assert "x fewer)" in capsys.readouterr().out


def test_what_sglang_is_told_of_is_accelerated_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SGLang's own call of an AFTER hook: the pipeline first, then what the loader was given."""
    pipe = tiny_pipeline()
    make_profile(pipe).save(tmp_path / "profile.json")
    monkeypatch.setenv("SCOPE_PROFILE", str(tmp_path / "profile.json"))
    loader = object()
    assert sglang_diffusers.accelerate(pipe, loader, "pipe", server_args=None) is None
    with pytest.raises(AttachError, match="already"):
        sglang_diffusers.accelerate(pipe)
