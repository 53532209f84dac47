"""Profiles: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scope_runtime
from scope_runtime import (
    ChangeMap,
    GapWeights,
    ModelIdentity,
    Policy,
    Profile,
    ProfileError,
    ProfileMismatch,
    Settings,
    apply_scope,
)
from tests.mutation import places
from tests.tiny import CALL, tiny_pipeline

SCHEMA = json.loads((Path(scope_runtime.__file__).parent / "profile.schema.json").read_text())
EVIDENCE = {
    "speedup_evaluations": 4.0,
    "speedup_denoise": 3.5,
    "speedup_end_to_end": 2.5,
    "psnr_db": 37.0,
    "psnr_worst_prompt_db": 33.0,
    "psnr_worst_frame_db": 30.0,
    "psnr_worst_block_db": 31.0,
    "metric_version": 2,
    "ssim": 0.97,
    "n": 4,
}

GUARANTEE = {
    "statement": "so", "assumption": "if", "share": 0.9, "confidence": 0.9, "n": 22, "misses": 0,
    "floors": {"psnr_worst_prompt_db": 30}, "cases": [{"prompt": "a fox", "seed": 1}],
}  # fmt: skip


def make_profile(pipe: Any, **policy: Any) -> Profile:
    """A profile for the tiny pipeline's usual call."""
    return Profile(
        policy=Policy(
            noise_map=ChangeMap((0.0, 0.5, 1.0), (0.0, 0.3, 1.2)),
            change_map=ChangeMap((0.0, 0.1), (0.0, 0.2)),
            predict_threshold=0.5,
            **policy,
        ),
        settings=Settings.of(pipe, **CALL),
        model=ModelIdentity.of(pipe),
        evidence=EVIDENCE,
        provenance={"study": "test", "cases": [{"prompt": "a", "seed": 1}]},
    )


PLAN = ("R..", "R..", "RR.", "RR.", "RRR", "PRR", "RRR", "RPR", ".RR", ".RP", "..R", "..R")


def make_learned(pipe: Any) -> Profile:
    """A profile with gap weights for the tiny pipeline's usual call."""
    table = {
        (kind, step, branch): (1.25, -0.25)[: 1 + kind]
        for kind in (0, 1)
        for step in (3, 4)
        for branch in ("cond", "uncond")
    }
    weights = GapWeights.fitted(PLAN, Settings.of(pipe, **CALL), depth=2, classes=(0, 1), weights=table)
    return make_profile(pipe, plan=PLAN, gap_weights=weights, captures="last")


def make_chunked(pipe: Any) -> Profile:
    """A profile with what pipelines have that go chunk by chunk: rules of the first window, options of the call."""
    plain = make_profile(pipe, first_window=Policy(warmup=7, noise_map=ChangeMap((0.0, 1.0), (0.0, 2.0))))
    options = {"starts_from": "image", "history_sizes": [16, 2, 1], "keep_first_frame": True}
    return dataclasses.replace(plain, settings=dataclasses.replace(plain.settings, options=options))


MAKERS = [make_profile, make_learned, make_chunked]


@pytest.mark.parametrize("make", MAKERS)
def test_round_trip_through_a_file(pipe: Any, tmp_path: Path, make: Callable[[Any], Profile]) -> None:
    profile = make(pipe)
    profile.save(tmp_path / "deep" / "profile.json")
    assert Profile.load(tmp_path / "deep" / "profile.json") == profile
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["profile.json"]


@pytest.mark.parametrize("make", MAKERS)
def test_a_saved_profile_satisfies_the_published_schema(pipe: Any, make: Callable[[Any], Profile]) -> None:
    jsonschema.validate(json.loads(make(pipe).to_json()), SCHEMA)


def test_what_is_learned_is_written_where_there_is_something_learned(pipe: Any) -> None:
    assert not {"captures", "gap_weights"} & make_profile(pipe).to_dict()["policy"].keys()
    learned = make_learned(pipe).to_dict()["policy"]
    assert learned["captures"] == "last"
    assert learned["gap_weights"]["weights"][0] == [0, 3, "cond", [1.25]]
    assert "captures" not in make_profile(pipe, plan=PLAN).to_dict()["policy"]


def test_what_only_some_families_have_is_written_where_there_is_some(pipe: Any) -> None:
    plain, chunked = make_profile(pipe).to_dict(), make_chunked(pipe).to_dict()
    assert "first_window" not in plain["policy"]
    assert "options" not in plain["settings"]
    assert chunked["policy"]["first_window"]["noise_map"] == {"x": [0.0, 1.0], "y": [0.0, 2.0]}
    assert "first_window" not in chunked["policy"]["first_window"]
    assert chunked["settings"]["options"]["history_sizes"] == [16, 2, 1]


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        (("policy", "first_window", "warmup"), 0, "policy.first_window.warmup"),
        (("policy", "first_window", "more"), 1, "policy.first_window.more"),
        (("policy", "first_window", "first_window"), {}, "policy.first_window.first_window"),
        (("policy", "first_window", "noise_map", "x"), [2, 1], "policy.first_window.noise_map.x"),
        (("policy", "first_window"), [], "policy.first_window"),
        (("settings", "options"), [], "settings.options"),
        (("settings", "options", "starts_from"), float("inf"), "settings.options.starts_from"),
    ],
)
def test_a_bad_field_of_these_is_named_where_it_stands(
    pipe: Any, place: tuple[str, ...], value: Any, field: str
) -> None:
    document = json.loads(make_chunked(pipe).to_json())
    *parents, last = place
    inner = document
    for key in parents:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ProfileError) as error:
        Profile.from_dict(document)
    assert error.value.field == field


def test_weights_of_the_first_window_are_of_the_profiles_settings_too(pipe: Any) -> None:
    learned = make_learned(pipe)
    profile = dataclasses.replace(learned, policy=Policy(first_window=learned.policy))
    assert Profile.from_dict(profile.to_dict()) == profile
    with pytest.raises(ProfileMismatch, match="num_inference_steps"):
        dataclasses.replace(profile, settings=dataclasses.replace(profile.settings, num_inference_steps=9))


def test_the_schema_knows_exactly_the_fields_of_the_code(pipe: Any) -> None:
    data = make_learned(pipe).to_dict()
    assert set(SCHEMA["properties"]) == set(data)
    weights = SCHEMA["$defs"]["gap_weights"]
    assert set(weights["properties"]) == set(weights["required"]) == set(data["policy"]["gap_weights"])
    data["model"] = dataclasses.replace(ModelIdentity.of(pipe), adapters="style at 1").to_dict()
    # Later fields of policies and settings are left out at their defaults.
    known = {"policy": Policy.__dataclass_fields__, "settings": Settings.__dataclass_fields__, "model": data["model"]}
    for part, names in known.items():
        assert set(SCHEMA["properties"][part]["properties"]) == set(names)
    scheduler = SCHEMA["properties"]["settings"]["properties"]["scheduler"]
    assert set(scheduler["properties"]) == set(scheduler["required"]) == set(data["settings"]["scheduler"])


def test_a_failed_save_leaves_the_old_file(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    make_profile(pipe).save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make_profile(pipe, max_skip=7).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not complete JSON"),
        ('{"format": "scope-profile", "format_ver', "not complete JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "format: must be 'scope-profile'"),
        ('{"format": "scope-profile", "format_version": 3}', "format_version: is 3"),
        ('{"format": "scope-profile", "format_version": NaN}', "NaN is not a number"),
        ('{"format": "a", "format": "scope-profile"}', "format: is given twice"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_in_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=complaint) as error:
        Profile.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("settings.height", "9" * 5000, "settings.height: must be a whole number, not inf"),
        ("policy.cache_threshold", "9" * 5000, "policy.cache_threshold: must be finite"),
        (
            "policy.max_skip",
            "9" * 400,
            "policy.max_skip: must be between 0 and 10000, not a number of more",
        ),
        ("policy.granularity", "9" * 5000, "policy.granularity: must be one of"),
        ("evidence.psnr_db", "9" * 5000, "evidence.psnr_db: must be finite"),
        ("evidence.psnr_db", "9" * 300, "evidence.psnr_db: must fit into 64 bits"),
        ("evidence.psnr_db", "1e300", "evidence.psnr_db: must be between"),
        ("evidence.other", "9" * 5000, "evidence.other: must be finite"),
        ("provenance.seed", "9" * 25, "provenance.seed: must fit into 64 bits, not 9999"),
        ("created", "9" * 5000, "created: must be an ISO 8601 time"),
        ("created", '"' + "9" * 5000 + '"', "created: must be an ISO 8601 time"),
        ("evidence.deep", "[" * 400 + "]" * 400, "is nested more than 32 levels deep"),
        ("evidence.deep", "[" * 5000 + "]" * 5000, "nested"),
        ("evidence.deep", '{"a":' * 5000 + "1" + "}" * 5000, "nested"),
        ("settings.dtype", r'"float\ud800"', "settings.dtype: holds half of a character"),
        ("provenance.study", r'"a\ud800"', "provenance.study: holds half of a character"),
        ("settings.height", '"postgresql://me:hunter2@db"', "must be a whole number, not an address"),
    ],
)
def test_what_no_report_could_hold_is_refused_by_field(
    mutable: tuple[Any, dict[str, Any]], tmp_path: Path, field: str, value: str, complaint: str
) -> None:
    document = json.loads(json.dumps(mutable[1]))
    *parents, last = field.split(".")
    place = document
    for key in parents:
        place = place[key]
    place[last] = "PLACE"
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document).replace('"PLACE"', value))
    with pytest.raises(ProfileError) as error:
        Profile.load(path)
    assert complaint in str(error.value)
    assert len(str(error.value)) < 500
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2.5),
        ("n", 0),
        ("exact", 5),
        ("exact", {}),
        ("exact", {"max_abs_diff": "small"}),
        ("temporal_psnr_db", "high"),
        ("temporal_psnr_db", None),
        ("hardware", None),
        ("versions", ["torch"]),
        ("scores", {"lpips": "low"}),
        ("missed_floors", {"psnr_db": None}),
        ("worst_prompt", "a fox"),
        ("cases", "a fox"),
        ("cases", ["a fox"]),
        ("cases", [{"prompt": ["a"], "seed": 1}]),
        ("cases", [{"prompt": "a", "seed": {}}]),
        ("guarantee", "nine in ten"),
        ("guarantee", {**GUARANTEE, "share": 1.5}),
        ("guarantee", {**GUARANTEE, "confidence": "high"}),
        ("guarantee", {**GUARANTEE, "statement": ""}),
        ("guarantee", {**GUARANTEE, "floors": [30]}),
        ("guarantee", {**GUARANTEE, "misses": -1}),
        ("guarantee", {**GUARANTEE, "cases": ["a fox"]}),
        ("guarantee", {name: value for name, value in GUARANTEE.items() if name != "n"}),
    ],
)
def test_evidence_of_the_wrong_kind_is_refused_by_field(
    mutable: tuple[Any, dict[str, Any]], name: str, value: Any
) -> None:
    document = json.loads(json.dumps(mutable[1]))
    document["evidence"][name] = value
    with pytest.raises(ProfileError, match=rf"^evidence\.{name}") as error:
        Profile.from_dict(document)
    assert error.value.field.startswith(f"evidence.{name}")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_a_promise_is_a_part_of_the_evidence(mutable: tuple[Any, dict[str, Any]]) -> None:
    document = json.loads(json.dumps(mutable[1]))
    document["evidence"]["guarantee"] = GUARANTEE
    assert Profile.from_dict(document).evidence["guarantee"] == GUARANTEE
    jsonschema.validate(document["evidence"], {**SCHEMA["properties"]["evidence"], "$defs": SCHEMA["$defs"]})


def test_numbers_too_large_to_print_are_refused_without_a_file(mutable: tuple[Any, dict[str, Any]]) -> None:
    document = json.loads(json.dumps(mutable[1]))
    document["settings"]["height"] = 10**5000
    with pytest.raises(ProfileError, match="settings.height: must be between 1 and"):
        Profile.from_dict(document)
    document["settings"]["height"] = [10**5000]
    with pytest.raises(ProfileError, match="settings.height: must be a whole number"):
        Profile.from_dict(document)


def test_a_file_without_an_end_is_too_large() -> None:
    with pytest.raises(ProfileError, match="cannot read profile /dev/zero: File too large"):
        Profile.load("/dev/zero")


def test_a_byte_order_mark_is_no_part_of_a_profile(mutable: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(mutable[1]), encoding="utf-8-sig")
    assert Profile.load(path) == Profile.from_dict(mutable[1])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot read profile .*none.json: No such file"):
        Profile.load(tmp_path / "none.json")


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.floats(), max_size=3), st.dictionaries(st.text(max_size=3), st.floats(), max_size=2),
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_profile_is_refused_or_valid(
    data: st.DataObject, mutable: tuple[Any, dict[str, Any]], tmp_path: Path
) -> None:
    pipe, valid = mutable
    document = json.loads(json.dumps(valid))
    *parents, last = data.draw(st.sampled_from(places(document)))
    place = document
    for key in parents:
        place = place[key]
    if data.draw(st.booleans()):
        place[last] = data.draw(JUNK)
    else:
        del place[last]
    path = tmp_path / "mutated.json"
    path.write_text(json.dumps(document))
    try:
        profile = Profile.load(path)
    except ProfileError:
        return
    # What was accepted says the same when written again, and the schema agrees.
    assert Profile.from_dict(profile.to_dict()) == profile
    jsonschema.validate(profile.to_dict(), SCHEMA)
    # It is for this very model and is applied as a whole, or it is for another one and nothing is touched.
    untouched = vars(pipe).keys() - {"transformer"}
    if document["model"] == valid["model"]:
        with apply_scope(pipe, profile):
            assert vars(pipe).keys() > untouched
    else:
        with pytest.raises(ProfileMismatch, match="model"):
            apply_scope(pipe, profile)
    assert vars(pipe).keys() - {"transformer"} == untouched


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_is_refused_or_valid(
    data: st.DataObject, mutable: tuple[Any, dict[str, Any]], tmp_path: Path
) -> None:
    text = bytearray(json.dumps(mutable[1]).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 3))
    text[place : place + length] = data.draw(st.binary(max_size=3))
    path = tmp_path / "damaged.json"
    path.write_bytes(bytes(text))
    try:
        profile = Profile.load(path)
    except ProfileError:
        return
    assert Profile.from_dict(profile.to_dict()) == profile
    jsonschema.validate(profile.to_dict(), SCHEMA)


@pytest.fixture(scope="module", params=[1, 2, "learned"], ids=["version 1", "version 2", "learned"])
def mutable(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    pipe = tiny_pipeline()
    if request.param == 2:
        return pipe, make_chunked(pipe).to_dict()
    if request.param == "learned":
        return pipe, make_learned(pipe).to_dict()
    old = json.loads((Path(__file__).parent / "data/profile-version-1.json").read_text())
    return pipe, old | {"model": ModelIdentity.of(pipe).to_dict()}


def test_identity_survives_a_change_of_dtype_and_block_size() -> None:
    one, other = tiny_pipeline(), tiny_pipeline()
    other.transformer.to(torch.bfloat16)
    other.transformer._set_ar_attention(5)
    assert ModelIdentity.of(one) == ModelIdentity.of(other)


def test_identity_sees_another_model_and_a_merged_weight() -> None:
    one, seed, deep, merged = tiny_pipeline(), tiny_pipeline(seed=1), tiny_pipeline(layers=3), tiny_pipeline()
    merged.transformer.blocks[1].attn1.to_q.weight.data += 0.01
    identity = ModelIdentity.of(one)
    assert [m.split(" ")[0] for m in identity.mismatches(ModelIdentity.of(seed))] == ["model.weights"]
    assert [m.split(" ")[0] for m in identity.mismatches(ModelIdentity.of(merged))] == ["model.weights"]
    assert [m.split(" ")[0] for m in identity.mismatches(ModelIdentity.of(deep))] == ["model.config", "model.weights"]


def test_a_profile_for_another_model_is_refused_by_field(pipe: Any) -> None:
    with pytest.raises(ProfileMismatch, match="model.weights is .* calibrated for") as error:
        make_profile(pipe).check_model(tiny_pipeline(seed=1))
    assert error.value.field == "model.weights"


def test_settings_of_long_video_describe_a_window(pipe: Any) -> None:
    plain = Settings.of(pipe, **CALL)
    windowed = Settings.of(pipe, **CALL | {"num_frames": 57, "base_num_frames": 33, "overlap_history": 9})
    assert (plain.num_frames, plain.prefix) == (33, False)
    assert (windowed.num_frames, windowed.prefix) == (33, True)
    assert windowed.mismatches(plain) == []  # the first window of a long video
    assert plain.mismatches(windowed) == ["prefix is True, calibrated for False"]


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        (b"\xff", "", "cannot read profile PATH: not UTF-8 text"),
        (b'{"format": NaN}', "", "NaN is not a number that JSON allows (in PATH)"),
        (b'{"format": 1, "created": 1, "created": 2}', "created", "created: is given twice (in PATH)"),
        (b'{"format": 1}', "format", "format: must be 'scope-profile': this is not a SCOPE profile (in PATH)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_once_with_its_name(
    content: bytes, field: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError) as error:
        Profile.load(path)
    assert error.value.field == field
    assert str(error.value) == message.replace("PATH", str(path))


def test_half_a_file_is_no_field(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text('{"format": ')
    with pytest.raises(ProfileError, match=f"{path} is not complete JSON") as error:
        Profile.load(path)
    assert error.value.field == ""


def test_a_profile_is_written_for_people_to_read(pipe: Any) -> None:
    lines = make_profile(pipe).to_json().split("\n")
    assert lines[:3] == ["{", '  "format": "scope-profile",', '  "format_version": 2,']
    assert lines[-2:] == ["}", ""]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format_version": 0}, "format_version"),
        ({"format_version": 3}, "format_version"),
        ({"more": 1}, "more"),
        ({"settings": 1}, "settings"),
        ({"provenance": 1}, "provenance"),
        ({"settings": {"scheduler": 1}}, "settings.scheduler"),
        ({"settings": {}}, "settings.height"),
    ],
)
def test_a_bad_field_of_version_1_is_named_where_it_stands(changes: dict[str, Any], field: str) -> None:
    old = json.loads((Path(__file__).parent / "data/profile-version-1.json").read_text())
    assert Profile.from_dict(old).settings.lora_scale == 1.0
    with pytest.raises(ProfileError) as error:
        Profile.from_dict(old | changes)
    assert error.value.field == field


@pytest.mark.parametrize("content", ["[]", "[" * 100_000])
def test_what_is_no_object_is_no_field_either(content: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(ProfileError) as error:
        Profile.load(path)
    assert error.value.field == ""
