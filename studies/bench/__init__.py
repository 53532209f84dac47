"""Benchmarks: ``python -m studies.bench NAME --json``. Every ratio is taken from runs interleaved in one process."""
