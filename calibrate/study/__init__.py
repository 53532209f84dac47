"""The YAML that a user writes, as a whole.

In comes a file; it is read, joined from its parts and checked in full, with one sentence for what is wrong. Out comes
a `Study`, and whether its results can be written where it says.
"""
