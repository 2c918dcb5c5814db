"""Kernels of ``csrc/`` that are written over ``common/device.cuh``, compiled for the host and watched while they run."""
