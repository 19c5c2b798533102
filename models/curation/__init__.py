"""Models that look at clips while a dataset is made: they write captions, or score clips."""
