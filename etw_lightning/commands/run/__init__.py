"""``fit``, ``evaluate``, ``check``, ``weights``: commands of one run, which take the same files."""
