"""The stages of the road, and what only they share. The only place for Ray tasks and DeepSpeed."""
