"""The process that runs emulated kernels: ``serve.py MODULE FOLDER FIRST``. Imports numpy and nothing of the package.

``FOLDER/jobs.pickle`` holds pairs of a function of the module and its keyword arguments. The result of job i goes to
``FOLDER/i.pickle``, a pair of the value and of the text of the exception, one of them None. A job at which a sanitizer
ends the process leaves no result.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any


def serve(module_path: Path, folder: Path, first: int) -> None:
    spec = importlib.util.spec_from_file_location(module_path.name.partition(".")[0], module_path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (folder / "started").touch()
    jobs: list[tuple[str, dict[str, Any]]] = pickle.loads((folder / "jobs.pickle").read_bytes())
    for index in range(first, len(jobs)):
        function, arguments = jobs[index]
        value, error = None, None
        try:
            value = getattr(module, function)(**arguments)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        partial = folder / f"{index}.partial"
        partial.write_bytes(pickle.dumps((value, error)))
        partial.replace(folder / f"{index}.pickle")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
