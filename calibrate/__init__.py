"""Calibration of SCOPE: from a study file to a measured profile that `scope_runtime` loads."""
