"""Processes: Ray Train workers, torchrun, collectives, pools."""
