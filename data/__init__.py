"""Clips on disk: decode, encode, shards, the index, and the deterministic stream of samples."""
