"""Configuration: the Hydra files and `schema.py`, the one place that validates them."""
