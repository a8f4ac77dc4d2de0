"""Training runs: from a config to a run folder, step by step, resumable."""
