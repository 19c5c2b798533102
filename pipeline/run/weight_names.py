"""Names of the weights a checkpoint holds."""

MASTER = "master"  # the weights as trained
WeightsName = str  # "master", "ema" (the first average) or the name of an average
FIRST_AVERAGE = "ema"  # the average that is meant where none is named
RAW = "raw"  # the weights as trained
