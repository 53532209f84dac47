"""Learned weights as pictures: what each block hands over from each recompute up to the next."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from calibrate.display.theme import Palette, figure
from calibrate.display.wording import chart_text
from scope_runtime import Policy
from scope_runtime.policy import IDLE, LETTERS, Mode

_ROW_HEIGHT = 20
# With more steps than this there is room for a dot at each recompute, but not for its number.
_MOST_NUMBERS = 24
# Weights that differ by less than this are drawn alike.
_LEAST_RANGE = 0.1


def weight_map(policy: Policy, colours: Palette, *, older: bool) -> go.Figure:
    """A map of a block's steps (left to right) by blocks and branches (first on top), one bar per gap.

    Args:
        policy: With a plan and learned weights.
        colours: Of the page.
        older: Whether to show the weights of all older outputs together, in place of that of the newest.
    """
    weights, plan = policy.gap_weights, policy.plan
    assert weights is not None
    assert plan is not None
    columns = [[row[block] for row in plan if row[block] != IDLE] for block in range(len(plan[0]))]
    branches = sorted({branch for _, _, branch, _ in weights.weights})
    rows = [(block, branch) for block in range(len(columns)) for branch in branches]
    steps = max(map(len, columns))
    shown = np.full((len(rows), steps), np.nan)
    texts, hovers = (np.full(shown.shape, "", dtype=object) for _ in range(2))
    for number, (block, branch) in enumerate(rows):
        own: tuple[float, ...] = ()
        for step, letter in enumerate(columns[block]):
            if letter == LETTERS[Mode.RECOMPUTE]:
                own = weights.of(block, step, branch)
                texts[number, step] = f"{_shown(own, older):z.2f}" if steps <= _MOST_NUMBERS else "\u2022"
            if own:
                shown[number, step] = _shown(own, older)
                hovers[number, step] = ", ".join(f"{weight:.3f}" for weight in own)
    names = [chart_text(f"block {block}, {branch}") for block, branch in rows]
    neutral = 0.0 if older else 1.0
    most = max(_LEAST_RANGE, float(np.nanmax(np.abs(shown - neutral), initial=0.0)))
    made = figure(colours, "Step of the block", "", 70 + _ROW_HEIGHT * len(rows))
    made.update_layout(margin={"t": 8})
    made.add_trace(
        go.Heatmap(
            z=shown,
            y=names,
            zmin=neutral - most,
            zmax=neutral + most,
            colorscale=[(0, colours.chosen), (0.5, colours.ghost), (1, colours.feasible)],
            colorbar={"title": "weight", "thickness": 12},
            ygap=3,
            customdata=hovers,
            text=texts,
            texttemplate="%{text}",
            textfont={"size": 10},  # black or white, whichever shows on the cell
            hovertemplate="%{y}, step %{x}<br>newest first: %{customdata}<extra></extra>",
            hoverongaps=False,
        )
    )
    made.update_xaxes(showgrid=False, range=[-0.5, steps - 0.5])
    made.update_yaxes(type="category", showgrid=False, autorange="reversed", automargin=True)
    return made


def _shown(weights: tuple[float, ...], older: bool) -> float:
    return sum(weights[1:]) if older else weights[0]
