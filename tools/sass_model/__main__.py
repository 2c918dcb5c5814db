"""``python -m tools.sass_model``: what the compiled kernels cost, predicted from their instructions.

``--write`` writes the tables into docs/cuda_resources.md. Needs the CUDA half of the native library, cuobjdump (of the
CUDA toolkit or of the Triton wheel), and what the emulation needs (g++, pybind11); ``--path triton`` needs Triton and
cuobjdump alone.
"""

from __future__ import annotations

import argparse

from tests.cuda_resources import DOCUMENT, committed
from tools.sass_model import choices, report, sources
from tools.sass_model.chips import CHIPS, chip_of
from tools.sass_model.launches import OPS, PATHS, Shape
from tools.sass_model.model import Prediction, predict, predict_triton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables into docs/cuda_resources.md")
    parser.add_argument("--section", action="store_true", help="print what --write writes")
    parser.add_argument("--op", choices=OPS, nargs="+", default=list(OPS))
    architectures = [chip.architecture for chip in CHIPS]
    parser.add_argument("--architecture", choices=architectures, nargs="+", default=["sm_90"])
    parser.add_argument("--path", choices=(*PATHS, "triton"), default="pair")
    parser.add_argument("--tokens", type=int, default=report.SHAPE.tokens)
    parser.add_argument("--patches", type=int, default=report.SHAPE.patches)
    parser.add_argument("--channels", type=int, default=report.SHAPE.channels)
    parser.add_argument("--valid-tokens", type=int, help="of a caption with a mask")
    parser.add_argument("--valid-patches", type=int, help="of an image with a mask")
    parser.add_argument("--loops", type=int, default=12, help="how many loops to list (default 12)")
    options = parser.parse_args()
    if options.write or options.section:
        text = sources.stamped(choices.section() + report.section())
        if options.write:
            DOCUMENT.write_text(committed()[0] + text)
        else:
            print(text, end="")
        return
    shape = Shape(options.tokens, options.patches, options.channels, options.valid_tokens, options.valid_patches)
    for op in options.op:
        for architecture in options.architecture:
            kernels: list[Prediction] = []
            for backward in (False, True):
                if options.path == "triton":
                    kernels += predict_triton(op, backward, shape, chip_of(architecture))
                else:
                    kernels.append(predict(op, backward, shape, chip_of(architecture), options.path))
            for kernel in kernels:
                print(report.details(kernel, options.loops))
            most, expected = report.both(*kernels)
            print(f"  forward and backward: at most {most} of the floor, forecast {expected}\n")


if __name__ == "__main__":
    main()
