"""Stages draw and shard: videos to shards of clips."""
