"""What the target model says of the training rows, for losses that compare with it."""
