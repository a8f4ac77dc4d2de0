"""Recursive decoders, and the models that give them their context."""
