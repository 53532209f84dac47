"""Evidence of any kind in a profile: refused when it is read, or good for everything that is done with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrate.cli import _describe_evidence, _print_recheck
from calibrate.export.recheck import recheck
from scope_runtime import Profile, ProfileError
from tests.calibrate.conftest import Workplace
from tests.mutation import places

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**45), 10**45), st.floats(), st.text(max_size=5),
    st.lists(st.floats(), max_size=2), st.dictionaries(st.text(max_size=3), st.floats(), max_size=2),
    st.sampled_from([1e308, -1e308, 10**400, "\ud800", "[red]", [[[]]], {"prompt": []}]),
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(ran_once: Workplace) -> dict[str, Any]:
    """A profile as `run` writes it."""
    return json.loads((ran_once.folder / "profiles/tiny.json").read_text())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_evidence_is_refused_or_can_be_checked_and_shown(data: st.DataObject, exported: dict[str, Any]) -> None:
    document = json.loads(json.dumps(exported))
    # Half of the time at the top, where most of it is read.
    found = places(document["evidence"])
    if data.draw(st.booleans()):
        found = [place for place in found if len(place) == 1]
    *parents, last = data.draw(st.sampled_from(found))
    place = document["evidence"]
    for key in parents:
        place = place[key]
    if data.draw(st.integers(0, 4)):
        place[last] = data.draw(JUNK)
    else:
        del place[last]
    refusal = None
    try:
        evidence = Profile.from_dict(document).evidence
    except ProfileError as error:
        refusal = error.field
    if refusal is not None:
        assert refusal.startswith("evidence")
        return
    measured = exported["evidence"]
    checked = recheck(evidence, measured, {part: measured[part] for part in ("hardware", "versions", "content")})
    json.dumps(checked, allow_nan=False).encode()
    assert _describe_evidence(dict(evidence))
    _print_recheck(checked)
    cases = {(case["prompt"], case["seed"]) for case in evidence.get("cases", ())}
    assert len(cases) <= len(exported["evidence"]["cases"])
