"""One file per revision, numbered; each only goes forward."""
