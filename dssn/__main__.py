"""The command line `python -m dssn <command>`: every program beside training and evaluation."""
import argparse
import importlib
import sys

from dssn.errors import escape_output, exit_status
from dssn.tools.arguments import help_text

PROGRAM = 'python -m dssn'
# {group: {command: (module, one line of help)}}. A module has `add_arguments(parser)`, whose
# docstring is the command's help, and `run(args)`, which returns the exit status; or it has
# `COMMANDS`, commands of its own.
GROUPS = {
    'data sets and id lists': {
        'check': ('dssn.tools.data.check', 'read every listed file and report what is wrong'),
        'split': ('dssn.tools.data.split', 'make labeled, unlabeled and val lists'),
        'masks': ('dssn.tools.masks', 'make masks from the files of annotation tools'),
        'prepare': ('dssn.tools.data.prepare',
                    'make a data_root from the official archives of a data set'),
        'import': ('dssn.tools.data.published', 'copy the published lists and verify them'),
        'generate': ('dssn.tools.data.generate', 'sample lists of the published sizes by seed'),
        'shrink': ('dssn.tools.data.shrink', 'copy a data set at a fraction of its size'),
        'shapes': ('dssn.tools.data.shapes', 'render the synthetic data set `shapes`'),
    },
    'networks': {
        'weights': ('dssn.tools.weights', 'fetch, convert or check ImageNet weights'),
        'export': ('dssn.tools.export', 'write a network as ONNX or as a torch.export program'),
    },
    'runs': {
        'report': ('dssn.tools.report', 'compare runs in one table, with mean and deviation'),
        'experiments': ('dssn.tools.experiments', 'grids of runs: list, run, keep, page, evidence'),
    },
    'speed and memory': {
        'bench': ('dssn.tools.bench', 'benchmarks of training and evaluation'),
    },
}


def main(argv=None):
    """Run the command that the arguments name.

    Returns:
        The exit status: 0; 1 if problems were found or after a `UserError`; 2 for a wrong command
        line.
    """
    escape_output()
    argv = sys.argv[1:] if argv is None else list(argv)
    commands = {name: entry for group in GROUPS.values() for name, entry in group.items()}
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='Tools for DSSN. To train and evaluate, see train.py and eval.py.',
        epilog=f'`{PROGRAM} COMMAND --help` explains a command.', usage='%(prog)s COMMAND ...',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    if not argv or argv[0] not in commands:
        parser.description += ''.join(
            f'\n\n{group}:\n' + '\n'.join(f'  {name:12} {text}'
                                       for name, (_, text) in entries.items())
            for group, entries in GROUPS.items())
    add_commands(parser, commands, argv)
    args = parser.parse_args(argv)
    return exit_status(args.program, args.run, args)


def add_commands(parser, commands, argv):
    """Add subcommands to a parser; only the module of the command in `argv` is imported."""
    nested = parser.prog != PROGRAM
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', prog=parser.prog,
                                       help=None if nested else argparse.SUPPRESS)
    subparsers.required = True
    for name, (module, summary) in commands.items():
        if name != (argv[0] if argv else None):
            subparsers.add_parser(name, help=summary)
            continue
        module = importlib.import_module(module)
        describe = module.__doc__ if hasattr(module, 'COMMANDS') else \
            help_text(module.add_arguments)
        sub = subparsers.add_parser(name, help=summary, description=describe,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
        if hasattr(module, 'COMMANDS'):
            add_commands(sub, module.COMMANDS, argv[1:])
        else:
            module.add_arguments(sub)
            sub.set_defaults(run=module.run, program=sub.prog)


if __name__ == '__main__':
    status = main()
    if 'dssn.distributed' in sys.modules:  # sys.exit is not safe with process groups
        sys.modules['dssn.distributed'].exit(status)
    sys.exit(status)
