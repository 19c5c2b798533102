"""Flow matching: paths, training objective, guidance, solvers. Time runs from noise (0) to data (1)."""
