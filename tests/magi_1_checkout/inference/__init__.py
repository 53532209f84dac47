"""A stand-in for MAGI-1's official package with the same call contract; none of its code.

The model is analytic: its data are moving wave patterns with a little spread, and its velocity is the exact posterior
mean of the flow for a mixture of them. Text and attention over the chunks before say which pattern is likely, so
skipping, lost context and wrong guidance all show in what is generated.
"""
