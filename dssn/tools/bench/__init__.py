"""Benchmarks of training and evaluation. They need no data set.

Each result is compared with a plain implementation or a lower bound, measured in the same command.
"""

COMMANDS = {
    'step': ('dssn.tools.bench.step', 'a training step and its parts, compared with its floor'),
    'loader': ('dssn.tools.bench.loader', 'loading of training batches, compared with plain code'),
    'memory': ('dssn.tools.bench.memory', 'a training step with the options that save memory'),
    'eval': ('dssn.tools.bench.evaluation', 'evaluation of two networks, compared with plain code'),
    'kth': ('dssn.tools.bench.kth', "three ways to find OHEM's k-th smallest value"),
    'card': ('dssn.tools.bench.card', 'the GPU and the versions of the software'),
    'gpu_check': ('dssn.tools.bench.gpu_check', 'tests and benchmarks of one GPU in a few minutes'),
}
