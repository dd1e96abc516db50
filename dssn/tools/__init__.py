"""The programs beside training and evaluation: `python -m dssn <command>`."""
