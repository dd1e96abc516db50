"""`python -m dssn.experiments page`: the page of results, from the folders of the runs.

Whatever number stands on it is computed from their records, or is a published one out of
experiments/published.yaml, which names its source.
"""
import importlib.util
import os
import re
import shlex
import statistics
import sys

from dssn.data.arguments import positive_number
from dssn.errors import UserError
from dssn.experiments.grid import plan, read
from dssn.experiments.samples import draw_samples
from dssn.experiments.show import command_text
from dssn.experiments.standing import standing
from dssn.records import ROLES
from dssn.report import legend, mean_text
from dssn.runs import Row, mean_and_deviation, read_run, scores
from dssn.yaml_text import read_mapping

PUBLISHED = 'experiments/published.yaml'
HEAD = '''# Results

Every number on this page comes from the records of the runs, or is marked as published. The page is
written by

```sh
{}
```

Scores are mIoU in percent, mean ± sample standard deviation over seeds: `best` at the epoch that the
run selected, for student and teacher each, and `last` at the last epoch.
'''


def add_arguments(parser):
    """Write the page of results: tables, learning curves, pictures of predictions.

    python -m dssn.experiments page experiments/shapes.yaml experiments/camvid.yaml

    Pictures lie beside the page, in the folder of its name. Learning curves are drawn where there
    is matplotlib (pip install matplotlib).
    """
    parser.add_argument('experiments', nargs='+', metavar='FILE',
                        help='experiments, in the order of the page')
    parser.add_argument('--out', default='exp', help='folder above all runs (default: %(default)s)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='as they were given to `run`')
    parser.add_argument('--page', default='docs/results.md', help='file to write (default: '
                        '%(default)s)')
    parser.add_argument('--images', type=positive_number, default=4,
                        help='val images whose predictions are shown (default: %(default)s)')


def run(args):
    pictures = os.path.splitext(args.page)[0]
    try:
        os.makedirs(pictures, exist_ok=True)
        parts = [HEAD.format(written_by(args)),
                 *[section(path, args, pictures) for path in args.experiments]]
        with open(args.page, 'w', encoding='utf-8') as file:
            file.write('\n'.join(parts))
    except OSError as error:
        raise UserError(f'--page {args.page}: cannot be written ({error})') from None
    print(f'{args.page}: {len(args.experiments)} experiments', file=sys.stderr)
    return 0


def written_by(args):
    """The command that writes the page; where data and runs lie is this machine's own."""
    given = [text for text in args.assignments if not text.startswith('data_root=')]
    words = ['python -m dssn.experiments page', *map(shlex.quote, args.experiments)]
    return ' '.join(words + (['--set', *map(shlex.quote, given)] if given else []))


def section(path, args, pictures):
    """An experiment's part of the page, Markdown."""
    experiment = read(path)
    runs = plan(experiment, args.out, args.assignments)
    done = [planned for planned in runs if standing(planned).state == 'done']
    lines = [f'## {experiment.name}', '', experiment.about, '',
             f'```sh\npython -m dssn.experiments run {path}\n```', '']
    if len(done) < len(runs):
        lines += [f'{len(done)} of {len(runs)} runs are done; the others are left out.', '']
    if done:
        groups = grouped(done)
        rows = [row for row, _ in groups]
        lines += [table(groups, experiment.reference), '',
                  f'{legend(rows)}{difference_note(experiment.reference)}.', '',
                  *circumstances(done), '']
        lines += ['IoU of each class, students of the last epoch, mean over seeds:', '',
                  class_table(groups), '']
        if experiment.findings:
            lines += [experiment.findings, '']
        for split in dict.fromkeys(planned.split for planned in done):
            own = [(row, planned) for row, planned in groups if planned.split == split]
            lines += curves(experiment, split, own, pictures)
        lines += samples(experiment, groups, pictures, args.images)
        lines += commands(groups, args.assignments)
    for name in experiment.published:
        lines += published(name)
    return '\n'.join(lines)


def grouped(done):
    """[(a `Row` of the finished runs of a variant on a split, the first of them as planned)]."""
    kinds = {}
    for planned in done:
        kinds.setdefault((planned.split, planned.variant), []).append(planned)
    order = sorted(kinds.items(), key=lambda item: [planned.split for planned in done].index(
        item[0][0]))
    return [(Row(number, [read_run(planned.folder) for planned in group], {}), group[0])
            for number, (_, group) in enumerate(order, 1)]


def table(groups, reference):
    """Best and last scores of student and teacher, gains, and what a run took."""
    heads = ['split', 'variant', 'labeled', 'runs'] + [f'{role} {which}' for role in ROLES
                                                       for which in ('best', 'last')]
    heads += [f'over {reference}'] if reference else []
    heads += ['minutes']
    lines = [heads, ['---'] * len(heads)]
    references = {planned.split: row for row, planned in groups if planned.variant == reference}
    for row, planned in groups:
        lists = row.first.evaluations[-1].get('lists', {})
        line = [planned.split, planned.variant, str(lists.get('labeled', {}).get('lines', '')),
                f"{len(row.runs)} ({', '.join(str(run.seed) for run in row.runs)})"]
        for role in ROLES:
            score = scores(row, role)
            line += ['', ''] if score is None else [
                mean_text(score.best, score.best_deviation),
                mean_text(score.last, score.last_deviation)]
        if reference:
            line.append('' if planned.variant == reference else
                        difference(row, references.get(planned.split)))
        lines.append(line + [minutes([run.summary['seconds'] for run in row.runs])])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def class_table(groups):
    """The IoU of each class at the end of training."""
    names = list(groups[0][0].first.evaluations[-1]['student_iou'])
    lines = [['split', 'variant', *names], ['---'] * (2 + len(names))]
    for row, planned in groups:
        last = [run.evaluations[-1]['student_iou'] for run in row.runs]
        lines.append([planned.split, planned.variant, *[mean_of(last, name) for name in names]])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def mean_of(found, name):
    """A class's mean IoU as text; '-' where an absent class has none."""
    values = [classes[name] for classes in found]
    return '-' if None in values else f'{statistics.fmean(values):.1f}'


def difference(row, reference):
    """What a row's students have at the end over those of another with the same seeds, as text."""
    last = [{run.seed: run.summary['last']['student']['miou'] for run in found.runs}
            for found in (row, reference) if found]
    if len(last) < 2 or not set(last[0]) & set(last[1]):
        return ''
    mean, deviation = mean_and_deviation([last[0][seed] - last[1][seed]
                                          for seed in sorted(set(last[0]) & set(last[1]))])
    return ('+' if mean > 0 else '') + mean_text(mean, deviation)


def difference_note(reference):
    return (f'; `over {reference}`: student last less that of {reference} with the same seed, mean '
            'and deviation of these differences') if reference else ''


def minutes(seconds):
    """'3.1 to 4.0', or one number; '' where a run did not record its time."""
    if None in seconds:
        return ''
    ends = [f'{end(seconds) / 60:.1f}' for end in (min, max)]
    return ends[0] if ends[0] == ends[1] else ' to '.join(ends)


def circumstances(done):
    """Lines on what the runs have in common: steps, machines, processes."""
    ends = [read_run(planned.folder).summary for planned in done]
    steps = sorted({planned.steps for planned in done})
    machines = sorted({end['machine'] or 'not recorded' for end in ends})
    total = sum(end['seconds'] or 0 for end in ends) / 3600
    return [f"- optimizer steps of each run: {', '.join(map(str, steps))}",
            f"- machine: {'; '.join(machines)}",
            f"- processes: {', '.join(sorted({str(planned.processes) for planned in done}))}; "
            f'training and evaluation of all runs: {total:.1f} hours']


def curves(experiment, split, groups, pictures):
    """The learning curves of a split's variants; none without matplotlib."""
    if importlib.util.find_spec('matplotlib') is None:
        print('no matplotlib (pip install matplotlib): the page has no learning curves',
              file=sys.stderr)
        return []
    from dssn.curves import draw
    path = os.path.join(pictures, f'{experiment.name}-{split}.png')
    draw(path, [row for row, _ in groups],
         {row.number: f'{planned.variant}, n = {len(row.runs)}' for row, planned in groups})
    return [picture(f'Learning curves of {experiment.name}, split {split}', path, pictures), '']


def samples(experiment, groups, pictures, count):
    """Predictions of the first split's variants, on some val images."""
    own = [(row, planned) for row, planned in groups if planned.split == groups[0][1].split]
    path = os.path.join(pictures, f'{experiment.name}-predictions.png')
    draw_samples(path, [(planned.variant, planned) for _, planned in own], count)
    first = own[0][1]
    return [picture('Predictions', path, pictures), '',
            f'Val images from the first on, {count} at even distances in their list, not chosen: '
            f'image, truth, and the students of the last epoch, split {first.split}, seed '
            f'{first.seed}.', '']


def picture(text, path, pictures):
    return f'![{text}]({os.path.basename(pictures)}/{os.path.basename(path)})'


def commands(groups, assignments):
    """How each variant was run, for its first seed and split."""
    variants = {}
    for _, planned in groups:
        variants.setdefault(planned.variant, planned)
    # Where data and runs lie is this machine's own, if it was said on the command line.
    given = [text for text in assignments if text.startswith('data_root=')]
    lines = []
    for planned in variants.values():
        own = [re.sub('^init_from=' + re.escape(planned.out), 'init_from=exp', text)
               for text in planned.assignments if not (given and text.startswith('data_root='))]
        lines.append(command_text(planned._replace(out='exp', assignments=own)))
    return ['The runs behind it, the first of each variant:', '', '```sh', *lines, '```', '']


def published(name):
    """A table of published scores, with its source."""
    known = read_mapping(PUBLISHED)
    if name not in known:
        raise UserError(f"{PUBLISHED}: has no '{name}'; it has: {', '.join(known)}")
    entry = known[name]
    heads = [entry['title']] + [str(split) for split in entry['splits']]
    lines = [heads, ['---'] * len(heads)]
    for row, values in entry['rows'].items():
        lines.append([row] + ['' if value is None else str(value) for value in values])
    return ['Published, not made with this code:', '',
            *['| ' + ' | '.join(line) + ' |' for line in lines], '', f"Source: {entry['source']}",
            '']
