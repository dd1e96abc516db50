"""The value that marks a pixel without a class, in masks, labels and losses."""

IGNORE = 255
