"""The SPARC fine-grained loss, fused (``MATH.md``)."""
