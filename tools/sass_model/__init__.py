"""A cost model of the compiled CUDA kernels: ``python -m tools.sass_model``. It predicts; it measures nothing."""
