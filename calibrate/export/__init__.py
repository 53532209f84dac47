"""From measured candidates to a profile.

In comes what the store holds of a study's candidates; one is picked by a rule, run beside stock on held-out cases,
and written down. Out go the profile, its clip, plot and report, lists of generations, and the check of an old profile's
evidence.
"""
