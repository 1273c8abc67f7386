"""What accuracies are called; metrics.py says what they are."""

ACCURACIES = ("individual", "pair", "set", "text", "image", "group")
"""In the order of tables."""
