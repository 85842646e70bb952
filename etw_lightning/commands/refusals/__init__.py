"""Why a command line is refused: one line that names the key, and the way out."""
