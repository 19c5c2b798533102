"""Attention, and the kernels that compute it."""
