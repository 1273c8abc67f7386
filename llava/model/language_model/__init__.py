"""LLaVA over language models of transformers; importing it registers their classes."""

from llava.model.language_model.families import llava_class

__all__ = ["llava_class"]
