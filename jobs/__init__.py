"""Series of runs: job files, their runner, and where jobs are executed."""
