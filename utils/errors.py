"""Faults of the user that more than one layer reports."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what would be right."""
