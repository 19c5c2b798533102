"""DeepSpeed ZeRO and what lives beside the weights: averages, loss scale, sequence parallelism."""
