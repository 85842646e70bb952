"""What was typed: the command line, its checks and its messages."""
