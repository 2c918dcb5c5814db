"""Maxima over the tokens of all pairs of images and captions (late interaction)."""
