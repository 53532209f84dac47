"""What a study may ask for: one class per part of its file.

In come plain values from YAML or from a profile; each part is checked in full, by itself. Out come frozen objects
that every room above reads; `calibrate.study` joins them into a whole file.
"""
