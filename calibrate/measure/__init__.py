"""A generation becomes a record.

In come a loaded target, a policy and a case; the target generates, and the clip is held against the stock one. Out
come baselines, figures, timings and comparison clips; nothing here decides what is tried next.
"""
