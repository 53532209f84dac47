"""`scope-calibrate doctor`: everything that can be found out before hours of computation, one line per check."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from sqlalchemy import select

from calibrate.errors import CalibrateError
from calibrate.families import family_of
from calibrate.families.check import Check
from calibrate.families.devices import has_device, require_device
from calibrate.families.family import Checks
from calibrate.families.footprint import Footprint
from calibrate.families.weights import stored_parameters
from calibrate.quality.scores import Scores
from calibrate.results.guarantee import share_test
from calibrate.results.likeness import Likeness
from calibrate.results.promises import refuse_too_few
from calibrate.spec.guarantee import Guarantee
from calibrate.store import Generation as GenerationRecord
from calibrate.store import Storage, Store, StudyRecord, masked_url, recorded, refuse_changes
from calibrate.study.outputs import existing, require_cache, require_profile_path
from calibrate.study.promised import recorded_promises
from calibrate.study.study_file import Study, StudyFile
from calibrate.tracking import require_tracking

_GIB = 2**30
# Activations, the decoder and the allocator's reserve come on top of weights and context.
_COMFORTABLE_SHARE = 0.8
_FEW_PROMPTS = 3
# A candidate of the search evaluates about a third of the blocks; exact mode two thirds.
_CANDIDATE_SHARE, _EXACT_SHARE = 1 / 3, 2 / 3
# Large transformers reach this share of what a plain matrix product reaches, from worst to best.
_EFFICIENCY = (0.25, 0.9)
_PROBE_SECONDS = 0.3


def examine(file: StudyFile) -> Iterator[Check]:
    """Runs all checks of a study, each as soon as the one before is done.

    No weights are loaded, and nothing is made that was not there. A check that cannot be made because an earlier one
    failed is left out.
    """
    footprint = yield from _requirements(file)
    if footprint is not None:
        shapes = footprint
        yield from _checked("time", lambda: _time(file.study, shapes))


def refuse_unsound(file: StudyFile, *, elsewhere: bool = False) -> None:
    """Makes the checks of `examine` that can fail: what would stop a study stops it before anything is computed.

    Args:
        file: The study.
        elsewhere: Whether it runs on other machines than this one, whose device and memory then say nothing.

    Raises:
        CalibrateError: With what the first failed check says.
    """
    for check in _requirements(file):
        if check.state == "failed" and not (elsewhere and check.name in ("device", "memory")):
            raise CalibrateError(check.message)


def _requirements(file: StudyFile) -> Generator[Check, None, Footprint | None]:
    """The checks that can fail; gives the footprint, if there is one."""
    study = file.study
    family, model = family_of(study.model), (file.model_path, study.model, study.generation)
    yield from _checked("device", lambda: _device(study))
    weights = None
    if (yield from _all_passed(family.first_checks(*model))):
        weights = yield from _checked("weights", lambda: _weights(file))
        yield from _all_passed(family.further_checks(*model))
    footprint = None
    if weights is not None:
        try:
            footprint = family.footprint(*model)
        except CalibrateError as error:
            yield Check("settings", "failed", str(error))
    if footprint is not None and weights is not None:
        shapes, parameters = footprint, weights.figures["parameters"]
        yield shapes.described()
        yield from _checked("memory", lambda: _memory(file, shapes, parameters))
        yield from _checked("disk", lambda: _disk(study, shapes))
    yield from _checked("export", lambda: _export(file))
    yield from _checked("prompts", lambda: _prompts(file))
    if study.guarantee is not None:
        guarantee = study.guarantee
        yield from _checked("guarantee", lambda: _guarantee(guarantee, study))
    yield from _checked("database", lambda: _database(study))
    if study.quality.scores:
        yield from _checked("scores", lambda: _scores(study))
    if study.tracking is not None:
        address = study.tracking.mlflow
        yield from _checked("tracking", lambda: _tracking(file, address))
    return footprint


def _checked(name: str, check: Callable[[], Check]) -> Generator[Check, None, Check | None]:
    """Yields what a check finds, a refusal included, and returns it unless it failed."""
    try:
        found = check()
    except CalibrateError as error:
        found = Check(name, "failed", str(error))
    yield found
    return found if found.state != "failed" else None


def _all_passed(checks: Checks) -> Generator[Check, None, bool]:
    """Yields what checks find, up to the first that fails."""
    for name, check in checks.items():
        if (yield from _checked(name, check)) is None:
            return False
    return True


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
    model = file.study.model
    return family_of(model).weights(file.model_path, model, file.study.generation)


def _device(study: Study) -> Check:
    device, dtype = study.model.device, study.model.torch_dtype
    require_device(device)
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(torch.device(device))
        if dtype == "float32":
            return Check("device", "warning", f"{name}, in float32; set model.torch_dtype to bfloat16, as is usual")
        return Check("device", "ok", f"{name}, {dtype}")
    return Check("device", "ok", f"{device}, {dtype}")


def _memory(file: StudyFile, footprint: Footprint, parameters: int) -> Check:
    study = file.study
    weights, context = parameters * footprint.itemsize, footprint.context_bytes
    # Weights are fitted on clips in lockstep, each with a context of its own.
    together = len(study.fit_cases) if study.search.learned is not None else 1
    need, there = weights + together * context, _device_bytes(study.model.device)
    figures = {
        "weights_bytes": weights,
        "context_bytes": context,
        "clips_at_once": together,
        "stock_mask_bytes": footprint.mask_bytes,
        "available_bytes": there,
    }
    times = f" for each of {together} fit_cases" if together > 1 else ""
    said = f"weights {_gib(weights)} and context {_gib(context)}{times}, before activations; {_gib(there)} there"
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
            f"memory: {said}; take a device with more, a smaller model.torch_dtype, or fewer frames"
            f"{', pixels or fit_cases' if times else ' or pixels'}."
        )
    if need > _COMFORTABLE_SHARE * there:
        return Check("memory", "warning", f"{said}; that is tight, so try one generation first", figures)
    return Check("memory", "ok", said, figures)


def _disk(study: Study, footprint: Footprint) -> Check:
    require_cache(study)
    there = sum(path.stat().st_size for path in study.cache_folder.glob("*.safetensors"))
    # Those with traces once for every way to set the pipeline up.
    traced = len(study.search_cases) + len(study.fit_cases) * bool(study.search.learned)
    kept = traced * len(study.search.preparations) + len(study.guarantee_cases)
    need = max(0, footprint.baseline_bytes * kept - there)
    free = shutil.disk_usage(existing(study.cache_folder)).free
    figures = {"need_bytes": need, "free_bytes": free}
    said = f"{kept} baselines take about {_gib(need)}; {_gib(free)} free"
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
    if file.missing_image is not None:
        raise CalibrateError(file.missing_image)
    figures = {"search_cases": len(study.search_cases), "held_out_cases": len(study.held_out_cases)}
    cases = (*study.search_cases, *study.held_out_cases, *study.fit_cases, *study.guarantee_cases)
    prompts = [case.prompt for case in cases]
    cut = family_of(study.model).cut_prompt(file.model_path, study.model, study.generation, prompts)
    if cut is not None:
        return Check("prompts", "warning", cut, figures)
    said = f"{figures['search_cases']} to search on, {figures['held_out_cases']} held out"
    if min(figures.values()) < _FEW_PROMPTS:
        return Check("prompts", "warning", f"{said}; prompts differ a lot, so use three or more of each", figures)
    return Check("prompts", "ok", said, figures)


def _guarantee(guarantee: Guarantee, study: Study) -> Check:
    cases = len(study.guarantee_cases)
    refuse_too_few(guarantee, cases)
    test = share_test(cases, guarantee.share, guarantee.confidence)
    assert test is not None
    said = f"{cases} cases to test a share of {guarantee.share:g} with confidence {guarantee.confidence:g}"
    said += f": {test.misses} of the first {test.cases} may miss"
    figures: dict[str, Any] = {"cases": cases, "tested": test.cases, "allowed_misses": test.misses}
    likeness = _likeness(study)
    if likeness is None:
        return Check("guarantee", "ok", said, figures)
    figures["likeness"] = asdict(likeness)
    return Check("guarantee", "ok" if likeness.alike else "warning", f"{said}; {likeness.told()}", figures)


def _likeness(study: Study) -> Likeness | None:
    """Search prompts beside guarantee prompts, if this study has tested policies on both."""
    with _opened(study) as storage:
        record = recorded(storage, study.name) if storage else None
        table = recorded_promises(Store(storage, record), study) if storage and record else None
        return table.likeness if table else None


def _database(study: Study) -> Check:
    Storage.probe(study.storage_url)
    record = _started(study)
    if record is not None:
        refuse_changes(record, study.fixed_parts())
    said = "can be used" if record is None else "holds this study, which will be continued"
    return Check("database", "ok", f"{masked_url(study.storage_url)} {said}")


def _tracking(file: StudyFile, address: str) -> Check:
    require_tracking(file, address)
    return Check("tracking", "ok", f"{address} can be told")


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
    asked = ", ".join(f"{score.name}{' (slow)' if score.slow else ''}" for score in study.floor_scores)
    told = ", ".join(score.name for score in study.quality.scores)
    return Check("scores", "ok", told + (f"; measured on candidates, for floors: {asked}" if asked else ""))


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
            f"about {span} with one device ({basis}), more than budget.minutes {limit:g} allows; raise it, lower "
            "budget.trials or take more --devices",
            figures,
        )
    return Check("time", "ok", f"about {span} with one device ({basis})", figures)


def _equivalents(study: Study) -> float:
    """Stock generations that the whole study takes as long as."""
    # A pipeline that was set up just now is run once before its time is taken.
    held_out = 1 + _EXACT_SHARE + (1 + study.search.prepares) * _CANDIDATE_SHARE
    most_policies = study.guarantee.most_policies if study.guarantee else 0
    guaranteed = 1 + most_policies * _CANDIDATE_SHARE
    return _searched_equivalents(study) + len(study.held_out_cases) * held_out + len(study.guarantee_cases) * guaranteed


def _searched_equivalents(study: Study) -> float:
    """Those of baselines, fits and candidates, which `budget.equivalents` bounds, once there are baselines.

    Whether a way to set the pipeline up is worth searching is not known yet: all are taken to be.
    """
    search, cases = study.search, len(study.search_cases)
    ways = len(search.preparations)
    candidates = max(study.budget.trials, ways)
    learned, fit_cases = (search.learned.share, len(study.fit_cases)) if search.learned else (0.0, 0)
    baselines = (1 + _EXACT_SHARE) * ways * (cases + fit_cases)
    searched = candidates * _CANDIDATE_SHARE * (cases + learned * fit_cases)
    # Each is timed beside a stock run of one case.
    searched += candidates * search.prepares
    if study.budget.equivalents is not None:
        searched = min(searched, max(0.0, study.budget.equivalents * cases - baselines))
    return baselines + searched


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
