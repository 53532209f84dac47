"""A database by somebody who means ill: every text in it is markup, and every number that can be text is text."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import text

from calibrate.store import Storage
from studies.bench.synthetic_study import write_study
from tests.made import profile_of

FAR = "http://far.example"
MARKUP = (
    f"![i]({FAR}/i.png) [l]({FAR}/l) <{FAR}/a> {FAR}/bare www.far.example/w eve@far.example "
    f"<img src='{FAR}/h.png'><a href='{FAR}/t'>t</a><script>fetch('{FAR}/s')</script> "
    f"[r]: {FAR}/r $x^2$ :material/home: :material_home: :streamlit: :smile: :+1: :red[c] "
    f":badge[b] `k` *e* **b** ~~s~~ &lt;&#33; \\!\\[n\\]\\({FAR}/n\\) %{{x}} end"
)
"""One line with every kind of markup that the page, its labels or its charts could take for their own."""
BLOCKS = (
    f"\n# h\n\n- item\n\n> q\n\n    code\n\n| a | b |\n|---|---|\n| ![i]({FAR}/c.png) | d |\n\n[r]\n\n[r]: {FAR}/r\n"
)
NAME = f"one {MARKUP}{BLOCKS}"

_STATEMENTS = (
    "UPDATE scope_study SET name = :name WHERE name = 'one'",
    "UPDATE studies SET study_name = :name WHERE study_name = 'one'",
    "UPDATE scope_study SET model = :model, settings = :settings",
    "UPDATE scope_generation SET prompt = :markup || prompt",
    "UPDATE scope_environment SET hardware = :hardware",
    "UPDATE trial_params SET param_name = :markup || param_name",
    "UPDATE trial_user_attributes SET value_json = :json WHERE key = 'failure'",
    "DELETE FROM trials WHERE state = 'RUNNING'",
)


def write_hostile(folder: Path) -> str:
    """Makes ``folder/hostile.db`` with two such studies, one with trials and one whose trials failed; gives its URL."""
    url = f"sqlite:///{folder / 'hostile.db'}"
    storage = Storage(url)
    store = write_study(storage, "one", 12, learned=2, estimates=True)
    write_study(storage, "two", 0)
    values = {
        "name": NAME,
        "markup": MARKUP,
        "json": json.dumps(MARKUP + BLOCKS),
        "hardware": json.dumps({"device_name": MARKUP}),
        "model": json.dumps({"transformer": MARKUP}),
        "settings": json.dumps(dict.fromkeys(("height", "width", "num_frames"), MARKUP)),
    }
    with storage.engine.begin() as connection:
        rows = connection.execute(
            text("SELECT trial_user_attribute_id, value_json FROM trial_user_attributes WHERE key = 'result'")
        ).all()
        results = {key: json.loads(value) for key, value in rows}
        for number, (key, result) in enumerate(results.items()):
            # Every third in its hover text, which leaves it without its generations; every third was stopped.
            changed = {0: {}, 1: {"stopped": MARKUP + BLOCKS}, 2: {"policy": result["policy"] | {"indicator": MARKUP}}}
            if weights := result["policy"].get("gap_weights"):
                # One with markup for a branch, and one that cannot be read.
                named = [[*entry[:2], entry[2].replace("uncond", MARKUP), entry[3]] for entry in weights["weights"]]
                weights["weights"] = sorted(named)
                weights["scheduler"] = MARKUP
                changed = {0: {}, 1: {"policy": result["policy"] | {"captures": MARKUP}}}
            connection.execute(
                text("UPDATE trial_user_attributes SET value_json = :value WHERE trial_user_attribute_id = :key"),
                {"value": json.dumps(result | changed[number % 3]), "key": key},
            )
        for statement in _STATEMENTS:
            connection.execute(text(statement), values)
    for result in results.values():
        if "gap_weights" in result["policy"]:
            continue
        data = profile_of(result["policy"]).to_dict()
        data["evidence"]["missed_floors"] = {MARKUP: 1.0}
        data["settings"]["scheduler"]["name"] = MARKUP
        store.add_profile(result["trial"], "fastest", f"/etc/{MARKUP}.json", data)
    storage.close()
    return url
