"""``fit``, ``evaluate``, ``check``, ``weights``: the commands of a run, which take the same files."""
