"""What YAML allows and a study must not hold: refused by field and line, without the file's words."""

from __future__ import annotations

import time
from typing import Any

import pytest

from calibrate.errors import CalibrateError
from calibrate.study.study_yaml import read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", "a: is given twice, in lines 1 and 3; remove one of them."),
        ("a:\n  b: 1\n  c: 1\n  b: 2\n", "a.b: is given twice, in lines 2 and 4"),
        ("a:\n- b: 1\n- {b: 1, c: 2,\n   b: 3}\n", "a.1.b: is given twice, in lines 3 and 4"),
        ('a: 1\n"a": 2\n', "a: is given twice"),
        ("x: &x {b: 1}\na: {<<: *x, <<: *x}\n", "a.<<: is given twice"),
        ("1: a\n", "1: this key is read as something else than text; put it in quotes (line 1)"),
        ("a:\n  on: 1\n", "a.on: this key is read as something else than text"),
        ("~: 1\n", "read as something else than text"),
        ("? [a, b]\n: 1\n", "has a key that is no text; use a plain word (line 1)"),
        ("a: &a b\n? *a\n: 1\n", "has a key that is no text"),
        ("a: " + "9" * 5000, "a: is a number of more than 40 digits; write a smaller one (line 1)"),
        ("a: 0x" + "f" * 5000, "a: is a number of more than 40 digits"),
        ("a: 1" + ":59" * 3000, "a: is a number of more than 40 digits"),
        ("a:\n  - b: !!int abc\n", "a.0.b: cannot be read as a whole number; mend the value or its tag (line 2)"),
        ("a: !!int ''\n", "a: cannot be read as a whole number"),
        ("a: 0b_\n", "a: cannot be read as a whole number"),
        ("a: !!float abc\n", "a: cannot be read as a number"),
        ("a: !!bool abc\n", "a: cannot be read as true or false"),
        ("a: !!timestamp abc\n", "a: is no plain value"),
        ("a: 2024-01-01\n", "a: is no plain value"),
        ("a: !!binary aGVsbG8=\n", "a: is no plain value"),
        ("a: !!set {b, c}\n", "a: has a tag (!...) that means nothing here"),
        ("a: !!omap [b: 1]\n", "a: has a tag"),
        ("a: !!str [b]\n", "a: has a tag"),
        ("a: !!python/object/apply:os.system [ls]\n", "a: has a tag"),
        ("a: !!python/name:os.system ''\n", "a: is no plain value"),
        ("a: =\n", "a: is no plain value"),
        ("a: 1\nb: \0\n", "this is not valid YAML (line 2): it holds the character U+0000; remove it."),
        ("a: " + "[" * 2000 + "]" * 2000, "is nested more than 40 levels deep; write it flatter (line 1)"),
        ("".join(" " * depth + "a:\n" for depth in range(2000)), "is nested more than 40 levels deep"),
        ("a: " + "{" * 100_000, "has a key that is no text"),
        (BOMB, "holds more than 100000 values, counting what aliases repeat; write fewer"),
        (MERGES, "holds more than 100000 values"),
        ("a: &a [1, *a]\n", "a.1: refers to itself; write out what is meant (line 1)"),
        ("a: &a {b: {<<: *a}}\n", "a.b.<<: refers to itself"),
        ("a: 1\n---\na: 2\n", "this is not valid YAML (line 2, column 1)"),
        ("a: {<<: 5}\n", "this is not valid YAML (line 1, column 9)"),
        ("a: *bc\n", "found undefined alias '...'"),
    ],
)
def test_what_a_study_must_not_hold_is_refused_at_once(text: str, complaint: str) -> None:
    start = time.monotonic()
    with pytest.raises(CalibrateError) as error:
        read_yaml(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("a: &a [1, 2]\nb: [*a, *a]\n", {"a": [1, 2], "b": [[1, 2], [1, 2]]}),
        ("\ufeffa: 'no'\nb: !!str 5\nc: ~\n", {"a": "no", "b": "5", "c": None}),
        ("a: 9223372036854775807\nb: .inf\n", {"a": 2**63 - 1, "b": float("inf")}),
        ("=: 1\n", {"=": 1}),
        ("", None),
    ],
)
def test_plain_values_aliases_and_merges_are_read(text: str, value: Any) -> None:
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    "line",
    [
        'storage: "postgresql://me:hunter2@db/scope',
        "storage: postgresql://me: hunter2@db/scope",
        "storage: {postgresql://me:hunter2@db/scope",
        "storage: 'postgresql://me:'hunter2'@db/scope'",
        "storage: *hunter2@db",
        "storage: !hunter2@db x",
        "storage: &hunter2 x\nother: &hunter2 y",
        "storage: %hunter2: x",
        "storage: [postgresql://me, hunter2@db/scope",
        "- storage: a\n b: hunter2",
    ],
)
def test_an_error_never_repeats_the_line(line: str) -> None:
    with pytest.raises(CalibrateError) as error:
        read_yaml(f"name: tiny\n{line}\n")
    assert "hunter2" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
