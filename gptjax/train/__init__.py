"""Training: the loop, checkpoints, and the supervised stages."""
