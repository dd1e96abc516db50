"""Command line of the benchmarks: `python -m dssn.bench <command>`."""
from dssn.commands import run_program

COMMANDS = {
    'step': ('dssn.bench.step', 'a training step by parts, beside its floor'),
    'memory': ('dssn.bench.memory', 'a training step with the options that save memory'),
    'growth': ('dssn.bench.growth', 'how time and memory of a step grow with one key'),
    'lists': ('dssn.bench.lists', 'what id lists cost before the first step, by their length'),
    'eval': ('dssn.bench.evaluation', 'evaluation of student and teacher, beside the plain way'),
    'loader': ('dssn.bench.loader', 'loading of training batches, beside the plain order'),
}


def main(argv=None):
    return run_program('python -m dssn.bench', 'Benchmarks; none needs a data set.', COMMANDS, argv)


if __name__ == '__main__':
    status = main()
    from dssn.distributed import exit
    exit(status)
