"""The process that runs emulated kernels: ``serve.py MODULE``. Imports numpy and nothing of the package.

Writes ``ready``; then reads pairs of a function of the module and its keyword arguments, pickled, from stdin until that
ends, and answers each with a pair of the value and of the text of the exception, one of them None. A call at which a
sanitizer ends the process gets no answer.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path


def serve(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"ready")
    answers.flush()
    while True:
        try:
            function, arguments = pickle.load(calls)
        except EOFError:
            return
        value, error = None, None
        try:
            value = getattr(module, function)(**arguments)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        pickle.dump((value, error), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
