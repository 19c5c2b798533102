"""Datasets on disk: shapes and records of clips, shards, manifest, index."""
