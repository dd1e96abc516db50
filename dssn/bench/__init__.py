"""Benchmarks: what parts of this program cost, beside a plain way or a floor, in one run."""
