"""Tokens of latents: finite scalar quantisation, and the small network around it."""
