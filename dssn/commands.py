"""A program of several commands, each a module of its own."""
import argparse
import importlib

from dssn.errors import exit_status


def run_program(program, description, commands, argv=None):
    """Parse the command line, run what it names and return the exit status.

    Args:
        program: how it is called, such as 'python -m dssn.data'.
        commands: {name: (module, line of help)}; a module has `add_arguments(parser)`, whose
            docstring is the command's help, and `run(args) -> exit status`.

    Returns:
        0, or 1 where problems were found, or 2 for a wrong command line.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND')
    subparsers.required = True
    for name, (module, summary) in commands.items():
        module = importlib.import_module(module)
        sub = subparsers.add_parser(name, help=summary, description=module.add_arguments.__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return exit_status(program, args.run, args)
