"""Stage encode: clips become shards of latents."""
