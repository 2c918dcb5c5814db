"""Bytes, flop, time and memory per rank of a global loss on more ranks than these machines have, by arithmetic.

``traffic``: what each mode exchanges; ``work``: its products and memory (both held against real runs by
tests/benchmarks/test_scale_model.py); ``rates``: what a chip and its links do, each figure with its source; ``times``:
the three together; ``page``: the part of docs/distributed.md.
"""
