"""Stage encode: clips to shards of latents."""
