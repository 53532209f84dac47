"""One file per model family: the only places that know how a pipeline is built inside."""
