"""What to try next.

In come a study, its baselines and what was measured so far; candidates are proposed, screened on traces, measured and
told to Optuna until the budget is spent. Out comes a study whose trials and generations are recorded.
"""
