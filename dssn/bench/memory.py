"""`python -m dssn.bench memory`: what the options that save memory save, and what they cost."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

from dssn import config
from dssn.bench.timing import write_json
from dssn.data.arguments import positive_number
from dssn.errors import UserError


def add_arguments(parser):
    """Print peak memory and time of a training step with each option that saves memory.

    python -m dssn.bench memory --config configs/pascal.yaml --set crop_size=321 pretrained=false

    Each line is a process of its own, see `bench step`. On a GPU memory is what PyTorch allocated
    at most; on a CPU what was resident at most, less what the program takes without networks, and
    time is the processor's, so that other programs on the machine count little. --computed adds up
    the tensors that live at the same time instead, on any machine and with no time; what a GPU
    holds beside tensors (context, workspaces, gaps) is not in it.
    """
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--rounds', type=positive_number, default=3,
                        help='steps of which the median is shown (default: %(default)s)')
    parser.add_argument('--computed', action='store_true',
                        help='compute the memory, for a card that is not at hand')
    parser.add_argument('--json', metavar='FILE', help='write the result for programs')


def run(args):
    cfg = config.load(args.config, None, args.assignments)
    lines = []
    for keys in options(cfg):
        found = computed(args, keys) if args.computed else measure(args, keys)
        lines.append({'keys': keys, **found})
        show(cfg, lines)
    write_json(args.json, {'config': config.to_dict(cfg), 'lines': lines})
    return 0


def on_gpu(cfg):
    import torch
    return torch.cuda.is_available() and cfg.device != 'cpu'


def computed(args, keys):
    """What `measure` finds, by arithmetic and with no time."""
    from dssn.bench.computed import computed_peak
    peak = computed_peak(config.load(args.config, None, args.assignments + keys))
    return {'seconds': None, 'step_memory_mib': round(peak, 1), 'machine': 'computed'}


def options(cfg):
    """Lists of assignments: none, each option alone, and all together."""
    single = ['checkpoint_backbone=true']
    if getattr(cfg, 'feature_views', 0):
        single.append('lean=true')
    if cfg.batch_size > 1:
        single.append(f'accumulate={cfg.batch_size}')
    if on_gpu(cfg):
        single.append('amp=bf16')
    return [[]] + [[key] for key in single] + [single]


def measure(args, keys):
    """{seconds: median of a step, step_memory_mib, machine} of a process with these keys."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'step.json')
        assignments = args.assignments + keys
        command = [sys.executable, '-m', 'dssn.bench', 'step', '--config', args.config,
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


def show(cfg, lines):
    """Print the last line, with a head before the first."""
    first, line = lines[0], lines[-1]
    timed = line['seconds'] is not None
    if len(lines) == 1:
        print(f"{line['machine']}\n{cfg.method}, {cfg.backbone}, crop {cfg.crop_size}, "
              f'{cfg.nclass} classes, batch {cfg.batch_size} and {cfg.batch_size}\n\n'
              '| options | peak memory, MiB | of plain |'
              + (' seconds a step | of plain |' if timed else '')
              + '\n|---|---|---|' + ('---|---|' if timed else ''))
    time = f" {line['seconds']:.2f} | {line['seconds'] / first['seconds']:.2f} |" if timed else ''
    print(f"| {', '.join(line['keys']) or 'plain'} | {line['step_memory_mib']:.0f} | "
          f"{line['step_memory_mib'] / first['step_memory_mib']:.2f} |{time}", flush=True)
