"""The global contrastive loss (``MATH.md``)."""
