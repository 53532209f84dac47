"""Training of the reference pipeline, from nothing to the folder that is shipped.

    python -m studies.reference.train vae --stage frames --run RUN
    python -m studies.reference.train vae --stage clips --run RUN
    python -m studies.reference.train vae --stage refine --run RUN
    python -m studies.reference.train latents --run RUN --shards 0 45
    python -m studies.reference.train transformer --stop 800 --run RUN
    python -m studies.reference.train reduce --run RUN
    python -m studies.reference.train transformer --run RUN
    python -m studies.reference.train vae --stage decoder --run RUN
    python -m studies.reference.train export --run RUN
    python -m studies.reference.train plot

To train the shipped weights further, begin with `start` and go on with `latents`, `transformer` and `export`.

`RUN` is a folder for checkpoints, latents and loss curves. Every command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

import torch

from studies.reference import checkpoint, latents, models, reduction, train_transformer, train_vae

CURVES = Path(__file__).parent / "training"


def load_vae(run: Path) -> tuple[Any, int]:
    """The VAE of a run, before or after the reduction of its channels, and the step it is from."""
    if reduction.exists(run):
        vae = models.build_vae(models.LATENT_CHANNELS, reduction.load(run).scale)
    else:
        vae = models.build_vae(models.TRAINED_CHANNELS)
    tensors, step = checkpoint.load(run / "vae.safetensors")
    vae.load_state_dict(checkpoint.with_prefix(tensors, "vae"))
    return vae.eval(), step


def reduce(run: Path) -> None:
    """Take channels out of a run's VAE, of its encoded latents and of the transformer trained on them so far."""
    vae, step = load_vae(run)
    data = latents.load_shards(run / "latents")[0]
    reduced = reduction.principal_components(data)
    _reduce_transformer(run, reduced, latents.statistics(data)[1])
    latents.map_shards(run / "latents", lambda shard: reduction.reduce_latents(reduced, shard))
    vae = reduction.reduce_vae(vae, reduced)
    checkpoint.save(run / "vae.safetensors", checkpoint.add_prefix(vae.state_dict(), "vae"), step)
    reduction.save(run, reduced)


def start(run: Path) -> None:
    """Begin a run with the weights of the shipped pipeline, to train them further on freshly encoded latents."""
    pipeline = models.load_pipeline()
    parts = checkpoint.add_prefix(pipeline.transformer.state_dict(), "transformer")
    parts |= checkpoint.add_prefix(pipeline.text_encoder.state_dict(), "text_encoder")
    state = checkpoint.add_prefix(parts, "parts") | checkpoint.add_prefix(parts, "average")
    checkpoint.save(run / "transformer.safetensors", state, 0)
    joint_steps = sum(stage.steps for stage in train_vae.STAGES.values() if not stage.decoder_only)
    checkpoint.save(run / "vae.safetensors", checkpoint.add_prefix(pipeline.vae.state_dict(), "vae"), joint_steps)
    # The shipped VAE's latents are reduced already.
    kept = models.LATENT_CHANNELS
    scale = pipeline.vae.config.latents_std[0]
    reduction.save(run, reduction.Reduction(torch.eye(kept), torch.zeros(kept), scale))


def _reduce_transformer(run: Path, reduced: reduction.Reduction, std: torch.Tensor) -> None:
    """Start the transformer's training anew, at step 0, from its current weights on reduced latents."""
    path = run / "transformer.safetensors"
    parts = checkpoint.with_prefix(checkpoint.load(path)[0], "parts")
    transformer = reduction.reduce_transformer(checkpoint.with_prefix(parts, "transformer"), reduced, std)
    parts |= checkpoint.add_prefix(transformer, "transformer")
    state = checkpoint.add_prefix(parts, "parts") | checkpoint.add_prefix(parts, "average")
    checkpoint.save(path, state, 0)
    (run / "transformer.csv").rename(run / f"transformer_{models.TRAINED_CHANNELS}_channels.csv")


def export(run: Path, folder: Path) -> None:
    """Write the pipeline of a run to `folder`, and the run's loss curves to `training/`."""
    transformer, text_encoder, step = train_transformer.load_average(run)
    models.save_pipeline(folder, load_vae(run)[0], transformer, text_encoder)
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
    runs = {f"transformer_{models.TRAINED_CHANNELS}_channels": "before reduction", "transformer": "after reduction"}
    for name, label in runs.items():
        rows = _read_curve(curves / f"{name}.csv")
        right.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=label)
    right.set(xlabel="step", ylabel="flow-matching loss (mean of 25 steps)", yscale="log", title="Transformer")
    right.legend(title="latent channels")
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
    encode = commands.add_parser("latents", help="encode the transformer's data set")
    encode.add_argument("--shards", type=int, nargs=2, default=(0, 45), metavar=("FIRST", "END"))
    shipped = commands.add_parser("start", help="begin a run with the shipped weights")
    reduced = commands.add_parser("reduce", help="take latent channels out of the VAE and the data set")
    transformer = commands.add_parser("transformer", help="train the transformer and the text encoder")
    transformer.add_argument("--stop", type=int, help="step at which to stop early")
    out = commands.add_parser("export", help="write the pipeline folder")
    out.add_argument("--out", type=Path, default=models.PIPELINE_DIR)
    for command in (vae, encode, shipped, reduced, transformer, out):
        command.add_argument("--run", type=Path, required=True, help="folder of the run")
    commands.add_parser("plot", help="draw the loss curves")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    if arguments.command == "vae":
        train_vae.train(arguments.run, arguments.stage, arguments.seed)
    elif arguments.command == "latents":
        first, end = arguments.shards
        latents.encode_shards(load_vae(arguments.run)[0], arguments.run / "latents", first, end, arguments.seed)
    elif arguments.command == "start":
        start(arguments.run)
    elif arguments.command == "reduce":
        reduce(arguments.run)
    elif arguments.command == "transformer":
        train_transformer.train(arguments.run, train_transformer.Recipe(), arguments.seed, stop=arguments.stop)
    elif arguments.command == "export":
        export(arguments.run, arguments.out)
    else:
        plot(CURVES)


if __name__ == "__main__":
    main()
