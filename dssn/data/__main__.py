"""Command line of the data tools: `python -m dssn.data <command>`.

Exit status: 0, or 1 where problems were found, or 2 for a wrong command line.
"""
import argparse
import importlib
import sys

from dssn.errors import exit_status

# A command is a module with `add_arguments(parser)` and `run(args) -> exit status`.
COMMANDS = {
    'shapes': ('dssn.data.shapes', 'draw the shapes data set'),
    'prepare': ('dssn.data.prepare', 'make a data_root from the official archives of a data set'),
    'split': ('dssn.data.split', 'make labeled, unlabeled and val lists'),
    'check': ('dssn.data.check', 'read every listed file and report what is wrong'),
    'import': ('dssn.data.published', 'take the published lists from a checkout, verified'),
    'generate': ('dssn.data.generate', 'draw lists of the published sizes by seed'),
}


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m dssn.data',
                                     description='Tools for data sets and id lists.')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True
    for name, (module, summary) in COMMANDS.items():
        module = importlib.import_module(module)
        sub = commands.add_parser(name, help=summary, description=module.add_arguments.__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return exit_status(parser.prog, args.run, args)


if __name__ == '__main__':
    sys.exit(main())
