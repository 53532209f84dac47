"""The other rounding that exact mode is measured against, and what a profile has been through before it is written."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from calibrate.families import load_target
from calibrate.families.rounding import EXACT_MULTIPLE, ReversedSums
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.measure.paired import StockRounding
from calibrate.spec.generation import Case, Generation
from scope_runtime import Profile, Settings
from tests.calibrate.conftest import Workplace
from tests.tiny import CALL

CASE = Case(prompt="a red circle moving left", seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_sums_are_the_same_but_for_rounding(dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=chance).to(dtype) for shape in ((300, 500), (1000, 500)))
    heads = torch.randn(3, 1, 4, 60, 64, generator=chance).to(dtype).unbind()
    layer, attend = torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention
    plain = layer(x, weight), attend(*heads), x @ weight.T
    with ReversedSums() as other:
        rounded = layer(x, weight), attend(*heads), x @ weight.T
    assert other.reversed == 3
    for one, two in zip(plain, rounded, strict=True):
        assert two.dtype == dtype
        assert (one - two).abs().max() <= 8 * torch.finfo(dtype).eps * one.abs().max()
    assert not torch.equal(plain[0], rounded[0])
    assert not torch.equal(plain[2], rounded[2])
    if dtype == torch.float32:
        assert not torch.equal(plain[1], rounded[1])
    else:
        # Sums are rounded to the data type once, at their end, as they were before: most come out the same.
        assert (plain[0] != rounded[0]).float().mean() < 0.3
    assert torch.equal(layer(x, weight), plain[0])


def test_weights_that_are_stored_in_a_form_of_their_own_are_let_be() -> None:
    class Quantised(torch.Tensor):
        pass

    weight = torch.randn(4, 4).as_subclass(Quantised)
    with ReversedSums() as other:
        torch.nn.functional.linear(torch.randn(2, 4), weight)
    assert other.reversed == 0


def test_exact_mode_is_as_close_to_stock_as_stock_is_to_itself(finished: Workplace, tiny_folder) -> None:
    evidence = Profile.load(finished.folder / "profiles/tiny.json").evidence["exact"]
    assert 0 < evidence["stock_rounding"] < 1e-4
    assert evidence["max_abs_diff"] <= EXACT_MULTIPLE * evidence["stock_rounding"]
    assert evidence["holds"] is True
    target = load_target(tiny_folder, SkyReelsV2Spec(path="pipe"), Generation.model_validate(CALL))
    rounded = target.denoise_otherwise(CASE)
    assert rounded is not None
    stock = target.denoise(CASE).latents
    assert 0 < (rounded - stock).abs().max() < 1e-4
    assert torch.equal(target.denoise(CASE).latents, stock)


def test_a_profile_that_cannot_be_applied_is_not_written(
    make_workplace: Callable[..., Workplace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration ends as production begins: by reading the profile, and applying it to the pipeline or refusing."""
    workplace = make_workplace(budget={"trials": 1}, floors={"psnr_db": None, "psnr_worst_prompt_db": None})
    of = Settings.of

    def wrong(pipe: object, **call: object) -> Settings:
        return Settings.from_dict(of(pipe, **call).to_dict() | {"num_frames": 29})

    with monkeypatch.context() as changed:
        changed.setattr(Settings, "of", wrong)
        result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "cannot be applied" in line
    assert "num_frames is 33, calibrated for 29" in line
    assert not (workplace.folder / "profiles").exists()


def test_a_profile_that_cannot_be_read_again_is_not_written(
    copied: Workplace, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StockRounding, "run", lambda *_: float("nan"))
    result = copied.scope("export", "study.yaml", "--output", str(tmp_path / "out/profile.json"))
    assert result.exit_code == 2, result.output
    assert "evidence.exact.stock_rounding: must be finite" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_bench_compares_every_kind_of_rounding(finished: Workplace, tmp_path) -> None:
    from typer.testing import CliRunner

    from studies.bench.__main__ import app

    arguments = ["rounding", "--json", "--prompts", "1", "--study", str(finished.study), "--cache", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (line,) = json.loads(result.stdout)
    assert {name for name, value in line.items() if isinstance(value, float)} == {
        "exact", "reversed sums", "other threads", "math attention", "batch of two",
    }  # fmt: skip
    assert 0 < line["reversed sums"] < 1e-4
