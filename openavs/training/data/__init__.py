"""Data sets, labels and transforms of the training."""
