"""Checks of listed files. Training and the command `check` use the same code."""
