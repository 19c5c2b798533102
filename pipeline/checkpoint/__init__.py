"""Sharded checkpoints: format, reading, writing, resuming, exporting."""
