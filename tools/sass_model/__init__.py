"""A cost model of the compiled CUDA kernels: ``python -m tools.sass_model``. What it says is predicted, not measured."""
