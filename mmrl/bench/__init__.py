"""Benchmarks: ratios against a peer or a floor, taken in one run. See docs/performance.md."""
