"""Grids of runs: planned, found, chosen from, reported."""
