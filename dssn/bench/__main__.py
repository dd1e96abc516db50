"""Command line of the benchmarks: `python -m dssn.bench <command>`."""
import sys

from dssn.commands import run_program

COMMANDS = {
    'eval': ('dssn.bench.evaluation', 'evaluation of student and teacher, beside the plain way'),
    'loader': ('dssn.bench.loader', 'loading of training batches, beside the plain order'),
}


def main(argv=None):
    return run_program('python -m dssn.bench', 'Benchmarks; none needs a data set.', COMMANDS, argv)


if __name__ == '__main__':
    sys.exit(main())
