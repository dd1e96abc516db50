"""`python -m dssn bench gpu_check`: tests and benchmarks of one GPU in a few minutes."""
import datetime
import json
import os
import re
import shlex
import signal
import sys
import tempfile

import torch

from dssn.atomic import write_atomically
from dssn.distributed import cores_of_a_process
from dssn.errors import UserError
from dssn.tools.arguments import positive_amount
from dssn.tools.bench.budget import LEFT_OUT, PASSED, Budget, Part, failures
from dssn.tools.bench.gpu_page import page_text

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), '..', '..', '..'))
RESERVE = 10  # seconds for the start of Python and for writing the last page
MAX_OUTPUT = 3000  # characters of a failed part's output in results.json, the last ones

# The test functions of tests/test_gpu.py. Each line is a process of its own, so that a test which
# changes global state (CUDA, PyTorch's settings, the memory limit) does not affect the others.
TESTS = [
    ('step', ['a_step_in_double_precision_equals_the_cpus',
              'a_step_in_single_precision_equals_the_cpus',
              'the_losses_in_bf16_are_near_those_in_float32', 'to_the_device',
              'normalise_on_the_device', 'channels_last_makes_the_same_step']),
    ('waiting, fp16', ['no_step_waits_for_the_device',
                       'fp16_leaves_out_a_step_that_overflows_and_trains_on']),
    ('deterministic, NCCL, memory', ['deterministic_runs_are_the_same_bit_for_bit',
                                     'a_step_through_ddp_and_synchronised_bn_is_the_plain_one',
                                     'weights_trained_on_the_device_predict_the_same_on_a_cpu',
                                     'too_little_memory_is_one_error_with_advice']),
    ('compile', ['a_compiled_network_makes_the_same_step']),
]
REASON = re.compile(r'^(?:FAILED|ERROR) tests/test_gpu\.py::(\S+) - (.*)$', re.MULTILINE)
LINE = re.compile(r'^tests/test_gpu\.py::(\S+) (PASSED|FAILED|SKIPPED|ERROR)(?: \((.*)\))?',
                  re.MULTILINE)

PASCAL, CITYSCAPES = 'configs/pascal.yaml', 'configs/cityscapes.yaml'
DINOV2 = 'configs/pascal_dinov2.yaml'  # crop 518
R50, R101, LARGE = 'backbone=resnet50', 'backbone=resnet101', 'batch_size=8'
TF32, HALF, LAST = 'tf32=true', 'amp=bf16', 'channels_last=true'
VIT_S, V2 = ['backbone=dinov2_small', 'batch_size=2'], 'method=unimatch_v2'
# (name, config, keys, seconds needed), most decisive first.
STEPS = [
    ('ResNet-50, 2 + 2, TF32 in convolutions', PASCAL, [R50, 'tf32=auto'], 18),
    ('ResNet-50, 2 + 2, bf16, channels_last', PASCAL, [R50, HALF, LAST], 18),
    ('ResNet-101, 8 + 8, TF32', PASCAL, [R101, LARGE, TF32], 25),
    ('ResNet-101, 8 + 8, bf16, channels_last', PASCAL, [R101, LARGE, HALF, LAST], 25),
    ('DINOv2-S, crop 518, 2 + 2, bf16', DINOV2, [*VIT_S, HALF], 18),
    ('DINOv2-S, crop 518, 2 + 2, UniMatch V2, bf16', DINOV2, [*VIT_S, V2, HALF], 18),
    ('ResNet-50, 2 + 2, float32', PASCAL, [R50, 'tf32=false'], 18),
    ('ResNet-50, 2 + 2, bf16', PASCAL, [R50, HALF], 18),
    ('ResNet-50, 2 + 2, bf16, channels_last, lean', PASCAL, [R50, HALF, LAST, 'lean=true'], 18),
]
COMPILED = ('ResNet-50, 2 + 2, bf16, channels_last, compile', PASCAL,
            [R50, HALF, LAST, 'compile=true'], 70)
OTHERS = [
    ('ResNet-50, 2 + 2, TF32', PASCAL, [R50, TF32], 18),
    ('DINOv2-S, crop 518, 2 + 2, TF32', DINOV2, [*VIT_S, TF32], 18),
    ('ResNet-101, 2 + 2, bf16, channels_last', PASCAL, [R101, HALF, LAST], 20),
    ('ResNet-50, 8 + 8, bf16, channels_last', PASCAL, [R50, LARGE, HALF, LAST], 20),
    ('Cityscapes, crop 801, ResNet-50, 2 + 2, bf16, channels_last', CITYSCAPES, [HALF, LAST], 25),
    ('ResNet-101, 2 + 2, TF32', PASCAL, [R101, TF32], 20),
    ('Cityscapes, crop 801, ResNet-50, 2 + 2, TF32', CITYSCAPES, [TF32], 25),
]
# In a rehearsal these keys replace the backbone, and a batch of 8 becomes one of 4.
SMALL = ['backbone=resnet18', 'base_channels=8', 'decoder_channels=16', 'crop_size=65', 'workers=0']
SMALL_VIT = ['backbone=dinov2_tiny', 'crop_size=70', 'workers=0']
NOT_REHEARSED = [
    'compile=true with inductor: the test uses another backend, the benchmark is left out',
    'the kernels of SyncBatchNorm, and NCCL (gloo is used instead)',
    "waiting for the device under torch.cuda.set_sync_debug_mode('error')",
    'a GPU that is out of memory: an error with the same text is raised instead',
    "fp16's scaler on a GPU (one for the CPU is used instead), and that it does not wait",
]


def add_arguments(parser):
    """Run the tests marked `gpu` and the benchmarks that need a GPU.

        sh scripts/gpu_check.sh [OUT]

    Every part is a process with a time limit. The most decisive parts come first. Parts that do not
    fit into the minutes are left out and named. OUT/results.md contains the tables,
    OUT/results.json all numbers, and OUT/log.txt the output of the parts. All three are written
    again after each part. The exit status is 1 if a part failed or took longer than its limit.
    """
    parser.add_argument('out', nargs='?', default=os.path.join('exp', 'gpu_check'), metavar='OUT',
                        help='folder for the results (default: %(default)s)')
    parser.add_argument('--minutes', type=positive_amount, default=4.0, metavar='N',
                        help='time for all parts together (default: 4)')
    parser.add_argument('--rehearse', action='store_true',
                        help='run everything on a CPU in small sizes; the numbers mean nothing')


def run(args):
    out = make_folder(args.out)
    signal.signal(signal.SIGTERM, interrupt)  # ends the parts like Ctrl-C; the results are written
    with tempfile.TemporaryDirectory() as folder:
        files = CheckFiles(out, args)
        seconds = max(60 * args.minutes - RESERVE, 30 * args.minutes)
        budget = Budget(seconds, folder, ROOT, at_once(args.rehearse), files.write)
        files.write([])
        budget.run([card(folder, args.rehearse)])
        if not failures(budget.outcomes):
            budget.run(parts(folder, args.rehearse))
    print('\n' + files.page)
    failed = failures(budget.outcomes)
    if failed:
        print(f'failed: {"; ".join(failed)}; {os.path.join(out, "log.txt")} has the output',
              file=sys.stderr)
    return 1 if failed else 0


def interrupt(number, frame):
    raise KeyboardInterrupt


def make_folder(out):
    """Create the folder for results if needed; returns it.

    Raises:
        UserError: it cannot be created or written.
    """
    try:
        os.makedirs(out, exist_ok=True)
        write_atomically(os.path.join(out, 'log.txt'), '')
    except OSError as error:
        raise UserError(f'OUT = {out}: cannot be a folder for results ({error.strerror}); name a '
                        'new folder, or one that is writable') from None
    return out


def at_once(rehearse):
    """Number of parts at the same time, of those that are not timed."""
    return min(cores_of_a_process(1), 2 if rehearse else 6)


# The parts.

def card(folder, rehearse):
    """The first part. If it fails, no other part is run."""
    command = bench('card') + ['--cpu'] * rehearse
    return json_part(folder, 'card', command, 5, 90, rehearse, alone=True)


def parts(folder, rehearse):
    """All other parts in their order."""
    found = [tests(folder, name, functions, rehearse) for name, functions in TESTS]
    if not too_old():
        found.append(memory(folder, rehearse, computed=True))
    found.append(loader(folder, rehearse))
    found += [step(folder, rehearse, *line) for line in STEPS[:4]]
    found.append(kth(folder, rehearse))
    found += [step(folder, rehearse, *line) for line in STEPS[4:]]
    found.append(memory(folder, rehearse, computed=False))
    if not rehearse and not too_old():
        found.append(step(folder, rehearse, *COMPILED, limit=200))
    return found + [step(folder, rehearse, *line) for line in OTHERS[:1 if rehearse else None]]


def too_old():
    """Lines for the page on parts that are left out because this PyTorch is too old for them."""
    if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 2):
        return []
    return [f'{name}: needs PyTorch 2.2 or newer, this is {torch.__version__}'
            for name in ('memory, computed', COMPILED[0])]


def bench(command):
    return [sys.executable, '-m', 'dssn', 'bench', command]


def environment(folder, rehearse):
    """Environment variables of all parts. Compiled code is cached in a folder that is writable."""
    found = {'PYTHONUNBUFFERED': '1', 'PYTEST_ADDOPTS': '', 'COLUMNS': '300',
             'TORCHINDUCTOR_CACHE_DIR': os.path.join(folder, 'inductor'),
             'TRITON_CACHE_DIR': os.path.join(folder, 'triton')}
    if rehearse:
        found.update(CUDA_VISIBLE_DEVICES='', DSSN_GPU_REHEARSE='1', OMP_NUM_THREADS='1')
    return found


def tests(folder, name, functions, rehearse):
    command = [sys.executable, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', '-p', 'no:randomly',
               '--color=no', *[f'tests/test_gpu.py::test_{function}' for function in functions]]
    return Part(f'tests: {name}', command, 10, 200 if rehearse else 110, alone=False,
                environment=environment(folder, rehearse), facts={'kind': 'tests'})


def json_part(folder, name, command, needs, limit, rehearse, alone, **facts):
    """A part whose command writes a JSON file; `facts` are for the page."""
    path = os.path.join(folder, re.sub(r'\W+', '_', name) + '.json')
    return Part(name, command + ['--json', path], needs, limit, alone and not rehearse, path,
                environment(folder, rehearse), {'kind': 'bench', **facts})


def step(folder, rehearse, name, config, keys, needs, limit=None):
    """One `bench step`; in a rehearsal with a small network and one round."""
    keys = ['pretrained=false', *keys]
    if rehearse:
        keys = [key.replace(LARGE, 'batch_size=4') for key in keys
                if not key.startswith('backbone=')] + (SMALL_VIT if config == DINOV2 else SMALL)
    command = bench('step') + ['--config', config, '--no-parts', '--rounds',
                               '1' if rehearse else '8', '--set', *keys]
    return json_part(folder, name, command, 5 if rehearse else needs, limit or 90, rehearse,
                       True, kind='step')


def kth(folder, rehearse):
    small = ['--values', '8450', '--k', '700', '1400', '--rounds', '3'] if rehearse else []
    return json_part(folder, "OHEM's k-th smallest", bench('kth') + small, 5 if rehearse else 12,
                       60, rehearse, True, kind='kth')


def memory(folder, rehearse, computed):
    """`bench memory` without options and with all of them, measured or computed."""
    keys = ['pretrained=false', R50] if not rehearse else ['pretrained=false'] + SMALL
    command = bench('memory') + ['--config', PASCAL, '--ends', '--rounds', '1',
                                 *['--computed'] * computed, '--set', *keys, 'tf32=false']
    name = f'memory, {"computed" if computed else "measured"}'
    return json_part(folder, name, command, 5 if rehearse else 30, 90, rehearse, not computed,
                       kind='memory')


def loader(folder, rehearse):
    """`bench loader` on one core, in processor time, so that other parts may run beside it."""
    few = ['--samples', '2', '--rounds', '1'] if rehearse else ['--samples', '12', '--rounds', '3']
    command = bench('loader') + ['--config', PASCAL, '--size', '500', '375', *few, '--set',
                                 'pretrained=false']
    return json_part(folder, 'loader, Pascal, one core', command, 5 if rehearse else 20, 60,
                       rehearse, False, kind='loader')


# The results.

class CheckFiles:
    """The files in OUT. They are written again after each part.

    Args:
        out: the folder. args: of the command.
    """

    def __init__(self, out, args):
        self.out, self.page = out, ''
        self.head = {'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
                     'rehearsed': args.rehearse, 'minutes': args.minutes,
                     'command': f'sh scripts/gpu_check.sh --minutes {args.minutes:g}'
                                + ' --rehearse' * args.rehearse,
                     'not_rehearsed': NOT_REHEARSED if args.rehearse else [],
                     'too_old': too_old()}
        planned = [card('', args.rehearse)] + parts('', args.rehearse)
        self.planned = [part.name for part in planned]

    def write(self, outcomes):
        content = {**self.head, 'parts': [part_entry(outcome) for outcome in outcomes]}
        ended = {part['name'] for part in content['parts']}
        content['to_come'] = [name for name in self.planned if name not in ended]
        self.page = page_text(content)
        write_atomically(os.path.join(self.out, 'results.json'), json.dumps(content, indent=1))
        write_atomically(os.path.join(self.out, 'results.md'), self.page)
        write_atomically(os.path.join(self.out, 'log.txt'), '\n'.join(map(log_entry, outcomes)))
        if outcomes:
            last = content['parts'][-1]
            print(f"{last['name']}: {last['outcome']}, {last['seconds']:.0f} s"
                  + (f" ({last['reason']})" if last['reason'] else ''), flush=True)


def part_entry(outcome):
    """A `PartOutcome` as a plain mapping, for results.json and the page."""
    part = outcome.part
    found = {'name': part.name, 'kind': part.facts['kind'], 'outcome': outcome.outcome,
             'seconds': round(outcome.seconds, 1), 'reason': outcome.reason,
             'command': part_command_text(part), 'found': outcome.found}
    if part.facts['kind'] == 'tests' and outcome.outcome != LEFT_OUT:
        reasons = dict(REASON.findall(outcome.output))
        found['tests'] = [{'name': name, 'outcome': word.lower(),
                           'reason': reason or reasons.get(name, '')}
                          for name, word, reason in LINE.findall(outcome.output)]
    if outcome.outcome not in (PASSED, LEFT_OUT):
        found['output'] = outcome.output[-MAX_OUTPUT:]
    return found


def part_command_text(part):
    """The command of a part as a user would type it, in the root of the repository."""
    words = ['python', *part.command[1:]]
    if '--json' in words:
        at = words.index('--json')
        words = words[:at] + words[at + 2:]
    return shlex.join(words)


def log_entry(outcome):
    return (f'==== {outcome.part.name}: {outcome.outcome} {outcome.reason}\n'
            f'$ {part_command_text(outcome.part)}\n{outcome.output}')
