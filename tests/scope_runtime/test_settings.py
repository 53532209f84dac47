"""What counts as other settings and as another model, told from descriptions alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scope_runtime import ModelIdentity, ProfileError, Scheduler, Settings
from scope_runtime.digest import config_digest
from scope_runtime.identity import ModelState, _adapters_of_layer, adapters_of, weights_digest


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
            ({"config": {"shift": 3}}, []),  # the same number, though not the same text
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

    def test_noise_levels_above_one_are_compared_relative_to_their_size(self) -> None:
        # Of EDM schedulers: 80 is stored in float32.
        assert scheduler(sigmas=(80.0,)).mismatches(scheduler(sigmas=(80.0004,))) == []
        assert len(scheduler(sigmas=(80.0,)).mismatches(scheduler(sigmas=(80.004,)))) == 1

    def test_another_class_is_all_that_needs_saying(self) -> None:
        other = replace(scheduler(config={}), name="Euler")
        assert scheduler().mismatches(other) == ["scheduler is Euler, calibrated for UniPC"]

    def test_a_line_of_version_1(self) -> None:
        line = "UniPC(shift=3.0, betas=[1, 2], kind=a=b)"
        assert Scheduler.from_line(line) == Scheduler("UniPC", {"shift": "3.0", "betas": "[1, 2]", "kind": "a=b"})
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
        assert long.mismatches(replace(long, last_num_frames=33)) == []

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


class TestOptions:
    """Further arguments of a call that change the denoising, where a family has such."""

    def test_they_round_trip_and_are_left_out_where_there_are_none(self) -> None:
        assert "options" not in settings().to_dict()
        assert Settings.from_dict(settings().to_dict()).options == {}
        mine = settings(options={"starts_from": "image", "history_sizes": [16, 2, 1], "deep": {"a": None}})
        assert mine.to_dict()["options"] == mine.options
        assert Settings.from_dict(mine.to_dict()) == mine
        assert Settings.from_dict(mine.to_dict() | {"options": {}}) == settings()

    def test_every_other_one_is_named(self) -> None:
        calibrated = settings(options={"kept": 1, "starts_from": "nothing", "sizes": [16, 2], "gone": True})
        actual = settings(options={"kept": 1, "starts_from": "image", "sizes": [8, 2], "new": 0.5})
        assert calibrated.mismatches(actual) == [
            "options.gone is None, calibrated for True",
            "options.new is 0.5, calibrated for None",
            "options.sizes is [8, 2], calibrated for [16, 2]",
            "options.starts_from is 'image', calibrated for 'nothing'",
        ]
        assert calibrated.mismatches(calibrated) == []
        assert settings().mismatches(settings(width=48, options={"last": True})) == [
            "width is 48, calibrated for 32",
            "options.last is True, calibrated for None",
        ]

    def test_a_phrase_about_one_is_short_and_holds_no_address(self) -> None:
        phrases = settings(options={"a": "x" * 1000, "b://c": 1}).mismatches(settings(options={"a": "db://me:pw@host"}))
        assert phrases[0].startswith("options.a is an address, calibrated for 'xxx")
        assert phrases[1] == "options.an address is None, calibrated for 1"
        assert max(map(len, phrases)) < 200

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            (None, "options"),
            ([], "options"),
            ("image", "options"),
            ({"a": float("nan")}, "options.a"),
            ({"a": {"b": float("inf")}}, "options.a.b"),
            ({"a": object()}, "options.a"),
        ],
    )
    def test_what_is_no_json_is_refused_by_name(self, options: Any, field: str) -> None:
        with pytest.raises(ProfileError) as error:
            settings(options=options)
        assert error.value.field == f"settings.{field}"
        with pytest.raises(ProfileError) as error:
            Settings.from_dict(settings().to_dict() | {"options": options})
        assert error.value.field == f"settings.{field}"


class Wrapped:
    """What torchao's tensors are: made of others that they name."""

    shape = (200,)
    dtype = torch.float32

    def __init__(self, values: Any, scale: Any) -> None:
        self.values, self.scale = values, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    def is_inference(self) -> bool:
        return False

    _version = 0


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

    def test_of_a_tensor_made_of_several_every_one_counts_as_it_is_stored(self) -> None:
        values, scale = torch.arange(200, dtype=torch.int8), torch.tensor([0.5])
        name = weights_digest([("a", Wrapped(values, scale))])
        assert weights_digest([("a", Wrapped(values.clone(), scale.clone()))]) == name
        for changed in (
            Wrapped(values + 1, scale),
            Wrapped(values, scale * 2),
            Wrapped(values.reshape(100, 2), scale),
            Wrapped(values.view(torch.uint8), scale),
            Wrapped(scale, values),
            Wrapped(Wrapped(values, scale), scale),
        ):
            assert weights_digest([("a", changed)]) != name

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
        assert found[3] == "weights: 1.weight has other values (and 1 more)"
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

    def test_values_are_told_apart_by_a_sample_and_writing_by_a_count(self) -> None:
        net = torch.nn.Linear(1000, 1, bias=False)
        before, unread = self.of(net), self.of(net, readable=False)
        assert before.differences(unread) == unread.differences(before) == []
        with torch.no_grad():
            net.weight[0, 1] += 1  # every fifteenth value is sampled
        assert before.differences(self.of(net)) == ["weights: weight was written to"]
        assert before.differences(self.of(net, readable=False)) == ["weights: weight was written to"]
        with torch.no_grad():
            net.weight[0, 15] += 1
        assert before.differences(self.of(net)) == ["weights: weight has other values"]
        # Offloading puts another tensor of the same values in its place.
        now = self.of(net)
        net.weight = torch.nn.Parameter(net.weight.detach().clone())
        assert now.differences(self.of(net)) == []
        # A tensor that is gone says nothing of how often it was written to.
        gone = self.of(torch.nn.Linear(1000, 1, bias=False), readable=False)
        assert gone.differences(self.of(net)) == []

    def test_unreadable_and_foreign_tensors_do_not_hide_the_others(self) -> None:
        first, wrapped, last = torch.zeros(3), Wrapped(torch.zeros(4), torch.ones(1)), torch.zeros(5)
        tensors: list[Any] = [("first", first, False), ("wrapped", wrapped, True), ("last", last, True)]
        tensors.append(("meta", torch.empty(2, device="meta"), True))
        before = ModelState.of({}, {}, tensors)
        samples = {name: weight.sample for name, weight in before.weights.items()}
        assert {name: sample and len(sample) for name, sample in samples.items()} == {
            "first": None, "wrapped": None, "wrapped.values": 16, "wrapped.scale": 4, "last": 20, "meta": None,
        }  # fmt: skip
        wrapped.scale.mul_(2)
        assert before.differences(ModelState.of({}, {}, tensors)) == ["weights: wrapped.scale has other values"]

    def test_a_tensor_of_another_kind_shows_though_it_cannot_be_read(self) -> None:
        class Locked(torch.Tensor):
            def __tensor_flatten__(self) -> Any:
                raise RuntimeError("says nothing")

        plain, last = torch.zeros(2), torch.zeros(5)
        locked = plain.as_subclass(Locked)
        before, now = (ModelState.of({}, {}, [("a", t, True), ("last", last, True)]) for t in (plain, locked))
        assert before.differences(now) == ["weights: a is Locked of float32 [2], was Tensor of float32 [2]"]
        assert now.weights["last"].sample == bytes(20)

    def test_a_part_without_values_does_not_hide_the_next(self) -> None:
        wrapped: Any = Wrapped(torch.empty(2, device="meta"), torch.ones(1))
        found = ModelState.of({}, {}, [("a", wrapped, True)]).weights
        assert (found["a.values"].sample, found["a.scale"].sample) == (None, bytes([0, 0, 128, 63]))

    def test_tensors_of_inference_mode_have_no_count(self) -> None:
        with torch.inference_mode():
            tensor = torch.zeros(2)
        assert ModelState.of({}, {}, [("a", tensor, True)]).weights["a"].version is None

    def test_a_change_of_the_whole_model_is_one_of_the_transformer(self) -> None:
        one, other = self.of(torch.nn.ReLU()), self.of(torch.nn.GELU())
        assert one.differences(other) == ["modules: transformer is a GELU, was a ReLU"]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
class TestAdapters:
    """On peft itself, with layers of one number."""

    @staticmethod
    def net(*names: str, layers: int = 1) -> Any:
        from peft import LoraConfig, inject_adapter_in_model

        net: Any = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(layers)))
        for name in names:
            targets = [str(i) for i in range(layers)]
            config = LoraConfig(r=1, lora_alpha=0.5, target_modules=targets)
            net = inject_adapter_in_model(config, net, adapter_name=name)
        return net

    @staticmethod
    def of(net: torch.nn.Module) -> str | None:
        return adapters_of(dict(net.named_modules()))

    def test_active_ones_are_named_with_their_scales(self) -> None:
        assert self.of(torch.nn.Linear(1, 1)) is None
        net = self.net("style", "light", layers=2)
        for layer in net:
            layer.set_adapter("style")
        assert self.of(net) == "style at 0.5"
        for layer in net:
            layer.set_adapter(["style", "light"])
            layer.set_scale("light", 2)
        assert self.of(net) == "style at 0.5 + light at 1"
        net[0].set_scale("light", 4)
        different = self.of(net)
        assert different is not None
        assert different.startswith("style at 0.5 + light at 1; style at 0.5 + light at 2 (")
        net[0].set_scale("light", 2)
        net[1].set_scale("light", 4)
        assert self.of(net) not in (different, None), "which layer has which scale counts"

    def test_where_peft_was_never_loaded_there_are_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "peft.tuners.tuners_utils", raising=False)
        assert self.of(torch.nn.Linear(1, 1)) is None

    def test_disabled_merged_and_absent_ones_are_said(self) -> None:
        net = self.net("style")
        net[0].merge(adapter_names=["style"])
        assert self.of(net) == "style at 0.5, merged style"
        net[0].unmerge()
        net[0].enable_adapters(False)
        assert self.of(net) == "disabled"
        net[0].enable_adapters(True)
        net[0].set_adapter([])
        assert self.of(net) == "none active"

    def test_an_adapter_that_a_layer_does_not_have_is_not_active_there(self) -> None:
        net = self.net("style")
        net[0]._active_adapter = ["style", "elsewhere"]
        assert self.of(net) == "style at 0.5"

    @pytest.mark.parametrize(
        ("layer", "expected"),
        [
            ({"active_adapters": ["a", "b"], "merged_adapters": []}, "a + b"),
            ({"active_adapters": [], "merged_adapters": ["a", "b"]}, "merged a, b"),
        ],
    )
    def test_layers_of_adapters_without_scales(self, layer: dict[str, Any], expected: str) -> None:
        assert _adapters_of_layer(SimpleNamespace(disable_adapters=False, **layer)) == expected

    def test_many_different_states_are_cut_short(self) -> None:
        for layers, rest in ((3, ""), (4, "; ...")):
            net = self.net("style", layers=layers)
            for i, layer in enumerate(net):
                layer.set_scale("style", 2 * i)
            assert str(self.of(net)).startswith(f"style at 0; style at 1; style at 2{rest} (")

    def test_a_change_of_adapters_is_a_change_of_the_model(self) -> None:
        plain, adapted = self.net(), self.net("style")
        before, now = (ModelState.of(dict(net.named_modules()), {}, []) for net in (plain, adapted))
        assert before.differences(now)[0] == "adapters are style at 0.5, were absent"
        assert now.differences(before)[0] == "adapters are absent, were style at 0.5"
