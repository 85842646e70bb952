"""Forget requests that come one after the other: planned, run, and watched after each."""
