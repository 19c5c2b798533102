"""Names of the weights a checkpoint holds."""

MASTER = "master"  # the weights as trained
Weights = str  # "master", "ema" (the first average) or the name of an average
FIRST = "ema"  # the average that is meant where none is named
RAW = "raw"  # the weights as trained
