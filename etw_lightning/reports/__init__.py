"""Runs side by side: a report to read in a browser, and a leaderboard under a named rule."""
