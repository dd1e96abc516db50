"""Parts of a run: setup, folder and lock, log, metrics, diagnostics, checkpoints, signals."""
