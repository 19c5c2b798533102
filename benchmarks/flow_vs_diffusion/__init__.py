"""Flow matching, three diffusion objectives and a few-step student on one demo: the trained comparison."""
