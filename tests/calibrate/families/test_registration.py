"""A family is a package and a line: nothing else knows which there are."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import yaml
from pydantic import Field
from safetensors.torch import save_file

from calibrate import families
from calibrate.doctor import examine
from calibrate.errors import CalibrateError
from calibrate.families.check import Check
from calibrate.families.family import Checks, Family
from calibrate.families.footprint import Footprint
from calibrate.spec.generation import Generation, ModelSpec
from calibrate.spec.search_space import SearchSpace
from calibrate.store import StudyRecord, refuse_changes
from calibrate.study.study_file import Study, StudyFile, recorded_study
from tests.calibrate.conftest import TINY_STUDY

ROOT = Path(__file__).parents[3]
MAGI_1 = {"path": "pipe", "family": "magi_1", "config": "config.json"}
PIPELINE = "SkyReelsV2DiffusionForcingPipeline"


class ToySpec(ModelSpec):
    family: Literal["toy"] = "toy"
    knob: int = Field(ge=1)

    def refuse_unfit(self, generation: Generation, search: SearchSpace) -> None:
        if generation.overlap_history is not None:
            raise ValueError("generation.overlap_history means nothing to toys; remove it")


class Toy(Family[ToySpec]):
    spec = ToySpec
    holder = "a box of toys"

    def open(self, folder: Path, spec: ToySpec, generation: Generation) -> Any:
        return SimpleNamespace(folder=folder, knob=spec.knob, steps=generation.num_inference_steps)

    def footprint(self, folder: Path, spec: ToySpec, generation: Generation) -> Footprint:
        return Footprint(
            layers=1, width=2, ffn_width=2, channels=1, window_lengths=(6,), latent_height=2, latent_width=2,
            patches=4, branches=1, itemsize=4, generation=generation,
        )  # fmt: skip

    def weights(self, folder: Path, spec: ToySpec, generation: Generation) -> list[list[Path]]:
        return [[folder / "toy.safetensors"]]

    def first_checks(self, folder: Path, spec: ToySpec, generation: Generation) -> Checks:
        def box() -> Check:
            if not folder.is_dir():
                raise CalibrateError(f"model.path: {folder} is no box of toys.")
            return Check("box", "ok", "is there")

        return {"box": box}


def _file(folder: Path, model: dict[str, Any], **changes: Any) -> StudyFile:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(TINY_STUDY | {"model": model} | changes))
    return StudyFile(path)


def _refused(folder: Path, model: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(CalibrateError) as caught:
        _file(folder, model, **changes)
    return str(caught.value).removeprefix(f"{folder}/study.yaml: ")


def test_a_new_family_needs_its_registration_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_study: dict[str, Any]
) -> None:
    toys = {"family": "toy", "path": "box", "knob": 3}
    assert "'helios' or 'framepack', not 'toy'" in _refused(tmp_path, toys)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, Toy()))
    monkeypatch.chdir(tmp_path)

    # What a study says of its model
    file = _file(tmp_path, toys)
    assert file.study.model == ToySpec(path="box", knob=3)
    assert recorded_study(file.text) == file.study
    assert file.study.fixed_parts()["model"] == {
        "path": "box", "family": "toy", "torch_dtype": "float32", "device": "cpu", "threads": None, "knob": 3,
    }  # fmt: skip
    file.aim(min_psnr=31.0)
    assert file.study.model == ToySpec(path="box", knob=3)
    assert _refused(tmp_path, toys | {"knob": 0}).startswith("model.knob: input should be greater than or equal to 1")
    assert _refused(tmp_path, toys | {"konb": 1}).endswith("path, family, torch_dtype, device, threads, knob.")
    assert _refused(tmp_path, {"path": "pipe", "knob": 1}) == (
        "model: knob means nothing to family skyreels_v2; remove it or change family."
    )
    assert "'helios', 'framepack' or 'toy', not 'doll'" in _refused(tmp_path, toys | {"family": "doll"})
    overlapping = tiny_study["generation"] | {"overlap_history": 9}
    assert "means nothing to toys" in _refused(tmp_path, toys, generation=overlapping)

    # What is known of it without loading it
    file = _file(tmp_path, toys)
    checks = {check.name: check for check in examine(file)}
    assert (checks["box"].state, checks["box"].message) == ("failed", f"model.path: {tmp_path}/box is no box of toys.")
    assert not checks.keys() & {"weights", "settings", "memory"}
    (tmp_path / "box").mkdir()
    save_file({"toy": torch.zeros(7)}, tmp_path / "box/toy.safetensors")
    checks = {check.name: check for check in examine(file)}
    assert [name for name, check in checks.items() if check.state == "failed"] == []
    assert checks["weights"].figures["parameters"] == 7
    assert checks["settings"].figures["latent_frames"] == 6

    # What runs it
    target: Any = families.load_target(file.model_path, file.study.model, file.study.generation)
    assert (target.folder, target.knob, target.steps) == (tmp_path / "box", 3, 8)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"family": "wan"},
            "model.family: input should be 'skyreels_v2', 'magi_1', 'helios' or 'framepack', not 'wan'.",
        ),
        ({"family": None}, "model.family: input should be 'skyreels_v2', 'magi_1', 'helios' or 'framepack', not None."),
        ({"flow_shift": "much"}, "model.flow_shift: input should be a valid number, not 'much'."),
        ({"config": "c.json"}, "model: config means nothing to family skyreels_v2; remove it or change family."),
        (MAGI_1 | {"flow_shift": 3.0}, "model: flow_shift means nothing to family magi_1; remove it or change family."),
        (MAGI_1 | {"pipeline_class": "Wan"}, "model: pipeline_class means nothing to family magi_1; remove it or "),
        ({"colour": 1}, "known here: path, family, torch_dtype, device, threads, pipeline_class, variant, flow_shift."),
        (MAGI_1 | {"colour": 1}, "known here: path, family, torch_dtype, device, threads, config, weights."),
        (MAGI_1 | {"config": None}, "model: config must name MAGI-1's configuration"),
    ],
)
def test_what_is_wrong_with_a_model_is_said_of_its_field(tmp_path: Path, model: dict[str, Any], sentence: str) -> None:
    said = _refused(tmp_path, {"path": "pipe"} | model)
    assert said.startswith("model")
    assert sentence in said
    assert not said.startswith(("model.skyreels_v2", "model.magi_1")), "a place as it is in the file"


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        ({"path": "pipe", "threads": 1}, {"family": "skyreels_v2", "threads": 1, "config": None}),
        ({"path": "pipe", "flow_shift": 5.0}, {"family": "skyreels_v2", "threads": None, "flow_shift": 5.0}),
        # As it was written by one who wrote everything down.
        (
            MAGI_1 | {"flow_shift": None, "variant": None, "pipeline_class": PIPELINE},
            {"family": "magi_1", "threads": None, "config": "config.json"},
        ),
    ],
)
def test_studies_of_before_can_be_continued(said: dict[str, Any], recorded: dict[str, Any]) -> None:
    """They were recorded with every field of every family."""
    search = {"indicator": ["noise-level"]}
    study = Study.model_validate(TINY_STUDY | {"model": said, "search": search})
    before = json.loads(json.dumps(study.fixed_parts()))
    before["model"] = {
        "path": "pipe", "pipeline_class": PIPELINE, "torch_dtype": "float32", "device": "cpu", "variant": None,
        "flow_shift": None, "config": None, "weights": None,
    } | recorded  # fmt: skip
    record = StudyRecord(name="s", fixed_parts=before, model={})
    refuse_changes(record, study.fixed_parts())
    for changed in ({"path": "elsewhere"}, {"torch_dtype": "bfloat16"}):
        other = Study.model_validate(TINY_STUDY | {"model": said | changed, "search": search})
        with pytest.raises(CalibrateError, match="^model: study 's' was started with another value"):
            refuse_changes(record, other.fixed_parts())


def test_reading_studies_of_all_families_loads_neither_torch_nor_diffusers() -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from calibrate.study.study_file import StudyFile\n"
        "print(sorted({StudyFile(path).study.model.family for path in Path('studies').glob('*.yaml')}))\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['framepack', 'helios', 'magi_1', 'skyreels_v2']", "[]"]


def _decisions(tree: ast.AST) -> Iterator[ast.expr]:
    """Whatever a value is compared with or looked up by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (node.left, *node.comparators)
        elif isinstance(node, ast.MatchValue):
            yield node.value
        elif isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)


def test_nothing_outside_a_familys_package_asks_for_it_by_name() -> None:
    names = {family.name for family in families.FAMILIES}
    found = []
    for path in (path for part in ("calibrate", "dashboard", "scope_runtime", "studies") for path in _code(part)):
        own = path.parent.name in names and path.parent.parent.name == "families"
        for decision in () if own else _decisions(ast.parse(path.read_text(encoding="utf-8"))):
            found += [
                f"{path.relative_to(ROOT)}:{node.lineno}"
                for node in ast.walk(decision)
                if isinstance(node, ast.Constant) and node.value in names
            ]
    assert found == []


def _code(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))
