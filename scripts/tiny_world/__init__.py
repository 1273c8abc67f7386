"""A world of coloured shapes: images, texts about them, and models small enough to learn both."""
