"""Training of the reference pipeline's transformer and text encoder: diffusion forcing by flow matching.

The text encoder first learns to say, in the embedding of every token, what the whole caption says; then both train
together. A clip's latents x0 are mixed with noise e to x = (1 - s) x0 + s e and the model predicts e - x0. The noise
level s is one per causal block, drawn from the states that the sampler passes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studies.reference import checkpoint, latents, models, world
from studies.reference.optim import MuonAdamW, split_parameters
from studies.reference.steps import Course, train_steps

BLOCKS = models.LATENT_FRAMES // models.CAUSAL_BLOCK


@dataclass(frozen=True)
class Recipe(Course):
    """Hyperparameters.

    Two steps in three take the first block of `first_batch` clips instead of `batch` whole ones, at the same cost: what
    a clip shows is decided in its first block, and continuing it is learnt much sooner than composing it.
    """

    steps: int = 4000
    decay: int = 2600
    adamw_lr: float = 8e-4
    muon_lr: float = 2e-3
    clips: int = 8000
    batch: int = 6
    first_batch: int = 30
    weight_decay: float = 0.01
    drop_caption: float = 0.1


def train(run: Path, recipe: Recipe, seed: int = 0) -> None:
    """Train on the data set `seed`, going on from `run / "transformer.safetensors"` where there is one."""
    torch.manual_seed(seed)
    tokenizer = models.build_tokenizer()
    data, captions = latents.data_set(seed, recipe.clips)
    tokens = tokenize(tokenizer, captions)
    transformer = models.build_transformer()
    text_encoder = models.build_text_encoder(len(tokenizer))
    parts = torch.nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})
    if not (run / "transformer.safetensors").exists():
        print(f"text encoder: loss {teach_captions(text_encoder, tokens, captions):.4f}", flush=True)
    empty = tokenize(tokenizer, [""])

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        batch, blocks = (recipe.first_batch, 1) if step % 3 else (recipe.batch, BLOCKS)
        chosen = torch.randint(len(data), (batch,), generator=generator)
        drop = torch.rand((batch, 1), generator=generator) < recipe.drop_caption
        batch_tokens = torch.where(drop, empty, tokens[chosen])
        clean = data[chosen, :, : blocks * models.CAUSAL_BLOCK].float()
        return flow_loss(parts, clean, batch_tokens, generator)

    train_steps(run, parts, build_optimizer(transformer, recipe, [*text_encoder.parameters()]), recipe, loss_of, seed)


def teach_captions(
    text_encoder: Any, tokens: torch.Tensor, captions: list[str], steps: int = 400, batch: int = 64
) -> float:
    """Teach the text encoder to say in every token's embedding what the whole caption says.

    Left to the flow-matching loss alone, the encoder learns the colours soon, because they are most of that loss, and
    the direction hardly at all. Linear read-outs of each token learn the caption's facts here; they are thrown away.

    Args:
        text_encoder: the encoder, trained in place.
        tokens: caption tokens [captions, TEXT_LENGTH].
        captions: the captions, of the world's grammar.
        steps: steps of AdamW.
        batch: captions a step.

    Returns:
        The mean cross entropy of the last steps, in nats.
    """
    facts = torch.tensor([_facts(caption) for caption in captions])
    classes = (facts.amax(0) + 1).tolist()
    read_out = torch.nn.Linear(models.TEXT_DIM, sum(classes))
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *read_out.parameters()], lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20, (steps - step) / (steps / 2))
        chosen = torch.randint(len(captions), (batch,), generator=generator)
        told = tokens[chosen].ne(0)
        said = read_out(encode_text(text_encoder, tokens[chosen])[told]).split(classes, dim=-1)
        expected = facts[chosen][:, None].expand(-1, tokens.shape[1], -1)[told]
        loss = torch.stack(
            [torch.nn.functional.cross_entropy(logits, expected[:, index]) for index, logits in enumerate(said)]
        ).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-20:]))


def _facts(caption: str) -> list[int]:
    """What a caption says, as class numbers: up to two colours and shapes, direction, speed and background."""
    spec = world.parse_caption(caption)
    colours, shapes = [0, 0], [0, 0]
    for index, (colour, shape) in enumerate(spec.objects):
        colours[index] = 1 + list(world.COLOURS).index(colour)
        shapes[index] = 1 + world.SHAPES.index(shape)
    return [
        *colours,
        *shapes,
        list(world.DIRECTIONS).index(spec.direction),
        list(world.SPEEDS).index(spec.speed),
        world.BACKGROUNDS.index(spec.background),
    ]


def flow_loss(
    parts: torch.nn.ModuleDict, clean: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The flow-matching loss of a batch, over the blocks that the sampler would be working on.

    Args:
        parts: "transformer" and "text_encoder".
        clean: normalised latents [batch, channels, frames, height, width].
        tokens: caption tokens [batch, TEXT_LENGTH], padded with 0.
        generator: the source of noise and of noise levels.
    """
    batch = len(clean)
    levels = sample_levels(batch, clean.shape[2] // models.CAUSAL_BLOCK, generator)
    frames = levels.repeat_interleave(models.CAUSAL_BLOCK, dim=1)
    sigma = frames[:, None, :, None, None]
    noise = torch.randn(clean.shape, generator=generator)
    prediction = parts["transformer"](
        hidden_states=(1 - sigma) * clean + sigma * noise,
        timestep=(frames * models.TRAIN_TIMESTEPS).long().clamp(max=models.TRAIN_TIMESTEPS - 1),
        encoder_hidden_states=encode_text(parts["text_encoder"], tokens),
        enable_diffusion_forcing=True,
        return_dict=False,
    )[0]
    error = (prediction - (noise - clean)).square().mean((1, 3, 4))
    active = ((frames > 0) & (frames < 1)).float()
    return (error * active).sum() / active.sum().clamp(min=1)


def sample_levels(batch: int, blocks: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels [batch, blocks] in [0, 1] as the sampler meets them.

    A block's progress trails its predecessor's by a lag: 0 when all blocks run together, `ar_step / steps` (1/6 in the
    usual call) when they are staggered, 1 when one block runs after the other. Finished blocks are at 0, blocks not
    started at 1. One clip in ten has independent levels. Levels are shifted as the sampler's are.
    """
    kind = torch.rand((batch, 1), generator=generator)
    lag = 0.08 + 0.24 * torch.rand((batch, 1), generator=generator)
    lag = torch.where(kind < 0.2, torch.ones(()), torch.where(kind > 0.95, torch.zeros(()), lag))
    head = torch.rand((batch, 1), generator=generator) * (1 + (blocks - 1) * lag)
    staggered = (head - lag * torch.arange(blocks)).clamp(0, 1)
    independent = torch.rand((batch, blocks), generator=generator)
    level = 1 - torch.where((kind > 0.2) & (kind < 0.3), independent, staggered)
    return models.FLOW_SHIFT * level / (1 + (models.FLOW_SHIFT - 1) * level)


def tokenize(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """Caption tokens [captions, TEXT_LENGTH] as the pipeline makes them."""
    encoded = tokenizer(captions, padding="max_length", max_length=models.TEXT_LENGTH, truncation=True)
    return torch.tensor(encoded["input_ids"])


def encode_text(text_encoder: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Text embeddings [batch, TEXT_LENGTH, TEXT_DIM], zero after the end of each text, as the pipeline makes them."""
    mask = tokens.ne(0).long()
    return text_encoder(tokens, mask).last_hidden_state * mask[..., None]


def build_optimizer(transformer: Any, recipe: Any, more: Sequence[torch.nn.Parameter] = ()) -> MuonAdamW:
    """Muon for the matrices inside the transformer's blocks, AdamW for everything else."""
    named = list(transformer.named_parameters())
    muon, adamw = split_parameters(parameter for name, parameter in named if name.startswith("blocks."))
    adamw += [parameter for name, parameter in named if not name.startswith("blocks.")]
    return MuonAdamW(muon, [*adamw, *more], lr=recipe.adamw_lr, weight_decay=recipe.weight_decay)


def load_average(run: Path) -> tuple[Any, Any, int]:
    """The averaged transformer and text encoder of a run, and the step they are from."""
    tensors, step = checkpoint.load(run / "transformer.safetensors")
    transformer, text_encoder = models.build_transformer(), models.build_text_encoder(len(models.build_tokenizer()))
    average = checkpoint.with_prefix(tensors, "average")
    transformer.load_state_dict(checkpoint.with_prefix(average, "transformer"))
    text_encoder.load_state_dict(checkpoint.with_prefix(average, "text_encoder"))
    return transformer, text_encoder, step
