"""`python -m dssn bench memory`: memory and time of a step with the options that save memory."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

from dssn import config
from dssn.errors import UserError
from dssn.tools.arguments import positive_number
from dssn.tools.bench.step import batch_text
from dssn.tools.bench.timing import add_config_options
from dssn.tools.output_files import write_json


def add_arguments(parser):
    """Print peak memory and time of a training step with each option that saves memory.

        python -m dssn bench memory --config configs/pascal.yaml \\
            --set crop_size=321 pretrained=false

    Each line is measured in a separate process, see `bench step`. On a GPU memory is the peak that
    PyTorch allocated. On a CPU it is the peak of resident memory minus that of the program without
    networks, and time is processor time, so that other programs have little effect.

    --computed computes the peak of all tensors that exist at the same time instead, on any machine,
    and in place of the time the floating-point operations of a step. A GPU's other memory (context,
    workspaces, gaps) is not included.
    """
    add_config_options(parser)
    parser.add_argument('--rounds', type=positive_number, default=3,
                        help='number of steps; their median is shown (default: %(default)s)')
    parser.add_argument('--computed', action='store_true',
                        help='compute the memory, for a GPU that is not available')
    parser.add_argument('--ends', action='store_true',
                        help='show only the first line and the last: no option and all options; '
                             'without amp, so that both can be computed too')


def run(args):
    cfg = config.load(args.config, None, args.assignments)
    lines = []
    for keys in choose_lines(args, cfg):
        found = compute(args, keys) if args.computed else measure(args, keys)
        lines.append({'keys': keys, **found})
        print_last_line(cfg, lines)
    write_json(args.json, {'config': config.to_dict(cfg), 'lines': lines})
    return 0


def on_gpu(cfg):
    import torch
    return torch.cuda.is_available() and cfg.device != 'cpu'


def compute(args, keys):
    """The result of `measure`, computed, with operations in place of the time."""
    from dssn.tools.bench.computed_memory import computed_step
    peak, tflop = computed_step(config.load(args.config, None, args.assignments + keys))
    return {'seconds': None, 'step_tflop': tflop, 'step_memory_mib': round(peak, 1),
            'machine': 'computed'}


def option_lines(cfg):
    """Lists of assignments: no option, each option alone, and all options."""
    single = [] if cfg.lock_backbone else ['checkpoint_backbone=true']
    if getattr(cfg, 'feature_views', 0) and cfg.model != 'dpt':
        single.append('lean=true')
    if cfg.most_parts > 1:
        single.append(f'accumulate={cfg.most_parts}')
    if on_gpu(cfg):
        single.append('amp=bf16')
    return [[]] + [[key] for key in single] + [single]


def choose_lines(args, cfg):
    """The `option_lines` to show. Savings of amp cannot be computed."""
    found = option_lines(cfg)
    if args.computed or args.ends:
        found = [[key for key in keys if not key.startswith('amp=')] for keys in found
                 if not (len(keys) == 1 and keys[0].startswith('amp='))]
    return [found[0], found[-1]] if args.ends else found


def measure(args, keys):
    """{seconds: median of a step, step_memory_mib, machine}, measured in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'step.json')
        assignments = args.assignments + keys
        command = [sys.executable, '-m', 'dssn', 'bench', 'step', '--config', args.config,
                   '--rounds', str(args.rounds), '--bare', '--json', path]
        if not on_gpu(config.load(args.config, None, args.assignments)):
            command.append('--processor-time')
        command += ['--set', *assignments] if assignments else []
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True)
        if done.returncode:
            raise UserError(f"{' '.join(keys) or 'plain'}: the process ended with "
                            f'{done.returncode}: {(done.stderr.strip() or "no message")[-500:]}')
        with open(path, encoding='utf-8') as file:
            found = json.load(file)
    return {'seconds': statistics.median(found['seconds']['step']),
            'step_memory_mib': found['step_memory_mib'], 'machine': found['machine']}


def print_last_line(cfg, lines):
    """Print the last line of the table; before the first one its head."""
    first, line = lines[0], lines[-1]
    cost, unit, form = ('step_tflop', 'TFLOP', '.3g') if line['seconds'] is None else \
        ('seconds', 'seconds', '.2f')
    if len(lines) == 1:
        print(f"{line['machine']}\n{cfg.method}, {cfg.backbone}, crop {cfg.crop_size}, "
              f'{cfg.nclass} classes, batch {batch_text(cfg)}\n\n'
              f'| options | peak memory, MiB | of plain | {unit} a step | of plain |\n'
              '|---|---|---|---|---|')
    print(f"| {', '.join(line['keys']) or 'plain'} | {line['step_memory_mib']:.0f} | "
          f"{line['step_memory_mib'] / first['step_memory_mib']:.2f} | {line[cost]:{form}} | "
          f'{line[cost] / first[cost]:.2f} |', flush=True)
