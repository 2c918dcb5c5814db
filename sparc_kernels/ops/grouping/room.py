"""What everybody who goes through all ops knows of these two."""

from sparc_kernels.ops._alignment import samples
from sparc_kernels.ops._alignment.choice import TRITON_FIRST
from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.grouping import autograd, schema

_FORWARD_DIMS = ((0, 0, 0, None, None), (0, 1))
_BACKWARD_DIMS = ((0, 0, 0, 0, None, 1, None, None, None), (0, 0))

ROOM = Room(
    name="grouping",
    dtypes=KERNEL_DTYPES,
    entries=(
        Entry(
            "functional.alignment.language_grouped_embeddings", "ops.grouping.reference.grouped_embeddings_reference"
        ),
        Entry("functional.alignment.alignment_weights", "ops.grouping.reference.alignment_weights_reference"),
    ),
    sample=samples.pairs,
    sizes=samples.SIZES,
    triton_first=TRITON_FIRST["grouping"],
    ops=(
        Op(
            "grouped_embeddings",
            forward=Pass(
                schema.EMBEDDINGS_FORWARD,
                schema.fake_embeddings_forward,
                schema.embeddings_forward_flops,
                _FORWARD_DIMS,
                "embeddings_forward",
            ),
            backward=Pass(
                schema.EMBEDDINGS_BACKWARD,
                schema.fake_backward,
                schema.embeddings_backward_flops,
                _BACKWARD_DIMS,
                "embeddings_backward",
            ),
            derivative=autograd.embeddings_derivative,
        ),
        Op(
            "alignment_weights",
            forward=Pass(
                schema.WEIGHTS_FORWARD,
                schema.fake_weights_forward,
                schema.weights_forward_flops,
                _FORWARD_DIMS,
                "weights_forward",
            ),
            backward=Pass(
                schema.WEIGHTS_BACKWARD,
                schema.fake_backward,
                schema.weights_backward_flops,
                _BACKWARD_DIMS,
                "weights_backward",
            ),
            derivative=autograd.weights_derivative,
        ),
    ),
)
