"""Data: id lists, image and mask files, views, and the order of the samples in training."""
