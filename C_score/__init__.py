"""The C score: how well a vision representation's features find corresponding points."""
