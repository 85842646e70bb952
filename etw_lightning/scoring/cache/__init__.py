"""Scores that are kept: what they depend on, and the files they are in."""
