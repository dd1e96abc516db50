"""`python -m dssn bench kth`: times three ways to find OHEM's k-th smallest value."""
import statistics

import torch

from dssn import distributed
from dssn.errors import UserError
from dssn.run.machine import machine
from dssn.tools.arguments import positive_number
from dssn.tools.bench.timing import time_in_turns
from dssn.tools.output_files import write_json

# Each takes values (N,) and k, from 1, and returns the k-th smallest value, a scalar.
WAYS = {
    'kthvalue': lambda values, k: values.kthvalue(k).values,
    'sort': lambda values, k: values.sort().values[k - 1],
    'topk': lambda values, k: values.topk(k, largest=False, sorted=False).values.max(),
}


def add_arguments(parser):
    """Time kthvalue, sort and topk on as many values as a labeled batch has pixels.

        python -m dssn bench kth --values 1283202 --k 100000 200000

    The values are random probabilities. A tenth of them is infinite, as in OHEM for pixels without
    a class. All ways must find the same value; otherwise the exit status is 1.
    """
    parser.add_argument('--values', type=positive_number, default=2 * 801 * 801, metavar='N',
                        help='number of values (default: %(default)s, two Cityscapes crops)')
    parser.add_argument('--k', type=positive_number, nargs='+', default=[100000, 200000],
                        metavar='K', help='default: 100000 200000')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='auto: a GPU if there is one (default: %(default)s)')
    parser.add_argument('--rounds', type=positive_number, default=20,
                        help='number of rounds; in each all ways take a turn '
                             '(default: %(default)s)')
    parser.add_argument('--json', metavar='FILE', help='write the result as JSON')


def run(args):
    for k in args.k:
        if k > args.values:
            raise UserError(f'--k: {k} is more than the number of values ({args.values}); give at '
                            'most that')
    with distributed.start(args.device) as world:
        values = random_values(args.values).to(world.device)
        lines = [measure(values, k, args.rounds) for k in args.k]
        where = machine(world.device)
    print(f'{where}\n{args.values} values; medians of {args.rounds} rounds\n\n| k | '
          + ' | '.join(f'{name}, ms' for name in WAYS) + ' | fastest |\n|'
          + '---|' * (len(WAYS) + 2))
    for line in lines:
        print(f"| {line['k']} | " + ' | '.join(f'{1e3 * line["seconds"][name]:.3f}'
                                               for name in WAYS)
              + f" | {line['fastest']} |")
    different = [line['k'] for line in lines if not line['same']]
    if different:
        print(f'different values for k = {different}')
    write_json(args.json, {'machine': where, 'values': args.values, 'lines': lines})
    return 1 if different else 0


def random_values(count):
    """Probabilities (N,) float32, a tenth of them infinite."""
    generate = torch.Generator().manual_seed(0)
    values = torch.rand(count, generator=generate)
    return values.masked_fill(torch.rand(count, generator=generate) < 0.1, float('inf'))


def measure(values, k, rounds):
    """{k, seconds: {way: median}, fastest, same: whether all ways find the same value}."""
    found = {name: way(values, k).item() for name, way in WAYS.items()}
    ways = {name: (lambda way=way: way(values, k)) for name, way in WAYS.items()}
    seconds = {name: statistics.median(times)
               for name, times in time_in_turns(ways, rounds, values.device).items()}
    return {'k': k, 'seconds': seconds, 'fastest': min(seconds, key=seconds.get),
            'same': len(set(found.values())) == 1}
