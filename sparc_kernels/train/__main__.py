"""``python -m sparc_kernels.train``, also under ``torchrun --nproc-per-node N -m``."""

import atexit
import os
import sys
import traceback

from sparc_kernels.train.cli import main
from sparc_kernels.train.processes import launched

if not launched():
    sys.exit(main())
try:
    status: object = main()
except SystemExit as end:
    status = end.code
except BaseException:
    traceback.print_exc()
    status = 1
# One of several processes leaves without taking its process group down: gloo's threads now and then abort a process
# that ends in peace, and NCCL waits for the others.
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status if isinstance(status, int) else 0)
