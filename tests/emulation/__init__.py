"""Kernels of ``csrc/`` over ``common/device.cuh``, compiled for the host and watched while they run."""
