"""How something is read and written without harm: paths, weights, folders, the hub."""
