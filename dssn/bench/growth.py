"""`python -m dssn.bench growth`: how time and memory of a training step grow with one key."""
from dssn import config
from dssn.bench.memory import measure
from dssn.bench.timing import line_through, write_json
from dssn.data.arguments import positive_number
from dssn.errors import UserError

KEYS = ('crop_size', 'nclass', 'batch_size')


def add_arguments(parser):
    """Print time and peak memory of a training step for several values of one key.

    python -m dssn.bench growth --config configs/pascal.yaml --over crop_size --values 129 193 257

    Below the table stands the straight line that fits best, over pixels of a crop for crop_size, and
    how far from it the values lie at most. Each value is a process of its own, measured as `bench
    memory` does.
    """
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--over', required=True, choices=KEYS, help='the key')
    parser.add_argument('--values', required=True, nargs='+', type=positive_number, metavar='N',
                        help='its values, at least two')
    parser.add_argument('--rounds', type=positive_number, default=3,
                        help='steps of which the median is shown (default: %(default)s)')
    parser.add_argument('--json', metavar='FILE', help='write the result for programs')


def run(args):
    values = sorted(set(args.values))
    if len(values) < 2:
        raise UserError(f'--values: {values[0]} alone shows no growth; give at least two values')
    cfg, lines = config.load(args.config, None, args.assignments), []
    for value in values:
        lines.append({'value': value, **measure(args, [f'{args.over}={value}'])})
        if len(lines) == 1:
            print(f"{lines[0]['machine']}\n{cfg.method}, {cfg.backbone}, crop {cfg.crop_size}, "
                  f'{cfg.nclass} classes, batch {cfg.batch_size} and {cfg.batch_size}, but for '
                  f'{args.over}\n\n| {args.over} | seconds a step | peak memory, MiB |\n|---|---|---|')
        print(f"| {value} | {lines[-1]['seconds']:.2f} | {lines[-1]['step_memory_mib']:.0f} |",
              flush=True)
    # Work and activations go by pixels.
    power, unit = (2, 'pixel of the crop') if args.over == 'crop_size' else (1, f'1 of {args.over}')
    fits = {}
    print()
    for what, name in (('seconds', 's'), ('step_memory_mib', 'MiB')):
        fits[what] = line_through([value ** power for value in values],
                                  [line[what] for line in lines])
        base, slope, off = fits[what]
        print(f'{base:.3g} {name} + {slope:.3g} {name} for each {unit}; values within '
              f'{100 * off:.0f}% of it')
    write_json(args.json, {'config': config.to_dict(cfg), 'over': args.over, 'lines': lines,
                           'fits': fits})
    return 0
