"""Heads on frozen towers that bring images and captions together, and what trains them."""
