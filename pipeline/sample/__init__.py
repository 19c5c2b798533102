"""Stage sample: prompts to clips."""
