"""LLaVA with any vision representation; imports nothing, so that every command starts at once."""

__version__ = "0.1.0"
