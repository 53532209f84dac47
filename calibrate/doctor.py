"""`scope-calibrate doctor`: everything that can be found out before hours of computation, one line per check."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import transformers
from sqlalchemy import select

from calibrate.devices import has_device, require_device
from calibrate.errors import CalibrateError
from calibrate.footprint import Footprint, footprint_of, pipeline_weights, read_config, stored_parameters
from calibrate.magi_1_checkout import Checkout, special_tokens
from calibrate.outputs import existing, require_cache, require_profile_path
from calibrate.scores import Scores
from calibrate.store import Generation as GenerationRecord
from calibrate.store import Storage, StudyRecord, masked_url, recorded, refuse_changes
from calibrate.study_file import Study, StudyFile

State = Literal["ok", "warning", "failed"]

_GIB = 2**30
# Activations, the decoder and the allocator's reserve come on top of weights and context.
_COMFORTABLE_SHARE = 0.8
_FEW_PROMPTS = 3
# A candidate of the search evaluates about a third of the blocks; exact mode two thirds.
_CANDIDATE_SHARE, _EXACT_SHARE = 1 / 3, 2 / 3
# Large transformers reach this share of what a plain matrix product reaches, from worst to best.
_EFFICIENCY = (0.25, 0.9)
_PROBE_SECONDS = 0.3


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: What was checked.
        state: `failed` would stop the study, `warning` may spoil it.
        message: One sentence; with the mend unless all is well.
        figures: The numbers behind it; bytes, seconds or counts.
    """

    name: str
    state: State
    message: str
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"name": self.name, "state": self.state, "message": self.message, "figures": self.figures}


def examine(file: StudyFile) -> Iterator[Check]:
    """Runs all checks of a study, each as soon as the one before is done.

    No weights are loaded, and nothing is made that was not there. A check that cannot be made because an earlier one
    failed is left out.
    """
    footprint = yield from _requirements(file)
    if footprint is not None:
        shapes = footprint
        yield from _checked("time", lambda: _time(file.study, shapes))


def refuse_unsound(file: StudyFile) -> None:
    """Makes the checks of `examine` that can fail: what would stop a study stops it before anything is computed.

    Raises:
        CalibrateError: With what the first failed check says.
    """
    for check in _requirements(file):
        if check.state == "failed":
            raise CalibrateError(check.message)


def _requirements(file: StudyFile) -> Generator[Check, None, Footprint | None]:
    """The checks that can fail; gives the footprint, if there is one."""
    study = file.study
    magi = study.model.family == "magi_1"
    yield from _checked("device", lambda: _device(study))
    fits = not magi or (yield from _checked("configuration", lambda: _configuration(file))) is not None
    weights = (yield from _checked("weights", lambda: _weights(file))) if fits else None
    if magi and fits:
        yield from _checked("code", lambda: _code(file))
    footprint = None
    if weights is not None:
        try:
            footprint = footprint_of(file.model_path, study.model, study.generation)
        except CalibrateError as error:
            yield Check("settings", "failed", str(error))
    if footprint is not None and weights is not None:
        shapes, parameters = footprint, weights.figures["parameters"]
        yield _settings(shapes)
        yield from _checked("memory", lambda: _memory(file, shapes, parameters))
        yield from _checked("disk", lambda: _disk(study, shapes))
    yield from _checked("export", lambda: _export(file))
    yield from _checked("prompts", lambda: _prompts(file))
    yield from _checked("database", lambda: _database(study))
    if study.quality.scores:
        yield from _checked("scores", lambda: _scores(study))
    return footprint


def _checked(name: str, check: Callable[[], Check]) -> Generator[Check, None, Check | None]:
    """Yields what a check finds, a refusal included, and returns it unless it failed."""
    try:
        found = check()
    except CalibrateError as error:
        found = Check(name, "failed", str(error))
    yield found
    return found if found.state != "failed" else None


def _checkout(file: StudyFile) -> Checkout:
    return Checkout(file.model_path, file.study.model, file.study.generation)


def _configuration(file: StudyFile) -> Check:
    """What MAGI-1's configuration says, which is held against the study."""
    checkout = _checkout(file)
    runtime = checkout.config.runtime
    return Check(
        "configuration",
        "ok",
        f"{checkout.path.name}: chunks of {runtime.chunk_width} latent frames, {runtime.cfg_number} guidance branches",
    )


def _code(file: StudyFile) -> Check:
    """Whether MAGI-1's code can be imported, and what the environment makes it put before every prompt."""
    package, _ = _checkout(file).code()
    tokens = special_tokens(package)
    said = ", ".join(tokens) or "none (the official run.sh sets PAD_HQ=1 and PAD_DURATION=1)"
    return Check("code", "ok", f"can be imported; tokens before every prompt: {said}", {"special_tokens": tokens})


def _weights(file: StudyFile) -> Check:
    parameters = size = 0
    for files in _weight_files(file):
        parameters += stored_parameters(files)
        size += sum(path.stat().st_size for path in files)
    return Check(
        "weights",
        "ok",
        f"{parameters / 1e9:.3g} billion parameters in complete files of {_gib(size)}",
        {"parameters": parameters, "bytes": size},
    )


def _weight_files(file: StudyFile) -> list[list[Path]]:
    """The files with the weights of each model that a generation keeps on its device, the transformer's first."""
    if file.study.model.family == "magi_1":
        return [_checkout(file).weights]  # text encoder and VAE take turns with it
    return _diffusers_weights(file)


def _diffusers_weights(file: StudyFile) -> list[list[Path]]:
    """Those of a pipeline's parts."""
    folder = file.model_path
    index = folder / "model_index.json"
    if not index.is_file():
        raise CalibrateError(
            f"model.path: {folder} is not a diffusers pipeline (it has no model_index.json); check the path."
        )
    try:
        held = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrateError(f"model.path: {index} is damaged; download the pipeline again.") from error
    expected = file.study.model.pipeline_class
    if held != expected:
        raise CalibrateError(
            f"model.path: {folder} holds a {held}, not a {expected}; choose a diffusion-forcing "
            "text-to-video checkpoint."
        )
    parts = [folder / component for component in ("transformer", "text_encoder", "vae")]
    for part in parts:
        read_config(part)
    return [pipeline_weights(part, file.study.model.variant) for part in parts]


def _device(study: Study) -> Check:
    device, dtype = study.model.device, study.model.torch_dtype
    require_device(device)
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(torch.device(device))
        if dtype == "float32":
            return Check("device", "warning", f"{name}, in float32; set model.torch_dtype to bfloat16, as is usual")
        return Check("device", "ok", f"{name}, {dtype}")
    return Check("device", "ok", f"{device}, {dtype}")


def _settings(footprint: Footprint) -> Check:
    if footprint.bidirectional:
        return Check(
            "settings",
            "warning",
            "attention is bidirectional (causal_block_size 1): nothing can be left out of a computed row; set "
            "causal_block_size to 5 and ar_step to 5 for asynchronous generation",
        )
    return Check(
        "settings",
        "ok",
        f"{footprint.latent_frames} latent frames in {footprint.blocks} blocks, {footprint.rows} rows, "
        f"{footprint.latent_frames * footprint.patches} tokens",
        {"latent_frames": footprint.latent_frames, "blocks": footprint.blocks, "rows": footprint.rows},
    )


def _memory(file: StudyFile, footprint: Footprint, parameters: int) -> Check:
    study = file.study
    weights, context = parameters * footprint.itemsize, footprint.context_bytes
    need, there = weights + context, _device_bytes(study.model.device)
    figures = {
        "weights_bytes": weights,
        "context_bytes": context,
        "stock_mask_bytes": footprint.mask_bytes,
        "available_bytes": there,
    }
    said = f"weights {_gib(weights)} and context {_gib(context)}, before activations; {_gib(there)} there"
    # What any policy takes at least, wherever text encoder and VAE are while it runs.
    least = stored_parameters(_weight_files(file)[0]) * footprint.itemsize + context
    ceiling = study.floors.max_memory
    if ceiling is not None and least > ceiling:
        raise CalibrateError(
            f"floors.max_memory: transformer and context alone take {_gib(least)}, more than the {_gib(ceiling)} "
            "allowed; raise it, or take a smaller model.torch_dtype, or fewer frames or pixels."
        )
    if need > there:
        raise CalibrateError(
            f"memory: {said}; take a device with more, a smaller model.torch_dtype, or fewer frames or pixels."
        )
    if need > _COMFORTABLE_SHARE * there:
        return Check("memory", "warning", f"{said}; that is tight, so try one generation first", figures)
    return Check("memory", "ok", said, figures)


def _disk(study: Study, footprint: Footprint) -> Check:
    require_cache(study)
    there = sum(path.stat().st_size for path in study.cache_folder.glob("*.safetensors"))
    need = max(0, footprint.baseline_bytes * len(study.search_cases) - there)
    free = shutil.disk_usage(existing(study.cache_folder)).free
    figures = {"need_bytes": need, "free_bytes": free}
    said = f"baselines of {len(study.search_cases)} cases take about {_gib(need)}; {_gib(free)} free"
    if there:
        said = f"{_gib(there)} of baselines are there; {said}"
    if need > free:
        raise CalibrateError(f"cache: {said}; free some space or choose another folder with `cache:`.")
    if need > _COMFORTABLE_SHARE * free:
        return Check("disk", "warning", f"{said}; free some space first", figures)
    return Check("disk", "ok", said, figures)


def _export(file: StudyFile) -> Check:
    require_profile_path(file, file.study.profile_path)
    return Check("export", "ok", f"the profile goes to {file.study.profile_path}")


def _prompts(file: StudyFile) -> Check:
    study = file.study
    figures = {"search_cases": len(study.search_cases), "held_out_cases": len(study.held_out_cases)}
    if study.model.family == "magi_1":
        return _enough_prompts(figures)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.model_path / "tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise CalibrateError("model.path: its tokenizer cannot be loaded; download the pipeline again.") from error
    limit = study.generation.max_sequence_length
    for case in (*study.search_cases, *study.held_out_cases):
        length = len(tokenizer(case.prompt)["input_ids"])
        if length > limit:
            return Check(
                "prompts",
                "warning",
                f"{case.prompt[:40]!r}... has {length} tokens and is cut to generation.max_sequence_length {limit}; "
                "shorten it or raise the limit",
                figures,
            )
    return _enough_prompts(figures)


def _enough_prompts(figures: dict[str, Any]) -> Check:
    said = f"{figures['search_cases']} to search on, {figures['held_out_cases']} held out"
    if min(figures.values()) < _FEW_PROMPTS:
        return Check("prompts", "warning", f"{said}; prompts differ a lot, so use three or more of each", figures)
    return Check("prompts", "ok", said, figures)


def _database(study: Study) -> Check:
    Storage.probe(study.storage_url)
    record = _started(study)
    if record is not None:
        refuse_changes(record, study.fixed_parts())
    said = "can be used" if record is None else "holds this study, which will be continued"
    return Check("database", "ok", f"{masked_url(study.storage_url)} {said}")


def _started(study: Study) -> StudyRecord | None:
    """The study's record, if it was started before."""
    with _opened(study) as storage:
        return recorded(storage, study.name) if storage else None


@contextlib.contextmanager
def _opened(study: Study) -> Iterator[Storage | None]:
    """The study's database, if there is one."""
    try:
        storage = Storage(study.storage_url, create=False)
    except CalibrateError:
        yield None
        return
    try:
        yield storage
    finally:
        storage.close()


def _scores(study: Study) -> Check:
    Scores(study.quality.scores)
    return Check("scores", "ok", ", ".join(score.name for score in study.quality.scores))


def _time(study: Study, footprint: Footprint) -> Check:
    equivalents = _equivalents(study)
    measured = _measured_seconds(study)
    if measured is not None:
        seconds = (equivalents * measured, equivalents * measured)
        basis = f"at {measured:.3g} s per stock generation, as measured in this study"
    else:
        rate = _matmul_rate(study)
        worst, best = (footprint.flops / (rate * share) for share in _EFFICIENCY)
        seconds = (equivalents * best, equivalents * worst)
        basis = f"estimated: {footprint.flops:.2g} operations per stock generation at {rate:.2g} per second"
    figures = {
        "stock_equivalents": equivalents,
        "seconds_low": seconds[0],
        "seconds_high": seconds[1],
        "measured": measured is not None,
    }
    low, high = (_duration(value) for value in seconds)
    span = low if low == high else f"{low} to {high}"
    limit = study.budget.minutes
    if limit is not None and seconds[0] > limit * 60:
        return Check(
            "time",
            "warning",
            f"about {span} with one worker ({basis}), more than budget.minutes {limit:g} allows; raise it, lower "
            "budget.trials or start more workers",
            figures,
        )
    return Check("time", "ok", f"about {span} with one worker ({basis})", figures)


def _equivalents(study: Study) -> float:
    """Stock generations that the whole study takes as long as."""
    searched = 1 + _EXACT_SHARE + study.budget.trials * _CANDIDATE_SHARE
    if study.budget.equivalents is not None:
        searched = min(searched, study.budget.equivalents)
    held_out = 1 + _EXACT_SHARE + _CANDIDATE_SHARE
    return len(study.search_cases) * searched + len(study.held_out_cases) * held_out


def _measured_seconds(study: Study) -> float | None:
    """Seconds of a stock generation, if this study has made some."""
    query = (
        select(GenerationRecord.seconds_denoise)
        .join(StudyRecord, StudyRecord.id == GenerationRecord.study_id)
        .where(StudyRecord.name == study.name, GenerationRecord.kind == "stock", GenerationRecord.state == "complete")
    )
    with _opened(study) as storage:
        found = storage.transaction(lambda session: session.scalars(query).all()) if storage else ()
    seconds = [value for value in found if value is not None]
    return sum(seconds) / len(seconds) if seconds else None


def _matmul_rate(study: Study) -> float:
    """Operations per second of a matrix product on the study's device, in its data type."""
    device = torch.device(study.model.device if has_device(study.model.device) else "cpu")
    size = 4096 if device.type != "cpu" else 512
    matrix = torch.ones(size, size, device=device, dtype=getattr(torch, study.model.torch_dtype))

    def product() -> None:
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    product()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _PROBE_SECONDS:
        product()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start)


def _device_bytes(device: str) -> int:
    if device.startswith("cuda") and has_device(device):
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return int(psutil.virtual_memory().available)


def _gib(size: int) -> str:
    return f"{size / _GIB:.3g} GiB" if size >= _GIB / 10 else f"{size / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2g} hours" if seconds >= 3600 else f"{max(1.0, seconds / 60):.0f} minutes"
