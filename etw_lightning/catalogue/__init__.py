"""Which number is computed from which records, under which name."""
