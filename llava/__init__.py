"""LLaVA with any vision representation; imports nothing, so that every command starts at once."""

__version__ = "0.1.0"
LMMS_EVAL = "0.7.3"
"""The release of lmms-eval that everything here is tested with."""
