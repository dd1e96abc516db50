"""Makes the Markdown page of `bench gpu_check` from the content of its results.json."""
import statistics
from collections import Counter

from dssn.tools.report import markdown_table

MAX_OVER_FLOOR = 1.10  # goal: maximum of the time of a step over that of its floor
MAX_RATIO = 0.45       # goal: maximum of the time of the first step over that of the second
RATIO_OF = 'ResNet-101, 8 + 8, bf16, channels_last', 'ResNet-101, 8 + 8, TF32'
REHEARSAL_NOTE = '**rehearsed on a CPU: no number of this table is from a GPU**'


def page_text(content):
    """The page. Parts that have not run yet are named."""
    sections = [head_section(content), tests_section(content), steps_section(content),
                goals_section(content), kth_section(content), memory_section(content),
                parts_section(content)]
    return '\n\n'.join(filter(None, sections)) + '\n'


def parts_of_kind(content, kind):
    """The parts of a kind that have a result."""
    return [part for part in content['parts'] if part['kind'] == kind and part['found']]


def result_table(content, heads, rows):
    """A Markdown table; in a rehearsal with a note that its numbers mean nothing."""
    table = markdown_table(heads, [[str(cell).replace('|', '\\|') for cell in row]
                                   for row in rows])
    return f'{REHEARSAL_NOTE}\n\n{table}' if content['rehearsed'] else table


def head_section(content):
    found = next((part['found'] for part in content['parts'] if part['name'] == 'card'), None) or {}
    lines = ['# GPU check', '', f"{content['date']}; `{content['command']}`", '',
             found.get('machine', 'the machine is unknown')]
    if 'gpu' in found:
        lines += ['', f"{found['gpus']} GPU, the first one used: {found['gpu']}, "
                      f"{found['memory_mib']} MiB, compute capability {found['capability']}; "
                      f"PyTorch {found['torch']}, CUDA {found['cuda']}, cuDNN {found['cudnn']}; "
                      f"{found['cores']} cores"]
    if content['rehearsed']:
        lines += ['', REHEARSAL_NOTE, '', 'Not rehearsed:', '']
        lines += [f'- {line}' for line in content['not_rehearsed']]
    if content['too_old']:
        lines += ['', 'Left out:', ''] + [f'- {line}' for line in content['too_old']]
    return '\n'.join(lines)


def tests_section(content):
    """Counts of tests, and the names of the tests that did not pass."""
    found = [part for part in content['parts'] if part['kind'] == 'tests' and 'tests' in part]
    if not found:
        return ''
    rows, names = [], []
    for part in found:
        count = Counter(test['outcome'] for test in part['tests'])
        rows.append([part['name'][len('tests: '):], part['outcome'], count['passed'],
                     count['failed'] + count['error'], count['skipped']])
        names += [f"- {test['outcome']}: `{test['name']}` {test['reason']}".rstrip()
                  for test in part['tests'] if test['outcome'] != 'passed']
    heads = ['tests', 'part', 'passed', 'failed', 'skipped']
    return '\n'.join(['## Tests', '', result_table(content, heads, rows), '', *names]).rstrip()


def seconds_of(part):
    """Median seconds of a step of a part."""
    return statistics.median(part['found']['seconds']['step'])


def steps_section(content):
    """Each `bench step`: time, memory, and the images that it needs."""
    rows, loaded = [], samples_per_second(content)
    for part in parts_of_kind(content, 'step'):
        found, seconds = part['found'], seconds_of(part)
        labeled, unlabeled = images_of(found['config'])
        # A method without the key pastes from its own batch, too.
        partners = found['config'].get('cutmix_partner', 'batch') != 'batch'
        rates = [f'{count / seconds:.1f}' for count in dict.fromkeys([labeled, unlabeled]) if count]
        pascal = loaded and partners and found['config']['dataset'] == 'pascal'
        rows.append([part['name'], f'{seconds:.4f}', f"{found['step_over_floor']:.3f}",
                     f"{found['step_memory_mib']:.0f}",
                     f"{found.get('reserved_memory_mib', 0):.0f}", ' and '.join(rates),
                     f'{(labeled + (1 + partners) * unlabeled) / seconds:.1f}',
                     f'{max(labeled, unlabeled) / seconds / loaded:.1f}' if pascal else ''])
    if not rows:
        return ''
    text = ('Seconds are medians. Memory is the peak of all tensors in a step, and the peak that '
            'PyTorch reserved for them. Images a second are labeled and unlabeled ones, one number '
            'if they are equal. The loaders must also load a partner for each unlabeled image, '
            'unless CutMix pastes from the same batch. The last column is the number of cores of '
            'this machine that load them, by the benchmark of the loader.')
    names = ['step', 'seconds', 'over floor', 'peak, MiB', 'reserved, MiB',
             'labeled and unlabeled images a second', 'images a second to load',
             'cores to load them']
    return '\n\n'.join(['## A training step', text, result_table(content, names, rows)])


def images_of(cfg):
    """(labeled, unlabeled) images of a step per process, from a config as a mapping."""
    return (cfg['labeled_batch_size'] or cfg['batch_size'],
            0 if cfg['method'] == 'supervised' else cfg['batch_size'])


def samples_per_second(content):
    """Samples (labeled, unlabeled and partner) that one core loads a second; None if unknown."""
    for part in parts_of_kind(content, 'loader'):
        found = part['found']
        return found['samples'] / statistics.median(found['seconds']['ours'])
    return None


def goals_section(content):
    """The goals, and whether they are met; a rehearsal cannot meet goals."""
    by_name = {part['name']: part for part in parts_of_kind(content, 'step')}
    rows = []
    if by_name:
        worst = max(by_name.values(), key=lambda part: part['found']['step_over_floor'])
        value = worst['found']['step_over_floor']
        rows.append([f"step over floor, the largest ({worst['name']})", f'{value:.3f}',
                     f'{MAX_OVER_FLOOR:.2f}', value <= MAX_OVER_FLOOR])
    if set(RATIO_OF) <= set(by_name):
        value = seconds_of(by_name[RATIO_OF[0]]) / seconds_of(by_name[RATIO_OF[1]])
        rows.append([f'{RATIO_OF[0]} over {RATIO_OF[1]}', f'{value:.3f}', f'{MAX_RATIO:.2f}',
                     value <= MAX_RATIO])
    if not rows:
        return ''
    met = {True: 'met', False: 'not met'}
    rows = [[*row[:3], 'rehearsed' if content['rehearsed'] else met[row[3]]] for row in rows]
    names = ['goal', 'measured', 'at most', '']
    return '\n\n'.join(['## Goals', result_table(content, names, rows)])


def kth_section(content):
    """Milliseconds of the ways to find the k-th smallest value."""
    blocks = []
    for part in parts_of_kind(content, 'kth'):
        lines = part['found']['lines']
        ways = list(lines[0]['seconds'])
        rows = [[line['k'], *[f"{1e3 * line['seconds'][way]:.3f}" for way in ways],
                 line['fastest']] for line in lines]
        blocks.append('\n\n'.join([
            f"## OHEM's k-th smallest of {part['found']['values']} values",
            result_table(content, ['k', *[f'{way}, ms' for way in ways], 'fastest'], rows)]))
    return '\n\n'.join(blocks)


def memory_section(content):
    """Measured and computed memory."""
    found = {part['name'].split(', ')[1]: part['found']
             for part in parts_of_kind(content, 'memory')}
    if not found:
        return ''
    lines = {}
    for how, result in found.items():
        for line in result['lines']:
            lines.setdefault(', '.join(line['keys']) or 'plain', {})[how] = line['step_memory_mib']
    rows = [[keys, *[f'{known[how]:.0f}' if how in known else '' for how in
                     ('measured', 'computed')],
             f"{known['measured'] / known['computed']:.2f}" if len(known) == 2 else '']
            for keys, known in lines.items()]
    cfg = next(iter(found.values()))['config']
    labeled, unlabeled = images_of(cfg)
    title = (f"## Memory: {cfg['backbone']}, crop {cfg['crop_size']}, batch {labeled} and "
             f'{unlabeled}, float32')
    heads = ['options', 'measured, MiB', 'computed, MiB', 'measured over computed']
    return '\n\n'.join([title, result_table(content, heads, rows)])


def parts_section(content):
    """Every part: its outcome and its command."""
    rows = [[part['name'], part['outcome'] + (f": {part['reason']}" if part['reason'] else ''),
             part['seconds'], f"`{part['command']}`"] for part in content['parts']]
    rows += [[name, 'not run', '', ''] for name in content['to_come']]
    names = ['part', 'outcome', 'seconds', 'command']
    return '\n\n'.join(['## Parts', result_table(content, names, rows)])
