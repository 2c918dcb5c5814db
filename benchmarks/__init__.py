"""Benchmarks: the shipped kernels against the shipped references, through the public API."""
