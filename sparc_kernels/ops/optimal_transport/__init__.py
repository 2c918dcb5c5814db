"""Optimal transport between the tokens of an image and those of its caption (``MATH.md``)."""
