"""Several runs of one process: studies, search, ensembles."""
