"""Whether a run fits: memory predicted before the first step."""
