"""Was it good? The numbers that a person judges by, in words, and the rows behind them."""
