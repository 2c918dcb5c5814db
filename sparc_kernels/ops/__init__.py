"""One room per op; the same file names in each."""
