"""Voting over augmented versions of a puzzle, and reading grids back from tokens."""
