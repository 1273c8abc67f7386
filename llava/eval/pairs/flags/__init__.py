"""Flags of scorers, apart from what scores: `--help` imports no torch."""
