"""Data: id lists, files, views, and the order in which training sees them."""
