"""Cosines of text tokens with the patches that they attend to, of all pairs of images and captions."""
