"""Language-grouped embeddings and alignment weights as outputs (``MATH.md``)."""
