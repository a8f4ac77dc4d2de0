"""Checkpoints and weights on disk: written whole, verified, read from any layout."""
