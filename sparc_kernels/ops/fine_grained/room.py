"""What everybody who goes through all ops knows of this one."""

from sparc_kernels.ops._alignment import samples
from sparc_kernels.ops._alignment.choice import TRITON_FIRST
from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.fine_grained import autograd, schema

ROOM = Room(
    name="fine_grained",
    dtypes=KERNEL_DTYPES,
    entries=(
        Entry(
            "functional.alignment.fine_grained_loss",
            "ops.fine_grained.reference.fine_grained_reference",
            {"reduction": "none"},
        ),
        Entry("functional.sparc.sparc_loss"),
    ),
    sample=samples.pairs,
    sizes=samples.SIZES,
    triton_first=TRITON_FIRST["fine_grained"],
    ops=(
        Op(
            "fine_grained",
            forward=Pass(
                schema.FORWARD,
                schema.fake_forward,
                schema.forward_flops,
                batch_dims=((0, 0, 0, 0, None, None, None, None, None), (0, 1, 0, 0)),
                launcher="forward",
            ),
            backward=Pass(
                schema.BACKWARD,
                schema.fake_backward,
                schema.backward_flops,
                batch_dims=((0, 0, 0, 0, 0, 0, 0, None, None, 1, None, None, None), (0, 0)),
                launcher="backward",
            ),
            derivative=autograd.derivative,
        ),
    ),
)
