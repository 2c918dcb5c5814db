"""Bytes, flop, time and memory per rank of a global loss on more ranks than these machines have, by arithmetic.

``traffic``: what each mode exchanges (compared with bytes counted in runs of the code: tests/benchmarks); ``work``: its
products and memory; ``rates``: what a chip and its links do, each figure with its source; ``times``: the three together;
``page``: the part of docs/distributed.md.
"""
