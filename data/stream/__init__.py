"""The deterministic stream of training samples."""
