"""One step, its data, and the models it compares with."""
