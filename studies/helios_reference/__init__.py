"""A small Helios pipeline with trained weights, of the same synthetic world as `studies.reference`."""
