"""The YAML that a user writes: one study, checked in full before anything runs.

Paths that a study reads (`model.path`) are relative to the study file; paths that it writes (`storage`, `cache`,
`export.path`) are relative to the folder in which the command runs.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Self, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from calibrate.errors import CalibrateError
from calibrate.families import AnyModel, family_of
from calibrate.files import digest, file_failure, read_text
from calibrate.results.guarantee import cases_needed
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case, Generation, ModelSpec
from calibrate.spec.guarantee import Guarantee
from calibrate.spec.running import Budget, Export, QualityChecks, Score, Timing, Tracking
from calibrate.spec.search_space import SearchSpace
from calibrate.spec.strict import Strict, not_to_be_kept
from calibrate.store import has_secrets, masked_url, without_secrets
from calibrate.study.images import with_image
from calibrate.study.study_yaml import read_yaml
from scope_runtime.errors import named, shown

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


# Each set of prompts serves a purpose of its own, and shares none with another.
_CASES = ("search_cases", "held_out_cases", "fit_cases", "guarantee_cases")
# A study with thousands of prompts fits.
_MOST_BYTES = 1 << 20


class Study(Strict):
    """A whole study file."""

    name: Name
    model: AnyModel
    generation: Generation
    search_cases: Annotated[list[Case], Field(min_length=1)]
    held_out_cases: Annotated[list[Case], Field(min_length=1)]
    fit_cases: list[Case] = []  # noqa: RUF012 - pydantic copies defaults
    guarantee_cases: list[Case] = []  # noqa: RUF012
    search: SearchSpace = SearchSpace()
    floors: Floors = Floors()
    guarantee: Guarantee | None = None
    budget: Budget = Budget()
    quality: QualityChecks = QualityChecks()
    timing: Timing = Timing()
    seed: int = Field(default=0, ge=0, lt=2**32)
    storage: str | None = Field(default=None, min_length=1)
    cache: str | None = Field(default=None, min_length=1)
    clip_megabytes: float = Field(default=500.0, ge=0, le=1e9)
    export: Export = Export()
    tracking: Tracking | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_workers(cls, data: Any) -> Any:
        """Reads studies from when several processes shared one, and said here how they knew of each other."""
        return {name: value for name, value in data.items() if name != "workers"} if isinstance(data, dict) else data

    @model_validator(mode="before")
    @classmethod
    def _guarantee_in_place_of_margin(cls, data: Any) -> Any:
        """Where tests on further prompts decide, no margin is asked for unless the study gives one."""
        if not isinstance(data, dict) or data.get("guarantee") is None:
            return data
        floors = data.get("floors", {})
        return {**data, "floors": {"safety_margin_db": 0.0, **floors}} if isinstance(floors, dict) else data

    @model_validator(mode="after")
    def _cases_apart(self) -> Self:
        for field in _CASES:
            cases = getattr(self, field)
            if len({(case.prompt, case.seed) for case in cases}) != len(cases):
                raise ValueError(f"{field} holds the same prompt and seed twice; remove one of them")
        for one, other in combinations(_CASES, 2):
            prompts = {case.prompt for case in getattr(self, one)}
            for case in getattr(self, other):
                if case.prompt in prompts:
                    raise ValueError(
                        f"{other} must share no prompt with {one}, but both hold {case.prompt!r}; change one of them"
                    )
        if self.search.learned is not None and not self.fit_cases:
            raise ValueError("fit_cases must name the prompts that search.learned fits weights on; three will do")
        return self

    @model_validator(mode="after")
    def _scores_known(self) -> Self:
        known = {score.name: score for score in self.quality.scores}
        for name, floor in self.floors.scores.items():
            field = f"floors.scores.{named(name)}"
            if name not in known:
                names = ", ".join(known) or "none"
                raise ValueError(f"{field} names no score of quality.scores (there: {names}); add it there, or drop it")
            score = known[name]
            if score.of == "pair" and floor.relative:
                raise ValueError(
                    f"{field}.{floor.relative} asks for the stock clip's own score, which one of pairs (of: pair) does "
                    "not have; use at_least or at_most"
                )
            best = score.best
            too_low = best is not None and floor.at_least is not None and best < floor.at_least
            too_high = best is not None and floor.at_most is not None and best > floor.at_most
            if too_low or too_high:
                raise ValueError(f"quality.scores.{name}.best does not hold {field}; correct one of them")
        return self

    @model_validator(mode="after")
    def _guarantee_has_cases(self) -> Self:
        if self.guarantee is None:
            if self.guarantee_cases:
                raise ValueError(
                    "guarantee must say what guarantee_cases are to promise, such as {share: 0.9, confidence: 0.9}"
                )
            return self
        if not self.guarantee_cases:
            raise ValueError(
                "guarantee_cases must name the prompts that guarantee is tested on; a share of "
                f"{self.guarantee.share:g} with confidence {self.guarantee.confidence:g} takes "
                f"{cases_needed(self.guarantee.share, self.guarantee.confidence)}"
            )
        if not self.floors.of_each_prompt:
            raise ValueError(
                "guarantee promises floors that hold for each prompt, but floors sets none; set psnr_worst_prompt_db"
            )
        return self

    @model_validator(mode="after")
    def _fits_family(self) -> Self:
        self.model.refuse_unfit(self.generation, self.search)
        for field in _CASES:
            for number, case in enumerate(getattr(self, field)):
                try:
                    self.model.refuse_case(case)
                except ValueError as error:
                    raise ValueError(f"{field}.{number}.{error}") from error
        return self

    @property
    def storage_url(self) -> str:
        """The database, with a file in `runs/` as the default."""
        return self.storage or f"sqlite:///runs/{self.name}.db"

    @property
    def cache_folder(self) -> Path:
        """Where latents and frames of full-compute runs are kept."""
        return Path(self.cache or f"runs/{self.name}")

    @property
    def clip_folder(self) -> Path:
        """Where comparison clips of candidates are kept, up to `clip_megabytes`."""
        return self.cache_folder / "clips"

    @property
    def profile_path(self) -> Path:
        """Where the export goes."""
        return Path(self.export.path or f"profiles/{self.name}.json")

    @property
    def floor_scores(self) -> tuple[Score, ...]:
        """The scores that floors are set on, which every candidate needs."""
        return tuple(score for score in self.quality.scores if score.name in self.floors.scores)

    def fixed_parts(self) -> dict[str, Any]:
        """What must stay the same for measurements of one study to be comparable."""
        parts = self.model_dump(mode="json", include={"generation", "search"})
        parts["search_cases"] = [case.content for case in self.search_cases]
        parts["model"] = self.model.fixed_parts()
        # Where the search begins and how it goes about it is no part of what it may choose from. Nor is what is
        # learned: a candidate's record holds its weights.
        for name in ("candidates", "method", "learned"):
            del parts["search"][name]
        if not self.search.prepares:
            for name in ("attention_backend", "weights", "compile"):
                del parts["search"][name]  # as studies were recorded before there was such a choice
        if parts["search"]["first_window"] is None:
            del parts["search"]["first_window"]  # as studies were recorded before there was such a choice
        return parts

    def fixed_digest(self) -> str:
        """A digest of `fixed_parts`."""
        return digest(self.fixed_parts())


def recorded_study(yaml_text: str) -> Study:
    """A study from the text that its record keeps.

    Raises:
        CalibrateError: If this version of the program does not read it, naming the field.
    """
    data = None
    try:
        data = read_yaml(yaml_text)
        return Study.model_validate(data)
    except ValidationError as error:
        problem = _explain(error, data)
    except CalibrateError as error:
        problem = str(error)
    raise CalibrateError(f"The recorded study file is not one that this version reads: {problem}")


class StudyFile:
    """A study together with where it was read from.

    Attributes:
        study: The checked content.
        path: The file.
        text: The file as written, for the record.
        missing_image: What is wrong with the first image that a case names and that cannot be read, or None.
    """

    def __init__(self, path: Path) -> None:
        """Reads and checks a study.

        Raises:
            CalibrateError: If the file is missing or anything in it is wrong, naming the field.
        """
        self.path = path
        try:
            self.text = read_text(path, _MOST_BYTES)
        except FileNotFoundError as error:
            raise CalibrateError(f"{path}: there is no such study file; check the path.") from error
        except UnicodeDecodeError as error:
            raise CalibrateError(f"{path}: this is not a text file; give the path of a study's YAML.") from error
        except OSError as error:
            raise CalibrateError(f"{path}: {file_failure(error)}.") from error
        try:
            data = read_yaml(self.text)
        except CalibrateError as error:
            raise CalibrateError(f"{path}: {error}") from error
        if not isinstance(data, dict):
            raise CalibrateError(f"{path}: a study is a YAML mapping that starts with `name:`; see studies/.")
        try:
            self.study = Study.model_validate(data)
            self._data = data
        except ValidationError as error:
            raise CalibrateError(f"{path}: {_explain(error, data)}") from error
        self.missing_image: str | None = None
        self._find_images()

    def _find_images(self) -> None:
        """Finds the images of the cases; of what is not there, the first is told, for whoever is to generate."""
        found: dict[str, list[Case]] = {}
        for field in _CASES:
            found[field] = []
            for number, case in enumerate(getattr(self.study, field)):
                try:
                    case = with_image(case, f"{field}.{number}.image", self.path.parent)
                except CalibrateError as error:
                    self.missing_image = self.missing_image or str(error)
                found[field].append(case)
        self.study = self.study.model_copy(update=found)

    def aim(
        self,
        *,
        target_speedup: float | None = None,
        min_psnr: float | None = None,
        min_ssim: float | None = None,
        max_memory: str | None = None,
    ) -> None:
        """Puts goals in the place of the study's own floors and export rule; None leaves the study's.

        Args:
            target_speedup: In block evaluations. Of the policies that reach it, the best in quality is wanted.
            min_psnr: Mean PSNR in dB; also lowers the worst prompt's floor where that asks for more.
            min_ssim: Mean SSIM.
            max_memory: Such as ``40GB``.

        Raises:
            CalibrateError: If a goal is out of range, naming it.
        """
        study = self.study.model_dump()
        if min_psnr is not None:
            worst = study["floors"]["psnr_worst_prompt_db"]
            study["floors"] |= {
                "psnr_db": min_psnr,
                "psnr_worst_prompt_db": None if worst is None else min(worst, min_psnr),
            }
        if min_ssim is not None:
            study["floors"]["ssim"] = min_ssim
        if max_memory is not None:
            study["floors"]["max_memory"] = max_memory
        if target_speedup is not None:
            study["export"] |= {"rule": "best-quality", "min_speedup": target_speedup}
        try:
            self.study = Study.model_validate(study)
        except ValidationError as error:
            raise CalibrateError(_explain(error, study)) from error

    def export_settings(self, rule: str | None, output: Path | None) -> Export:
        """The study's export settings with what the command line says instead, checked in the same way.

        Raises:
            CalibrateError: If the settings do not fit together, naming the field.
        """
        given = {"rule": rule, "path": str(output) if output else None}
        export = self.study.export.model_dump() | {name: value for name, value in given.items() if value is not None}
        try:
            return Export.model_validate(export)
        except ValidationError as error:
            raise CalibrateError(f"export: {_explain(error, export)}") from error

    @property
    def masked_text(self) -> str:
        """The text for the record, without passwords; a file that holds one is written out anew without comments."""
        url = self.study.storage_url
        if has_secrets(url):
            return without_secrets(yaml.safe_dump({**self._data, "storage": masked_url(url)}, sort_keys=False))
        return without_secrets(self.text)

    @property
    def model_path(self) -> Path:
        """The pipeline's folder."""
        return self.path.parent / self.study.model.path


def _explain(error: ValidationError, data: Any) -> str:
    """The first problem of a validation of `data` as one sentence."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(named(str(part)) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_fields_beside(problem["loc"], data))
        return f"{field}: unknown field; known here: {known}."
    if problem["type"] == "missing":
        return f"{field}: this field is missing; add it."
    if problem["type"] in ("model_type", "dict_type"):
        return f"{field}: should be a mapping, one `field: value` per line."
    given = problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_unicode":
        message = not_to_be_kept(given) or message
    prefix = f"{field}: " if field else ""
    # What is wrong with a URL may be its password.
    secret = {"storage", "tracking"} & set(problem["loc"])
    tellable = isinstance(given, (str, int, float, type(None))) and not secret
    told = f", not {without_secrets(shown(given))}" if tellable else ""
    # To YAML, no and on are booleans and 12:30 is a number.
    mend = "; put it in quotes" if problem["type"] == "string_type" and isinstance(given, (int, float)) else ""
    return f"{prefix}{message[0].lower()}{message[1:]}{told}{mend}."


def _fields_beside(location: tuple[int | str, ...], data: Any) -> list[str]:
    """The field names that the model around a location in a study's `data` knows."""
    model: type[BaseModel] = Study
    parts = iter(location[:-1])
    for part in parts:
        data = data[part]
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            if get_origin(annotation) is dict:
                data = data[next(parts)]
            annotation = annotation.__args__[-1 if get_origin(annotation) is dict else 0]
        model = family_of(data).spec if annotation is ModelSpec else annotation
    return list(model.model_fields)
