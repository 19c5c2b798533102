"""Pages for people: the report of a run, the gallery of samples, the page of a dataset, and contact sheets."""
