"""Commands that make, change or check data sets and id lists."""
