"""Projectors: from tower tokens to the language model's embeddings."""
