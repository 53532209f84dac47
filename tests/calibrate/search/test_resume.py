"""A study that is killed loses at most the generation it was in, on every kind of database."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from sqlalchemy import create_engine, text

from tests.calibrate.conftest import Workplace
from tests.calibrate.search import driver_process


def _count(url: str, query: str) -> int:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.execute(text(query)).scalar_one()
    finally:
        engine.dispose()


def _wait_for_candidates(url: str, database: Path | None, number: int, process: Any) -> None:
    """Waits until the run has recorded so many candidate generations; polling must not make the database."""
    while process.is_alive():
        try:
            made = database is None or database.exists()
            if made and _count(url, "SELECT COUNT(*) FROM scope_generation WHERE kind = 'candidate'") >= number:
                return
        except Exception:
            pass  # the tables are not there yet
        time.sleep(0.1)
    pytest.fail("the run ended before it was killed")


def test_a_killed_run_is_completed_by_the_same_command(
    make_workplace: Callable[..., Workplace], forkserver: Any, database_url: str
) -> None:
    workplace = make_workplace(storage=database_url, budget={"trials": 4}, name="killed")
    database = Path(database_url.removeprefix("sqlite:///")) if database_url.startswith("sqlite") else None
    chance = random.Random()
    for already in (chance.randint(0, 2), chance.randint(3, 6)):
        process = forkserver.Process(target=driver_process.run, args=(str(workplace.folder),))
        process.start()
        _wait_for_candidates(database_url, database, already, process)
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.join()

    result = workplace.scope("run", "study.yaml", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["evidence"]["n"] == 2
    status = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert status["candidates"] == 4
    assert status["trials"]["running"] == 0
    repeated = _count(
        database_url,
        "SELECT COUNT(*) FROM (SELECT 1 FROM scope_generation WHERE kind IN ('stock', 'exact', 'candidate') "
        "GROUP BY kind, policy_digest, prompt_digest, seed HAVING COUNT(*) > 1) AS repeats",
    )
    assert repeated == 0
    assert status["generations"] == {
        "stock": 2, "exact": 2, "candidate": 8, "held_out_stock": 2, "held_out_exact": 2, "held_out_scope": 2,
    }  # fmt: skip


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip_a_bit(content: bytes) -> bytes:
    """In the middle of the numbers, where nothing but the numbers can tell."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _change_a_time(content: bytes) -> bytes:
    """In the description, where it stays readable."""
    return content.replace(b'stock_seconds\\": ', b'stock_seconds\\":9', 1)


def test_a_damaged_baseline_is_made_anew(make_workplace: Callable[..., Workplace]) -> None:
    workplace = make_workplace(budget={"trials": 1}, name="damaged")
    assert workplace.scope("run", "study.yaml").exit_code == 0
    kept = sorted((workplace.folder / "runs/damaged").glob("*.safetensors"))
    # What a process leaves that is killed while it writes.
    leftover = kept[0].with_name(f".{kept[0].name}.abc123")
    for damage in (_cut, _flip_a_bit, _change_a_time):
        whole = kept[0].read_bytes()
        assert damage(whole) != whole
        kept[0].write_bytes(damage(whole))
        leftover.write_bytes(whole[:100])
        result = workplace.scope("run", "study.yaml")
        assert result.exit_code == 0, result.output
        assert result.stderr.count("(kept from before)") == 1
        assert f"{kept[0].relative_to(workplace.folder)} is damaged; it is made anew" in result.stderr
        # The timings beside the tensors differ from run to run, and with them the size of the file.
        made, lost = load(kept[0].read_bytes()), load(whole)
        assert made.keys() == lost.keys()
        for name in lost:
            torch.testing.assert_close(made[name], lost[name], rtol=0, atol=0, equal_nan=True)
        assert sorted((workplace.folder / "runs/damaged").glob("*.safetensors")) == kept
        assert not leftover.exists()
