"""Command line of the data tools: `python -m dssn.data <command>`."""
import sys

from dssn.commands import run_program

COMMANDS = {
    'shapes': ('dssn.data.shapes', 'draw the shapes data set'),
    'prepare': ('dssn.data.prepare', 'make a data_root from the official archives of a data set'),
    'split': ('dssn.data.split', 'make labeled, unlabeled and val lists'),
    'shrink': ('dssn.data.shrink', 'a data set again, at a fraction of its size'),
    'check': ('dssn.data.check', 'read every listed file and report what is wrong'),
    'import': ('dssn.data.published', 'take the published lists from a checkout, verified'),
    'generate': ('dssn.data.generate', 'draw lists of the published sizes by seed'),
}


def main(argv=None):
    return run_program('python -m dssn.data', 'Tools for data sets and id lists.', COMMANDS, argv)


if __name__ == '__main__':
    sys.exit(main())
