"""The networks and the mathematics: plain modules and pure functions, no files, no Ray, no DeepSpeed."""
