"""Datasets on disk: clips, buckets, shards, manifest, index."""
