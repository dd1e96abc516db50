"""Command line of experiments: `python -m dssn.experiments <command>`."""
import sys

from dssn.commands import run_program

COMMANDS = {
    'list': ('dssn.experiments.show', 'the runs of an experiment, and how far each has come'),
    'run': ('dssn.experiments.run', 'train what is not done yet, and print the table'),
    'page': ('dssn.experiments.page', 'write the page of results from the folders of the runs'),
}


def main(argv=None):
    return run_program('python -m dssn.experiments', 'Grids of runs under one budget.', COMMANDS,
                       argv)


if __name__ == '__main__':
    sys.exit(main())
