"""Benchmarks: ratios against a peer or a floor, taken in one run. See docs/performance.md."""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read when torch loads: large pages for large tensors, which spare all arms page faults
