"""``python -m benchmarks.scale_model``."""

from benchmarks.scale_model.command import main

main()
