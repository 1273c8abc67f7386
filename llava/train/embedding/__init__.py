"""Training of embedders; its flags are in llava/eval/pairs/train_embedder.py."""
