"""The doors: command line, configuration, cluster, jobs."""
