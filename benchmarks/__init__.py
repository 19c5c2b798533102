"""Side-by-side measurements: each prints JSON; ratios within one run are what counts."""
