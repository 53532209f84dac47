"""What can be known of a policy without running it.

In come the traces of full-compute runs and a policy; out come block evaluations (exact), estimates of quality, the
change maps that thresholds are counted on, and the bound on the error of extrapolation.
"""
