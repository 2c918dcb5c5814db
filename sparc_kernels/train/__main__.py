"""``python -m sparc_kernels.train``."""

import sys

from sparc_kernels.train.cli import main

sys.exit(main())
