"""Weighted dot products of paired rows (``MATH.md``)."""
