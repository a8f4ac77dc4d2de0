"""Faults that more than one layer reports."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what would be right."""


class MachineError(RuntimeError):
    """The machine does not give what a program needs; the message says what, and what to do."""
