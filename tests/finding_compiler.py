"""A compiler for the test of the wheel: it finds the files that an object is made of, and links what was linked before.

The native half of the checkout was compiled from the same files with the same flags, which takes minutes of CPU. What
is left to find out about a wheel is whether its build has all files it needs, from the copy it is built in alone.
``SPARC_FOUND`` gives the library that was linked, that copy and the real compiler, with colons between.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    linked, copy, compiler = os.environ["SPARC_FOUND"].split(":")
    out = Path(arguments[arguments.index("-o") + 1])
    if "-shared" in arguments:
        lacking = [name for name in arguments if name.endswith(".o") and not Path(name).is_file()]
        if lacking:
            sys.exit(f"no object {' '.join(lacking)}")
        shutil.copy2(linked, out)
        return
    flags, depfile = arguments[: arguments.index("-MMD")], arguments[arguments.index("-MF") + 1]
    source = arguments[arguments.index("-c") + 1]
    subprocess.run([compiler, *flags, "-MM", "-MF", depfile, source], check=True)
    read = Path(depfile).read_text().partition(":")[2].replace("\\\n", " ").split()
    outside = [name for name in read if not Path(name).is_relative_to(copy)]
    if source not in read or outside:
        sys.exit(f"{source} is made of files outside of {copy}: {' '.join(outside)}")
    out.touch()


main(sys.argv[1:])
