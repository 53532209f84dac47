"""Further cases in a file of their own, for `scope-calibrate verify --cases`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from calibrate.errors import CalibrateError
from calibrate.files import file_failure, read_text
from calibrate.spec.generation import Case
from calibrate.study.images import with_image
from calibrate.study.study_yaml import read_yaml

# Thousands of prompts fit.
_MOST_BYTES = 1 << 20


def read_cases(path: Path) -> list[Case]:
    """Reads a YAML or JSON list of `{prompt, seed}`, each case once; images are relative to the file.

    Raises:
        CalibrateError: If the file is missing or holds anything else, naming the case.
    """
    try:
        data = read_yaml(read_text(path, _MOST_BYTES))
    except UnicodeDecodeError as error:
        raise CalibrateError(f"--cases: {path} is not a text file; give a list of {{prompt, seed}}.") from error
    except OSError as error:
        raise CalibrateError(f"--cases: {path}: {file_failure(error)}.") from error
    except CalibrateError as error:
        raise CalibrateError(f"--cases: {path}: {error}") from error
    if not isinstance(data, list) or not data:
        raise CalibrateError(f"--cases: {path} should hold a list, one `- {{prompt: ..., seed: ...}}` per line.")
    cases = []
    for number, entry in enumerate(data):
        try:
            case = Case.model_validate(entry)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in (number, *problem["loc"]))
            raise CalibrateError(
                f"--cases: {path}: case {field}: {problem['msg'].removeprefix('Value error, ')}; each case is "
                "{prompt: ..., seed: ...}."
            ) from error
        cases.append(with_image(case, f"--cases: {path}: case {number}.image", path.parent))
    if len(set(cases)) < len(cases):
        raise CalibrateError(f"--cases: {path} holds the same prompt and seed twice; remove one of them.")
    return cases
