"""One page about a study or a profile, for a colleague who has neither.

In comes a study with its records, or a profile by itself; out goes an HTML page that needs nothing else, or a model
card for the folder that the profile lies in. Both say what the dashboard says, from `calibrate.display`.
"""
