"""Grids of runs with the same number of optimizer steps, described by the files in experiments/."""

COMMANDS = {
    'list': ('dssn.tools.experiments.list_runs', 'list the runs of an experiment'),
    'run': ('dssn.tools.experiments.run', 'train the runs that are not done, and print the table'),
    'compare': ('dssn.tools.experiments.compare', 'a method beside its baselines, on your config'),
    'evidence': ('dssn.tools.experiments.evidence', 'short trainings of all methods on one GPU'),
    'keep': ('dssn.tools.experiments.keep', 'copy the records of finished runs, to be committed'),
    'page': ('dssn.tools.experiments.page', 'write the page of results from the records of runs'),
}
