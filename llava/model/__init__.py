"""LLaVA's model: vision towers, projector, language model."""
