"""``python -m benchmarks.report``."""

from benchmarks.report.document import main

main()
