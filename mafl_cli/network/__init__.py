"""A model file becomes a `Segmenter`: the only room that knows how PyTorch stores models."""
