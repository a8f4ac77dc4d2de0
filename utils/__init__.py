"""What everything stands on: ranks, signals, files, processes, the run folder with its logs and status."""
