"""``python -m sparc_kernels.train``."""

import sys

from .cli import main

sys.exit(main())
