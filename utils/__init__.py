"""What drives a run: training loop, evaluation, optimizer, checkpoints, logs, reports."""
