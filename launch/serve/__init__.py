"""A page on which a person makes clips with a checkpoint: forms, a queue, and the clips."""
