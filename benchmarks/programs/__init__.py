"""Programs around an op: whole optimizer steps, and a process's first call."""
