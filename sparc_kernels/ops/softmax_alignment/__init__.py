"""Losses of tokens against their attention over patches, within pairs."""
