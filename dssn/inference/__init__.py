"""Evaluation on an id list, prediction of images, and pictures of the predictions."""
