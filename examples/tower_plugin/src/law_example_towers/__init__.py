"""Towers from encoders that PyPI packages ship, their untrained twins, and raw colours."""
