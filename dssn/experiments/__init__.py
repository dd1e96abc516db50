"""Experiments: grids of runs under one budget, described by the files in experiments/."""
