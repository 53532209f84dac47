"""What counts as other settings and as another model, told from descriptions alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from scope_runtime import ModelIdentity, ProfileError, Scheduler, Settings
from scope_runtime.identity import ModelState, adapters_of, config_digest, weights_digest


def scheduler(**changes: Any) -> Scheduler:
    known: dict[str, Any] = {"config": {"shift": 3.0}, "defaults": {"karras": False}, "sigmas": (1.0, 0.5, 0.0)}
    return Scheduler("UniPC", **(known | changes))


def settings(**changes: Any) -> Settings:
    known: dict[str, Any] = {
        "height": 16, "width": 32, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 3.0, "ar_step": 2,
        "causal_block_size": 3, "dtype": "float32", "scheduler": scheduler(),
    }  # fmt: skip
    return Settings(**(known | changes))


class TestScheduler:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, []),
            ({"config": {}, "defaults": {"karras": False, "shift": 3.0}}, []),
            ({"config": {"shift": 5.0}}, ["scheduler has shift=5.0, calibrated for shift=3.0"]),
            ({"config": {"shift": "3.0"}}, []),  # as profiles of version 1 have it
            (
                {"config": {"shift": 3.0, "karras": True}},
                ["scheduler has karras=True, calibrated for karras=False"],
            ),
            ({"config": {"shift": 3.0, "new": 1}}, ["scheduler has new=1, calibrated for its default"]),
            ({"config": {"shift": 3.0}, "defaults": {"karras": False, "new": 1}}, []),
            ({"config": {}}, ["scheduler has no shift, calibrated for shift=3.0"]),
            ({"defaults": {}}, []),
            ({"sigmas": (1.0, 0.5)}, []),  # another number of steps is another setting
            ({"sigmas": (1.0, 0.500004, 0.0)}, []),
            (
                {"sigmas": (1.0, 0.6, 0.1)},
                ["scheduler has noise level 0.6 at step 1, calibrated for 0.5"],
            ),
            ({"sigmas": (1.0, 0.5, 1e-6)}, []),
            (
                {"config": {"a": 1, "shift": 4.0}, "sigmas": (0.9, 0.5, 0.0)},
                [
                    "scheduler has a=1, calibrated for its default",
                    "scheduler has shift=4.0, calibrated for shift=3.0",
                    "scheduler has noise level 0.9 at step 0, calibrated for 1",
                ],
            ),
        ],
    )
    def test_what_makes_another_scheduler_is_said(self, changes: dict[str, Any], expected: list[str]) -> None:
        assert scheduler().mismatches(scheduler(**changes)) == expected

    def test_another_class_is_all_that_needs_saying(self) -> None:
        other = replace(scheduler(config={}), name="Euler")
        assert scheduler().mismatches(other) == ["scheduler is Euler, calibrated for UniPC"]

    def test_a_line_of_version_1(self) -> None:
        line = "UniPC(shift=3.0, betas=[1, 2], karras=False)"
        assert Scheduler.from_line(line) == Scheduler("UniPC", {"shift": "3.0", "betas": "[1, 2]", "karras": "False"})
        assert str(Scheduler.from_line(line)) == line
        assert Scheduler.from_line("Euler") == Scheduler.from_line("Euler()") == Scheduler("Euler")

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"name": ""}, "name"),
            ({"config": 1}, "config"),
            ({"config": {"a": float("nan")}}, "config.a"),
            ({"defaults": []}, "defaults"),
            ({"defaults": {"a": float("inf")}}, "defaults.a"),
            ({"sigmas": 1}, "sigmas"),
            ({"sigmas": ["a"]}, "sigmas.0"),
            ({"more": 1}, "more"),
        ],
    )
    def test_a_description_that_is_none_is_refused_by_name(self, changes: dict[str, Any], field: str) -> None:
        data = {"name": "UniPC", "config": {}, "defaults": {}, "sigmas": [1, 0.5]}
        assert Scheduler.from_dict(data).sigmas == (1.0, 0.5)
        with pytest.raises(ProfileError) as error:
            Scheduler.from_dict(data | changes)
        assert error.value.field == f"settings.scheduler.{field}"
        for name in data:
            with pytest.raises(ProfileError, match="is missing") as error:
                Scheduler.from_dict({key: value for key, value in data.items() if key != name})
            assert error.value.field == f"settings.scheduler.{name}"


class TestSettings:
    @pytest.mark.parametrize(
        ("field", "other"),
        [
            ("height", 17),
            ("width", 16),
            ("num_frames", 45),
            ("num_inference_steps", 9),
            ("guidance_scale", 2.0),
            ("ar_step", 0),
            ("causal_block_size", 1),
            ("dtype", "bfloat16"),
            ("prefix", True),
            ("noised_prefix", True),
            ("lora_scale", 0.5),
        ],
    )
    def test_every_other_setting_is_named(self, field: str, other: Any) -> None:
        calibrated = settings()
        actual = settings(**{field: other})
        expected = f"{field} is {other!r}, calibrated for {getattr(calibrated, field)!r}"
        assert calibrated.mismatches(actual) == [expected]
        assert calibrated.mismatches(calibrated) == []

    def test_a_profile_with_a_prefix_fits_a_window_without_and_not_the_other_way_round(self) -> None:
        long = settings(prefix=True, noised_prefix=True)
        assert long.mismatches(settings()) == []
        assert len(settings().mismatches(long)) == 2

    def test_the_schedulers_differences_are_among_the_settings(self) -> None:
        assert settings().mismatches(settings(width=48, scheduler=scheduler(config={"shift": 5.0}))) == [
            "width is 48, calibrated for 32",
            "scheduler has shift=5.0, calibrated for shift=3.0",
        ]

    def test_a_shorter_last_window_fits_where_it_was_calibrated_as_one(self) -> None:
        long = settings(prefix=True, last_num_frames=21)
        last = settings(prefix=True, num_frames=21)
        assert long.mismatches(last) == []
        assert long.mismatches(long) == []
        assert long.mismatches(settings(prefix=True)) == []
        # A video of one window of that length is none of the long video's windows.
        assert long.mismatches(replace(last, prefix=False)) == ["num_frames is 21, calibrated for 33"]
        assert settings(prefix=True).mismatches(long) == ["last_num_frames is 21, calibrated for 33"]
        assert long.mismatches(replace(long, last_num_frames=25)) == ["last_num_frames is 25, calibrated for 21"]
        assert settings(last_num_frames=None).mismatches(settings(last_num_frames=33)) == []

    @pytest.mark.parametrize(
        ("field", "edge", "beyond"),
        [
            *((name, 1, 0) for name in ("height", "width", "num_frames", "num_inference_steps", "causal_block_size")),
            ("ar_step", 0, -1),
            ("last_num_frames", 1, 0),
            ("last_num_frames", None, "1"),
            ("guidance_scale", 0, -0.5),
            ("lora_scale", -1.0, None),
            ("dtype", "x", ""),
            ("prefix", True, 1),
            ("noised_prefix", True, "yes"),
        ],
    )
    def test_what_is_out_of_range_is_refused_by_name(self, field: str, edge: Any, beyond: Any) -> None:
        assert getattr(settings(**{field: edge}), field) == edge
        with pytest.raises(ProfileError) as error:
            settings(**{field: beyond})
        assert error.value.field == f"settings.{field}"

    def test_a_scheduler_is_a_description(self) -> None:
        with pytest.raises(ProfileError, match="must be a Scheduler, not str") as error:
            settings(scheduler="UniPC")
        assert error.value.field == "settings.scheduler"

    def test_they_round_trip_as_plain_json_and_every_field_must_be_there(self) -> None:
        data = settings(last_num_frames=21).to_dict()
        assert data["scheduler"]["sigmas"] == [1.0, 0.5, 0.0]
        assert Settings.from_dict(data) == settings(last_num_frames=21)
        for name in data:
            with pytest.raises(ProfileError) as error:
                Settings.from_dict({key: value for key, value in data.items() if key != name})
            assert error.value.field == f"settings.{name}"
        with pytest.raises(ProfileError) as error:
            Settings.from_dict(data | {"more": 1})
        assert error.value.field == "settings.more"


IDENTITY = {"pipeline": "Pipe", "transformer": "Net", "config": "c0", "weights": "w0"}


class TestIdentity:
    def test_every_other_field_is_named(self) -> None:
        mine = ModelIdentity(**IDENTITY, adapters="style at 0.8")
        for name, value in mine.to_dict().items():
            other = replace(mine, **{name: "other"})
            assert mine.mismatches(other) == [f"model.{name} is other, calibrated for {value}"]
        assert mine.mismatches(mine) == []
        assert mine.mismatches(ModelIdentity(**IDENTITY)) == ["model.adapters is None, calibrated for style at 0.8"]
        # Adapters that a profile knows nothing of are seen by their weights.
        assert ModelIdentity(**IDENTITY).mismatches(mine) == []

    def test_it_round_trips_and_a_field_that_is_missing_or_empty_is_named(self) -> None:
        for adapters in (None, "style at 0.8"):
            mine = ModelIdentity(**IDENTITY, adapters=adapters)
            assert ("adapters" in mine.to_dict()) == (adapters is not None)
            assert ModelIdentity.from_dict(mine.to_dict()) == mine
        for name in IDENTITY:
            with pytest.raises(ProfileError) as error:
                ModelIdentity.from_dict({key: value for key, value in IDENTITY.items() if key != name})
            assert error.value.field == f"model.{name}"
        for name in (*IDENTITY, "adapters"):
            with pytest.raises(ProfileError) as error:
                ModelIdentity.from_dict(IDENTITY | {name: ""})
            assert error.value.field == f"model.{name}"
        with pytest.raises(ProfileError) as error:
            ModelIdentity.from_dict([])
        assert error.value.field == "model"

    def test_a_configuration_has_one_name_however_it_is_ordered(self) -> None:
        assert config_digest({"a": 1, "b": torch.float32}) == config_digest({"b": torch.float32, "a": 1})
        assert config_digest({"a": 1}) != config_digest({"a": 2})
        assert len(config_digest({})) == 16

    def test_weights_have_one_name_in_every_dtype_and_another_when_a_value_changes(self) -> None:
        weight = torch.arange(1000.0).reshape(10, 100)
        name = weights_digest([("a", weight)])
        assert len(name) == 16
        assert weights_digest([("a", weight.bfloat16())]) == name
        assert weights_digest([("b", weight)]) != name
        assert weights_digest([("a", weight.reshape(100, 10))]) != name
        assert weights_digest([("a", weight + 100)]) != name
        # Sampled values are spread over the whole tensor: every fifteenth of a thousand.
        late = weight.clone()
        late[9, 90] += 100  # value 990
        assert weights_digest([("a", late)]) != name
        small = torch.arange(64.0)
        for i in (0, 63):
            changed = small.clone()
            changed[i] += 1
            assert weights_digest([("a", changed)]) != weights_digest([("a", small)])

    def test_a_tensor_that_cannot_be_read_is_named(self) -> None:
        with pytest.raises(ProfileError, match=r"cannot be read: layer.a is a Tensor") as error:
            weights_digest([("layer.a", torch.empty(3, device="meta"))])
        assert error.value.field == "model.weights"


class TestState:
    @staticmethod
    def of(net: torch.nn.Module, config: dict[str, Any] | None = None, readable: bool = True) -> ModelState:
        tensors = [(name, tensor, readable) for name, tensor in net.named_parameters()]
        return ModelState.of(dict(net.named_modules()), config or {}, tensors)

    def test_every_kind_of_change_is_named_by_its_first(self) -> None:
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        before = self.of(net, {"a": 1, "gone": 2})
        assert before.differences(self.of(net, {"a": 1, "gone": 2})) == []
        with torch.no_grad():
            net[1].weight.add_(1)
            net[1].bias.add_(1)
        found = before.differences(self.of(net, {"a": 3, "new": 4}))
        assert found[:3] == ["config.a is 3, was 1", "config.gone is None, was 2", "config.new is 4, was None"]
        assert found[3].startswith("weights: 1.weight ")
        assert found[3].endswith(" (and 1 more)")
        assert len(found) == 4

    def test_modules_and_tensors_that_come_and_go_are_named(self) -> None:
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        before = self.of(net)
        net[1] = torch.nn.GELU()
        assert before.differences(self.of(net)) == ["modules: 1 is a GELU, was a ReLU"]
        net[1] = torch.nn.ReLU()
        net.append(torch.nn.Linear(2, 2, bias=False))
        assert before.differences(self.of(net)) == ["modules: 2 is a Linear, was a nothing", "weights: 2.weight is new"]
        after = self.of(net)
        del net[2]
        assert after.differences(self.of(net)) == ["modules: 2 is a nothing, was a Linear", "weights: 2.weight is gone"]
        assert before.differences(self.of(net)) == []

    def test_another_shape_or_type_is_said(self) -> None:
        net = torch.nn.Linear(2, 3)
        before = self.of(net)
        assert before.differences(self.of(net.half())) == [
            "weights: weight is Tensor of float16 [3, 2], was Tensor of float32 [3, 2] (and 1 more)"
        ]

    def test_a_model_without_peft_has_no_adapters(self) -> None:
        assert adapters_of({"": torch.nn.Linear(1, 1)}) is None
