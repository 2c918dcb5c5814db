"""``python -m tools.sass_model``: what the compiled kernels of the pair path cost, predicted from their instructions.

``--write`` writes the tables into docs/cuda_resources.md. Needs the CUDA half of the native library, cuobjdump (of the
CUDA toolkit or of the Triton wheel), and what the emulation needs (g++, pybind11).
"""

from __future__ import annotations

import argparse

from tests.cuda_resources import DOCUMENT, committed
from tools.sass_model import report
from tools.sass_model.chips import CHIPS, chip_of
from tools.sass_model.launches import OPS, PATHS, Shape
from tools.sass_model.model import predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables into docs/cuda_resources.md")
    parser.add_argument("--op", choices=OPS, nargs="+", default=list(OPS))
    architectures = [chip.architecture for chip in CHIPS]
    parser.add_argument("--architecture", choices=architectures, nargs="+", default=["sm_90"])
    parser.add_argument("--path", choices=PATHS, default="pair")
    parser.add_argument("--tokens", type=int, default=report.SHAPE.tokens)
    parser.add_argument("--patches", type=int, default=report.SHAPE.patches)
    parser.add_argument("--channels", type=int, default=report.SHAPE.channels)
    parser.add_argument("--valid-tokens", type=int, help="of a caption with a mask")
    parser.add_argument("--valid-patches", type=int, help="of an image with a mask")
    parser.add_argument("--loops", type=int, default=12, help="how many loops to list (default 12)")
    options = parser.parse_args()
    if options.write:
        DOCUMENT.write_text(committed()[0] + report.section())
        return
    shape = Shape(options.tokens, options.patches, options.channels, options.valid_tokens, options.valid_patches)
    for op in options.op:
        for architecture in options.architecture:
            forward, backward = (
                predict(op, is_backward, shape, chip_of(architecture), options.path) for is_backward in (False, True)
            )
            print(report.details(forward, options.loops))
            print(report.details(backward, options.loops))
            print(f"  forward and backward: at most {report.both(forward, backward)} of the floor\n")


if __name__ == "__main__":
    main()
