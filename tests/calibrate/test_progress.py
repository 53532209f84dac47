"""What the user is told where there is no terminal, such as in a scheduler's log."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from calibrate.progress import Narrator, PlainConsole


def test_lines_say_how_far_the_search_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Narrator() as narrator:
        narrator.stage("Baselines", 2)
        narrator.advance("a prompt: 3.2 s")
        narrator.stage("Candidates", 24)
        narrator.advance("Candidate 0: 3.00x", "2.1 of 12 full generations spent, best 3.00x, 36.0 dB")
        narrator.reached(5, 20)
        narrator.advance("Candidate 5: [b]4.00x", "3.9 of 12 full generations spent, best 4.00x, 35.0 dB")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "a prompt: 3.2 s"
    assert lines[3].startswith("Candidate 0: 3.00x (1 of 24, 2.1 of 12 full generations spent, best 3.00x, 36.0 dB")
    assert lines[4].startswith("Candidate 5: [b]4.00x (6 of 20, 3.9 of 12 full generations spent, best 4.00x, 35.0 dB")
    assert "left)" in lines[4]


def test_a_table_without_a_terminal_cuts_no_words() -> None:
    table = Table(*"abcdefgh")
    table.add_row(*["not_to_be_cut_anywhere"] * 8)
    for terminal, whole in ((False, 8), (True, 0)):
        shown = io.StringIO()
        console = PlainConsole(file=shown, force_terminal=terminal, width=80)
        console.print(table)
        assert shown.getvalue().count("not_to_be_cut_anywhere") == whole
        assert console.width == 80
