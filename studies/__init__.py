"""Reproducible studies: the bundled reference pipeline and the experiments run on it."""
