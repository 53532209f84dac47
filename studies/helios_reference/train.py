"""Training of the Helios reference pipeline's transformer, from the other reference's weights.

    python -m studies.helios_reference.train transformer --run RUN
    python -m studies.helios_reference.train export --run RUN
    python -m studies.helios_reference.train plot

`RUN` is a folder for checkpoints and the loss curve. Interrupted, the training goes on where it stopped.

Flow matching, a chunk at a time: its latents x0 are mixed with noise e to x = (1 - s) x0 + s e, with one level s for
the chunk, and the model predicts e - x0 from x and from the clean chunks before it. These are not quite clean in
training: a pipeline's are its own, with its own mistakes, which would otherwise add up from chunk to chunk.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studies.helios_reference import models
from studies.reference import checkpoint, latents, world
from studies.reference import models as shared
from studies.reference.steps import Course, train_steps
from studies.reference.train_transformer import build_optimizer, encode_text, tokenize

CURVES = Path(__file__).parent / "training"


@dataclass(frozen=True)
class Recipe(Course):
    """Hyperparameters.

    `first` of the steps train the first chunk, where what a clip shows is decided; `two_objects` is the share of clips
    with two, which are learnt last; `history_noise` is the most that is mixed into what came before a later chunk.
    """

    steps: int = 2200
    decay: int = 1500
    adamw_lr: float = 5e-4
    muon_lr: float = 1.2e-3
    clips: int = 8000
    batch: int = 14
    first: float = 0.6
    two_objects: float = 0.5
    history_noise: float = 0.12
    weight_decay: float = 0.01
    drop_caption: float = 0.1


def train(run: Path, recipe: Recipe, seed: int = 0) -> None:
    """Train on the data set `seed`, going on from `run / "transformer.safetensors"` where there is one."""
    torch.manual_seed(seed)
    data, captions = latents.data_set(seed, recipe.clips, models.KEYFRAMES)
    embeddings, empty = _embed(captions)
    double = torch.tensor([len(world.parse_caption(caption).objects) > 1 for caption in captions])
    weights = torch.where(double, recipe.two_objects / double.sum(), (1 - recipe.two_objects) / (~double).sum())
    transformer = models.start_transformer()

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        chunk = 0
        if torch.rand((), generator=generator) >= recipe.first:
            chunk = int(torch.randint(1, models.CHUNKS, (), generator=generator))
        chosen = torch.multinomial(weights, recipe.batch, replacement=True, generator=generator)
        drop = torch.rand((recipe.batch, 1, 1), generator=generator) < recipe.drop_caption
        text = torch.where(drop, empty, embeddings[chosen])
        return flow_loss(transformer, data[chosen].float(), chunk, text, generator, recipe.history_noise)

    parts = torch.nn.ModuleDict({"transformer": transformer})
    train_steps(run, parts, build_optimizer(transformer, recipe), recipe, loss_of, seed)


def flow_loss(
    transformer: Any,
    clips: torch.Tensor,
    chunk: int,
    text: torch.Tensor,
    generator: torch.Generator,
    history_noise: float = 0.0,
) -> torch.Tensor:
    """The flow-matching loss of one chunk of a batch.

    Args:
        transformer: the model.
        clips: normalised latents [batch, channels, CHUNKS * CHUNK, height, width].
        chunk: number of the chunk.
        text: embeddings [batch, TEXT_LENGTH, TEXT_DIM].
        generator: the source of noise and of noise levels.
        history_noise: the most that is mixed into what came before.
    """
    batch = len(clips)
    level, shift = torch.rand((2, batch, 1, 1, 1, 1), generator=generator)
    # Between the levels as a sampler without a shift has them, and those that the weights were trained on before.
    shift = 1 + (shared.FLOW_SHIFT - 1) * shift
    sigma = shift * level / (1 + (shift - 1) * level)
    blur = history_noise * torch.rand((batch, 1, 1, 1, 1), generator=generator)
    before = (1 - blur) * clips + blur * torch.randn(clips.shape, generator=generator)
    clean = clips[:, :, chunk * models.CHUNK : (chunk + 1) * models.CHUNK]
    noise = torch.randn(clean.shape, generator=generator)
    indices = torch.arange(1 + sum(models.HISTORY) + models.CHUNK)[None]
    first, long, mid, newest, now = indices.split([1, *models.HISTORY, models.CHUNK], dim=1)
    history = models.history_of(before, chunk)
    prediction = transformer(
        hidden_states=(1 - sigma) * clean + sigma * noise,
        timestep=sigma.flatten() * shared.TRAIN_TIMESTEPS,
        encoder_hidden_states=text,
        indices_hidden_states=now,
        indices_latents_history_short=torch.cat([first, newest], dim=1),
        indices_latents_history_mid=mid,
        indices_latents_history_long=long,
        latents_history_short=history[0],
        latents_history_mid=history[1],
        latents_history_long=history[2],
        return_dict=False,
    )[0]
    return (prediction - (noise - clean)).square().mean()


@torch.no_grad()
def _embed(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of captions [captions, TEXT_LENGTH, TEXT_DIM], and of the empty one."""
    pipeline = shared.load_pipeline()
    tokens = tokenize(pipeline.tokenizer, [*captions, ""])
    embedded = torch.cat([encode_text(pipeline.text_encoder, some) for some in tokens.split(500)])
    return embedded[:-1], embedded[-1]


def load_average(run: Path) -> tuple[Any, int]:
    """The averaged transformer of a run, and the step it is from."""
    tensors, step = checkpoint.load(run / "transformer.safetensors")
    transformer = models.build_transformer()
    transformer.load_state_dict(checkpoint.with_prefix(tensors, "average.transformer"))
    return transformer, step


def export(run: Path, folder: Path) -> None:
    """Write the pipeline of a run to `folder`, and the run's loss curve to `training/`."""
    transformer, step = load_average(run)
    models.save_pipeline(folder, transformer)
    CURVES.mkdir(exist_ok=True)
    shutil.copyfile(run / "transformer.csv", CURVES / "transformer.csv")
    print(f"wrote {folder}, transformer step {step}")


def plot(curves: Path) -> None:
    """Draw the loss curve in `curves` to `curves / "training.png"`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with (curves / "transformer.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="flow-matching loss (mean of 25 steps)", yscale="log", title="Transformer")
    axes.grid(alpha=0.3)
    figure.savefig(curves / "training.png", dpi=110)


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("transformer", help="train the transformer")
    training.add_argument("--steps", type=int, help="steps of the whole course (default: the recipe's)")
    out = commands.add_parser("export", help="write the pipeline folder")
    out.add_argument("--out", type=Path, default=models.PIPELINE_DIR)
    for command in (training, out):
        command.add_argument("--run", type=Path, required=True, help="folder of the run")
    commands.add_parser("plot", help="draw the loss curve")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.command == "transformer":
        steps = arguments.steps or Recipe.steps
        train(arguments.run, Recipe(steps=steps, decay=min(Recipe.decay, steps)), arguments.seed)
    elif arguments.command == "export":
        export(arguments.run, arguments.out)
    else:
        plot(CURVES)


if __name__ == "__main__":
    main()
