"""Triton helpers shared by the rooms."""
