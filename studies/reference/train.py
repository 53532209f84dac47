"""Training of the reference pipeline, from nothing to the folder that is shipped.

    python -m studies.reference.train vae --stage frames --run RUN
    python -m studies.reference.train vae --stage clips --run RUN
    python -m studies.reference.train transformer --run RUN
    python -m studies.reference.train export --run RUN
    python -m studies.reference.train plot

The VAE and the transformer can be trained side by side. `start` begins a run with the shipped weights instead of fresh
ones; `transformer --steps N` then trains them N steps further, with the learning rates' whole course over them. `RUN`
is a folder for checkpoints and loss curves. Every command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from studies.reference import checkpoint, models, train_transformer, train_vae

CURVES = Path(__file__).parent / "training"


def load_vae(run: Path) -> Any:
    """The VAE of a run."""
    vae = models.build_vae()
    tensors, _ = checkpoint.load(run / "vae.safetensors")
    vae.load_state_dict(checkpoint.with_prefix(tensors, "vae"))
    return vae.eval()


def start(run: Path) -> None:
    """Begin a run with the weights of the shipped pipeline, to train them further."""
    pipeline = models.load_pipeline()
    parts = checkpoint.add_prefix(pipeline.transformer.state_dict(), "transformer")
    parts |= checkpoint.add_prefix(pipeline.text_encoder.state_dict(), "text_encoder")
    state = checkpoint.add_prefix(parts, "parts") | checkpoint.add_prefix(parts, "average")
    checkpoint.save(run / "transformer.safetensors", state, 0)
    checkpoint.save(run / "vae.safetensors", checkpoint.add_prefix(pipeline.vae.state_dict(), "vae"), 0)


def export(run: Path, folder: Path) -> None:
    """Write the pipeline of a run to `folder`, and the run's loss curves to `training/`."""
    transformer, text_encoder, step = train_transformer.load_average(run)
    models.save_pipeline(folder, load_vae(run), transformer, text_encoder)
    CURVES.mkdir(exist_ok=True)
    for curve in run.glob("*.csv"):
        shutil.copyfile(curve, CURVES / curve.name)
    print(f"wrote {folder}, transformer step {step}")


def plot(curves: Path) -> None:
    """Draw the loss curves in `curves` to `curves / "training.png"`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    offset = 0
    for name, stage in train_vae.STAGES.items():
        rows = _read_curve(curves / f"vae_{name}.csv")
        left.plot([offset + row["step"] for row in rows], [row["validation_psnr_db"] for row in rows], "o-", label=name)
        offset += stage.steps
    left.set(xlabel="step", ylabel="PSNR of unseen 97-frame clips, dB", title="VAE")
    left.legend(title="stage")
    rows = _read_curve(curves / "transformer.csv")
    right.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    right.set(xlabel="step", ylabel="flow-matching loss (mean of 25 steps)", yscale="log", title="Transformer")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(curves / "training.png", dpi=110)


def _read_curve(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    vae = commands.add_parser("vae", help="train the VAE, one stage at a time")
    vae.add_argument("--stage", choices=list(train_vae.STAGES), required=True)
    transformer = commands.add_parser("transformer", help="train the transformer and the text encoder")
    transformer.add_argument("--steps", type=int, help="steps of the whole course (default: the recipe's)")
    shipped = commands.add_parser("start", help="begin a run with the shipped weights")
    out = commands.add_parser("export", help="write the pipeline folder")
    out.add_argument("--out", type=Path, default=models.PIPELINE_DIR)
    for command in (vae, transformer, shipped, out):
        command.add_argument("--run", type=Path, required=True, help="folder of the run")
    commands.add_parser("plot", help="draw the loss curves")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    if arguments.command == "vae":
        train_vae.train(arguments.run, arguments.stage, arguments.seed)
    elif arguments.command == "transformer":
        recipe = train_transformer.Recipe()
        if arguments.steps:
            recipe = replace(recipe, steps=arguments.steps, decay=min(recipe.decay, arguments.steps))
        train_transformer.train(arguments.run, recipe, arguments.seed)
    elif arguments.command == "start":
        start(arguments.run)
    elif arguments.command == "export":
        export(arguments.run, arguments.out)
    else:
        plot(CURVES)


if __name__ == "__main__":
    main()
