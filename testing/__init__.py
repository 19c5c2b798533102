"""Fixtures that tests and benchmarks share; not shipped."""
