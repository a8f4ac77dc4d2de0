"""Weights that come along: each folder is a checkpoint, and a card that says how to use it."""
