"""The shipped pipeline folder: its parts, its size, its tokenizer, its VAE, and the training code's shortcuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from studies.reference import codec, evaluate, models, train_transformer, world

MAX_BYTES = 40 * 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return models.load_pipeline()


def test_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in models.PIPELINE_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    assert not [path for path in files if path.suffix == ".json" and "_name_or_path" in path.read_text()]


def test_parts_are_the_classes_of_the_real_model(pipeline: Any) -> None:
    parts = {name: type(part).__name__ for name, part in pipeline.components.items()}
    assert type(pipeline).__name__ == "SkyReelsV2DiffusionForcingPipeline"
    assert parts["transformer"] == "SkyReelsV2Transformer3DModel"
    assert parts["vae"] == "AutoencoderKLWan"
    assert parts["text_encoder"] == "UMT5EncoderModel"
    assert parts["scheduler"] == "UniPCMultistepScheduler"
    assert pipeline.vae_scale_factor_spatial == 4
    assert pipeline.vae_scale_factor_temporal == 4


def test_captions_hold_no_unknown_word_and_end_once(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer
    rng = np.random.default_rng(0)
    for caption in ["", *(world.sample_spec(rng).caption for _ in range(50))]:
        ids = tokenizer(caption).input_ids
        assert tokenizer.unk_token_id not in ids
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id
        assert len(ids) <= models.TEXT_LENGTH


def test_vae_round_trip_of_unseen_clips(pipeline: Any) -> None:
    assert evaluate.vae_psnr(pipeline.vae, clips=2) >= 28.0


def test_one_pass_codec_equals_the_chunked_vae() -> None:
    torch.manual_seed(0)
    vae = models.build_vae()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    video = torch.rand(1, 3, 13, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(video).latent_dist
        encoded = codec.encode(vae, video)
        torch.testing.assert_close(encoded, posterior.parameters, atol=1e-4, rtol=1e-4)
        latents = posterior.mode()
        torch.testing.assert_close(
            codec.decode(vae, latents).clamp(-1, 1), vae.decode(latents).sample, atol=1e-4, rtol=1e-4
        )


def test_training_embeds_text_as_the_pipeline_does(pipeline: Any) -> None:
    prompt = world.held_out_prompts(1)[0]
    expected, empty = pipeline.encode_prompt(prompt, max_sequence_length=models.TEXT_LENGTH)
    tokens = train_transformer.tokenize(pipeline.tokenizer, [prompt, ""])
    with torch.no_grad():
        trained = train_transformer.encode_text(pipeline.text_encoder, tokens)
    torch.testing.assert_close(trained, torch.cat([expected, empty]))


def test_every_token_learns_to_say_what_the_whole_caption_says() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    captions = [world.sample_spec(rng).caption for _ in range(300)]
    tokenizer = models.build_tokenizer()
    tokens = train_transformer.tokenize(tokenizer, captions)
    untaught, taught = (
        train_transformer.teach_captions(models.build_text_encoder(len(tokenizer)), tokens, captions, steps=steps)
        for steps in (1, 80)
    )
    assert taught < 0.5 * untaught


def test_noise_levels_never_fall_along_the_clip_but_for_independent_ones() -> None:
    levels = train_transformer.sample_levels(2000, 5, torch.Generator().manual_seed(0))
    assert levels.min() >= 0
    assert levels.max() <= 1
    rising = (levels.diff(dim=1) >= -1e-6).all(dim=1).float().mean()
    assert 0.85 < rising < 0.97


def test_a_short_generation_runs(pipeline: Any) -> None:
    prompt = world.held_out_prompts(1)[0]
    frames = evaluate.generate(pipeline, prompt, seed=0, num_inference_steps=2, num_frames=17, ar_step=0)
    assert frames.shape == (17, world.SIZE, world.SIZE, 3)
    assert np.isfinite(frames).all()
