"""The second reference: its parts, its size, its start from the first one's weights, and its study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibrate.study.study_file import StudyFile
from studies.helios_reference import models, train
from studies.reference import evaluate, world
from studies.reference import models as shared

MAX_BYTES = 25 * 1024 * 1024


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return models.load_pipeline()


def test_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in models.PIPELINE_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    assert not [path for path in files if path.suffix == ".json" and "_name_or_path" in path.read_text()]


def test_parts_are_the_classes_of_the_real_model_and_its_vae_is_the_first_reference_s(pipeline: Any) -> None:
    parts = {name: type(part).__name__ for name, part in pipeline.components.items()}
    assert type(pipeline).__name__ == "HeliosPipeline"
    assert parts["transformer"] == "HeliosTransformer3DModel"
    assert parts["scheduler"] == "HeliosScheduler"
    other = shared.load_pipeline()
    for own, theirs in zip(pipeline.vae.parameters(), other.vae.parameters(), strict=True):
        assert torch.equal(own, theirs)


def test_training_starts_where_the_first_reference_ended() -> None:
    start, known = models.start_transformer().state_dict(), shared.load_pipeline().transformer.state_dict()
    assert torch.equal(start["blocks.3.ffn.net.0.proj.weight"], known["blocks.3.ffn.net.0.proj.weight"])
    assert torch.equal(start["patch_short.weight"], known["patch_embedding.weight"])
    # A picture of one colour looks the same to every patch, whatever its size.
    assert torch.allclose(
        start["patch_long.weight"].sum((2, 3, 4)), known["patch_embedding.weight"].sum((2, 3, 4)), atol=1e-4
    )


def test_what_training_shows_of_the_clip_before_is_what_the_pipeline_shows(pipeline: Any) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append({name: kwargs[name] for name in kwargs if name.startswith(("latents_", "indices_"))})

    hook = pipeline.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        call = {**models.CALL, "num_inference_steps": 2, "guidance_scale": 1.0}
        latents = pipeline("a red circle moving left", output_type="latent", **call).frames
    finally:
        hook.remove()
    assert len(seen) == 2 * models.CHUNKS
    for chunk in range(models.CHUNKS):
        short, mid, long = models.history_of(latents, chunk)
        call_of_chunk = seen[2 * chunk]
        assert torch.equal(call_of_chunk["latents_history_short"], short)
        assert torch.equal(call_of_chunk["latents_history_mid"], mid)
        assert torch.equal(call_of_chunk["latents_history_long"], long)


def test_the_loss_is_that_of_a_trained_model(pipeline: Any) -> None:
    from studies.reference import latents

    data, captions = latents.data_set(7, 12, models.KEYFRAMES)
    embeddings, _ = train._embed(captions)
    for chunk in range(models.CHUNKS):
        generator = torch.Generator().manual_seed(chunk)
        with torch.no_grad():
            loss = train.flow_loss(pipeline.transformer, data.float(), chunk, embeddings, generator)
        assert loss.item() < 0.3


@pytest.mark.slow
def test_a_clip_shows_what_its_caption_says(pipeline: Any) -> None:
    prompt = "a red circle moving right on a striped background"
    frames = evaluate.generate(pipeline, prompt, 0, models.CALL)
    assert frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    verdict = world.judge(world.parse_caption(prompt), world.measure(frames))
    assert verdict.colours
    assert verdict.direction
    assert np.isfinite(frames).all()


def test_the_study_shares_no_prompt_with_what_it_is_judged_by() -> None:
    study = StudyFile(Path("studies/helios_reference.yaml")).study
    assert study.model.family == "helios"
    assert all(world.parse_caption(case.prompt).held_out for case in study.held_out_cases)
