"""One file per op: its inputs, work, definition, public call, contenders, suites and plots (docs/adding_an_op.md)."""
