"""Profiles on the Hub, in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scope_runtime import Profile, ProfileError
from tests.scope_runtime.hub_server import BROKEN, FORBIDDEN, GATED, Hub, running_hub
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import tiny_pipeline

TOKEN = "hf_wordthatnobodymaysee"
PROGRAM = """
import json, sys
import huggingface_hub.constants
from scope_runtime import Profile, ProfileError, hub

ACTIONS = {
    "load": lambda address: Profile.load(address).to_dict(),
    "load within": lambda address, most_bytes: str(hub.download(address, int(most_bytes))),
    "go offline": lambda: setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
    "push": lambda file, address: Profile.load(file).push(address),
}

def outcome(action, *arguments):
    try:
        return {"result": ACTIONS[action](*arguments)}
    except ProfileError as error:
        return {"error": str(error)}

print(json.dumps([outcome(*order) for order in json.load(sys.stdin)]))
"""


@dataclass
class Asked:
    """What a process with a token of its own got from the Hub, and all that it printed."""

    hub: Hub
    profile: Profile
    outcomes: dict[str, dict[str, Any]]
    printed: str


def ask(orders: list[list[str]], folder: Path, **environment: str) -> tuple[list[dict[str, Any]], str]:
    """Runs the program; the environment's proxies and accounts are not its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    own = {"HF_HOME": str(folder), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(orders), env=kept | own, capture_output=True, text=True,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stdout + done.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("hub")
    profile = make_profile(tiny_pipeline())
    profile.save(folder / "profile.json")
    other = make_profile(tiny_pipeline(), max_skip=2)
    with running_hub() as hub:
        old = hub.commit("me/there", "main", "profiles/a.json", other.to_json().encode())
        hub.commit("me/there", "main", "profiles/a.json", profile.to_json().encode())
        hub.commit("me/there", "main", "notes.json", b'{"format": "other"}')
        hub.commit("me/there", "main", "large.json", b" " * 2000)
        hub.files[FORBIDDEN] = {"main": {}}
        local = str(folder / "profile.json")
        orders = {
            "newest": ["load", "hf://me/there/profiles/a.json"],
            "old": ["load", f"hf://me/there@{old}/profiles/a.json"],
            "no repository": ["load", "hf://me/nowhere/profile.json"],
            "no revision": ["load", "hf://me/there@v9/profiles/a.json"],
            "no file": ["load", "hf://me/there/other.json"],
            "no profile": ["load", "hf://me/there/notes.json"],
            "too large": ["load within", "hf://me/there/large.json", "1000"],
            "gated": ["load", f"hf://{GATED}/profile.json"],
            "broken": ["load", f"hf://{BROKEN}/profile.json"],
            "malformed": ["load", f"hf://user:{TOKEN}@/x"],
            "a repository": ["load", "hf://me/there"],
            "pushed": ["push", local, "hf://me/new/profile.json"],
            "pushed again": ["push", local, "hf://me/there@main/b.json"],
            "forbidden": ["push", local, f"hf://{FORBIDDEN}/profile.json"],
            "no branch": ["push", local, "hf://me/there@v9/b.json"],
            "unplugged": ["go offline"],
            "offline": ["load", "hf://me/there/profiles/a.json"],
            "offline, not kept": ["load", "hf://me/there/large.json"],
            "pushed to a file": ["push", local, "profile.json"],
        }
        outcomes, printed = ask(list(orders.values()), folder, HF_ENDPOINT=hub.url)
        yield Asked(hub, profile, dict(zip(orders, outcomes, strict=True)), printed)


def test_a_profile_is_loaded_from_the_hub_at_its_newest_or_at_a_revision(asked: Asked) -> None:
    assert Profile.from_dict(asked.outcomes["newest"]["result"]) == asked.profile
    assert Profile.from_dict(asked.outcomes["old"]["result"]).policy.max_skip == 2
    assert asked.profile.policy.max_skip != 2


def test_a_pushed_profile_is_there_at_the_address_that_is_returned(asked: Asked) -> None:
    address = asked.outcomes["pushed"]["result"]
    place, _, file = address.removeprefix("hf://").partition("@")
    commit, _, name = file.partition("/")
    assert (place, name) == ("me/new", "profile.json")
    assert asked.hub.files[place][commit][name] == asked.profile.to_json().encode()
    assert asked.hub.files["me/there"]["main"]["b.json"] == asked.profile.to_json().encode()
    # It holds prompts: a repository that is made for it is private.
    assert [entry["visibility"] for entry in asked.hub.created if entry["name"] == "new"] == ["private"]


@pytest.mark.parametrize(
    ("what", "said"),
    {
        "no repository": "hf://me/nowhere/profile.json: there is no such repository",
        "no revision": "there is no revision v9",
        "no file": "hf://me/there/other.json: there is no such file",
        "no profile": "this is not a SCOPE profile (in hf://me/there/notes.json)",
        "too large": "too large for a profile (2000 bytes)",
        "gated": "the repository is gated: ask for access",
        "broken": "the Hub answers with an error (501)",
        "malformed": "address is malformed: write hf://owner/name/profile.json",
        "a repository": "names no file",
        "forbidden": "the Hub refuses it (403)",
        "no branch": "there is no revision v9",
        "offline, not kept": "the Hub cannot be reached",  # and what is too large was not downloaded
        "pushed to a file": "for a file use save",
    }.items(),
)
def test_what_fails_is_one_sentence(asked: Asked, what: str, said: str) -> None:
    error = asked.outcomes[what]["error"]
    assert said in error
    assert "\n" not in error


def test_the_token_is_used_and_never_shown(asked: Asked) -> None:
    assert f"Bearer {TOKEN}" in asked.hub.tokens
    assert TOKEN not in asked.printed


def test_without_a_network_the_kept_copy_is_read(asked: Asked) -> None:
    assert Profile.from_dict(asked.outcomes["offline"]["result"]) == asked.profile


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ProfileError, match=r"scope-calibrate\[hub\]"):
        Profile.load("hf://me/there/profile.json")
