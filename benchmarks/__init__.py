"""Measurements printed as ratios of two things run in turn in one process."""
