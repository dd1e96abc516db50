"""`python -m dssn experiments page`: writes the page of results from the records of the runs.

Every number on the page is computed from these records, or comes from experiments/published.yaml,
which names its source.
"""
import importlib.util
import os
import re
import shlex
import statistics
import sys

from dssn.errors import UserError
from dssn.run.metrics import ROLES
from dssn.tools.arguments import positive_number
from dssn.tools.experiments import previous_page
from dssn.tools.experiments.grid import add_grid_options, plan_runs, read_experiment
from dssn.tools.experiments.list_runs import command_text
from dssn.tools.experiments.predictions import render_predictions
from dssn.tools.experiments.progress import FINISHED, progress_of
from dssn.tools.report import few_classes_notes, legend, markdown_table, mean_text
from dssn.tools.run_folders import Row, mean_and_deviation, read_run, row_scores
from dssn.yaml_text import read_mapping

PUBLISHED = 'experiments/published.yaml'
HEAD = """# Results

Every number on this page comes from the records of the runs, or is marked as published. The page is
written by

```sh
{}
```

Scores are mIoU in percent, mean ± sample standard deviation over seeds. `best` is the score at the
selected epoch, for student and teacher separately. `last` is the score at the last epoch.
"""


def add_arguments(parser):
    """Write the page of results: tables, learning curves, images of predictions.

        python -m dssn experiments page experiments/shapes.yaml experiments/camvid.yaml

    Images are written into a folder beside the page, with the name of the page. Learning curves
    need matplotlib (pip install matplotlib). Predictions need the weights in the folders of the
    runs. For the rest the records are enough, also kept ones (see `keep`).

    No result on the page is lost silently. If all runs of an experiment are missing, its section is
    not changed. If only some are missing, or if the page has a section of an experiment that is not
    named, nothing is written and the missing runs or sections are reported.
    """
    parser.add_argument('experiments', nargs='+', metavar='FILE',
                        help='experiments, in the order of the page')
    add_grid_options(parser)
    parser.add_argument('--page', default='docs/results.md', help='file to write (default: '
                        '%(default)s)')
    parser.add_argument('--images', type=positive_number, default=4,
                        help='val images whose predictions are shown (default: %(default)s)')


def run(args):
    pictures = os.path.splitext(args.page)[0]
    try:
        os.makedirs(pictures, exist_ok=True)
        before = previous_page.read_sections(args.page)
        names = [read_experiment(path).name for path in args.experiments]
        previous_page.refuse_to_drop(before, names, args.page)
        parts = [HEAD.format(page_command(args)),
                 *[experiment_section(path, args, pictures, before) for path in args.experiments]]
        with open(args.page, 'w', encoding='utf-8') as file:
            file.write('\n'.join(parts))
    except OSError as error:
        raise UserError(f'--page {args.page}: cannot be written ({error})') from None
    print(f'{args.page}: {len(args.experiments)} experiments', file=sys.stderr)
    return 0


def page_command(args):
    """The command that writes the page, without paths of this machine."""
    given = [text for text in args.assignments if not text.startswith('data_root=')]
    words = ['python -m dssn experiments page', *map(shlex.quote, args.experiments)]
    return ' '.join(words + (['--set', *map(shlex.quote, given)] if given else []))


def experiment_section(path, args, pictures, before):
    """The section of an experiment, Markdown.

    Args:
        path: the experiment's file. args: of the command. pictures: folder of the images.
        before: {experiment's name: its section} of the existing page.
    """
    experiment = read_experiment(path)
    known = before.get(experiment.name, '')
    try:
        runs = plan_runs(experiment, args.out, args.assignments, args.kept)
    except UserError as error:
        if not known or not lists_are_missing(experiment):
            raise
        print(f'{experiment.name}: its section is not changed: {error}', file=sys.stderr)
        return previous_page.unchanged_section(known)
    done = [planned for planned in runs if progress_of(planned).state in FINISHED]
    if previous_page.runs_of(known) and not done:
        print(f'{experiment.name}: no finished run is in {args.out} or kept; its section is not '
              'changed', file=sys.stderr)
        return previous_page.unchanged_section(known)
    previous_page.refuse_to_lose(known, [(planned.split, planned.variant, planned.seed)
                                         for planned in done], experiment.name, args.page)
    lines = [f'## {experiment.name}', '', experiment.about, '',
             f'```sh\npython -m dssn experiments run {path}\n```', '']
    if len(done) < len(runs):
        lines += [f'{len(done)} of {len(runs)} runs are done; the others are left out.', '']
    if done:
        groups = group_runs(done)
        rows = [row for row, _ in groups]
        lines += [score_table(groups, experiment.reference), '',
                  f'{legend(rows)}{gain_note(experiment.reference)}.', '',
                  *common_facts(done), '']
        lines += [line + '\n' for line in few_classes_notes(rows)]
        lines += ['IoU of each class, student at the last epoch, mean over seeds:', '',
                  class_table(groups), '']
        if experiment.findings:
            lines += [experiment.findings, '']
        for split in dict.fromkeys(planned.split for planned in done):
            own = [(row, planned) for row, planned in groups if planned.split == split]
            lines += curve_lines(experiment, split, own, pictures)
        lines += prediction_lines(experiment, groups, pictures, args.images, known)
        lines += command_lines(groups, args.assignments)
    for name in experiment.published:
        lines += published_table(name)
    return '\n'.join(lines)


def lists_are_missing(experiment):
    """Whether no split of an experiment exists, so that none of its runs can exist either."""
    dataset = read_mapping(experiment.config).get('dataset')
    return not any(os.path.exists(f'splits/{dataset}/{split}') for split in experiment.splits)


def group_runs(done):
    """[(`Row`, PlannedRun)]: the finished runs of each variant and split, and the first of them."""
    kinds = {}
    for planned in done:
        kinds.setdefault((planned.split, planned.variant), []).append(planned)
    order = sorted(kinds.items(), key=lambda item: [planned.split for planned in done].index(
        item[0][0]))
    return [(Row(number, [read_run(progress_of(planned).folder) for planned in group], {}),
             group[0])
            for number, (_, group) in enumerate(order, 1)]


def score_table(groups, reference):
    """Best and last scores of student and teacher, gains, and minutes of a run."""
    heads = ['split', 'variant', 'labeled', 'runs'] + [f'{role} {which}' for role in ROLES
                                                       for which in ('best', 'last')]
    heads += [f'over {reference}'] if reference else []
    heads += ['minutes']
    lines = []
    references = {planned.split: row for row, planned in groups if planned.variant == reference}
    for row, planned in groups:
        lists = row.first.evaluations[-1].get('lists', {})
        line = [planned.split, planned.variant, str(lists.get('labeled', {}).get('lines', '')),
                f"{len(row.runs)} ({', '.join(str(run.seed) for run in row.runs)})"]
        for role in ROLES:
            score = row_scores(row, role)
            line += ['', ''] if score is None else [
                mean_text(score.best, score.best_deviation),
                mean_text(score.last, score.last_deviation)]
        if reference:
            line.append('' if planned.variant == reference else
                        gain_text(row, references.get(planned.split)))
        lines.append(line + [minutes([run.summary['seconds'] for run in row.runs])])
    return markdown_table(heads, lines)


def class_table(groups):
    """The IoU of each class at the end of training."""
    names = list(groups[0][0].first.evaluations[-1]['student_iou'])
    lines = []
    for row, planned in groups:
        last = [run.evaluations[-1]['student_iou'] for run in row.runs]
        lines.append([planned.split, planned.variant,
                      *[mean_iou_text(last, name) for name in names]])
    return markdown_table(['split', 'variant', *names], lines)


def mean_iou_text(found, name):
    """The mean IoU of a class as text; '-' if the class is absent in a run."""
    values = [classes[name] for classes in found]
    return '-' if None in values else f'{statistics.fmean(values):.1f}'


def gain_text(row, reference):
    """Student last minus that of the reference with the same seed: mean and deviation, as text.

    '' if the reference is missing or has no seed of the row.
    """
    last = [{run.seed: run.summary['last']['student']['miou'] for run in found.runs}
            for found in (row, reference) if found]
    if len(last) < 2 or not set(last[0]) & set(last[1]):
        return ''
    mean, deviation = mean_and_deviation([last[0][seed] - last[1][seed]
                                          for seed in sorted(set(last[0]) & set(last[1]))])
    return ('+' if mean > 0 else '') + mean_text(mean, deviation)


def gain_note(reference):
    return (f'; `over {reference}`: student last minus that of {reference} with the same seed, '
            'mean and deviation of these differences') if reference else ''


def minutes(seconds):
    """'3.1 to 4.0', or one number; '' if a run did not record its time."""
    if None in seconds:
        return ''
    ends = [f'{end(seconds) / 60:.1f}' for end in (min, max)]
    return ends[0] if ends[0] == ends[1] else ' to '.join(ends)


def common_facts(done):
    """Lines on the runs together: steps, machines, processes, hours."""
    ends = [read_run(progress_of(planned).folder).summary for planned in done]
    steps = sorted({planned.steps for planned in done})
    machines = sorted({end['machine'] or 'not recorded' for end in ends})
    total = sum(end['seconds'] or 0 for end in ends) / 3600
    return [f"- optimizer steps of each run: {', '.join(map(str, steps))}",
            f"- machine: {'; '.join(machines)}",
            f"- processes: {', '.join(sorted({str(planned.processes) for planned in done}))}; "
            f'training and evaluation of all runs: {total:.1f} hours']


def curve_lines(experiment, split, groups, pictures):
    """Plot the learning curves of a split; returns their lines, none without matplotlib."""
    if importlib.util.find_spec('matplotlib') is None:
        print('no matplotlib (pip install matplotlib): the page has no learning curves',
              file=sys.stderr)
        return []
    from dssn.tools.curves import plot_curves
    path = os.path.join(pictures, f'{experiment.name}-{split}.png')
    plot_curves(path, [row for row, _ in groups],
                {row.number: f'{planned.variant}, n = {len(row.runs)}' for row, planned in groups},
                over_crops=True)
    return [image_link(f'Learning curves of {experiment.name}, split {split}', path, pictures), '']


def prediction_lines(experiment, groups, pictures, count, known):
    """Render predictions of the first split's variants on `count` val images; returns their lines.

    Without weights the image and its lines in `known`, the existing section, are not changed.
    """
    own = [(row, planned) for row, planned in groups if planned.split == groups[0][1].split]
    path = os.path.join(pictures, f'{experiment.name}-predictions.png')
    shown = [planned for _, planned in own
             if os.path.exists(os.path.join(planned.folder, 'latest.pth'))]
    link = image_link('Predictions', path, pictures)
    if not shown:
        return previous_page.old_prediction_lines(known, link, path) or [
            'There is no image of predictions: it needs the weights of the runs, but only their '
            'records were kept.', '']
    render_predictions(path, [(planned.variant, planned) for planned in shown], count)
    first, missing = shown[0], [planned.variant for _, planned in own if planned not in shown]
    note = f" Not shown, since their weights were not kept: {', '.join(missing)}." \
        if missing else ''
    return [link, '',
            f'{count} val images at even distances in their list, from the first on, not '
            'hand-picked: image, ground truth, and predictions of the students at the last epoch, '
            f'split {first.split}, seed {first.seed}.{note}', '']


def image_link(text, path, pictures):
    return f'![{text}]({os.path.basename(pictures)}/{os.path.basename(path)})'


def command_lines(groups, assignments):
    """The commands of the first run of each variant, without paths of this machine."""
    variants = {}
    for _, planned in groups:
        variants.setdefault(planned.variant, planned)
    # A data_root on the command line, and --out, are paths of this machine.
    hide_root = any(text.startswith('data_root=') for text in assignments)
    lines = []
    for planned in variants.values():
        own = [re.sub('^init_from=' + re.escape(planned.out), 'init_from=exp', text)
               for text in planned.assignments if not (hide_root and text.startswith('data_root='))]
        lines.append(command_text(planned._replace(out='exp', assignments=own)))
    return ['Commands of the runs, the first of each variant:', '', '```sh', *lines, '```', '']


def published_table(name):
    """The lines of a table of published scores and its source.

    Raises:
        UserError: experiments/published.yaml has no table with this name.
    """
    known = read_mapping(PUBLISHED)
    if name not in known:
        raise UserError(f"{PUBLISHED}: has no '{name}'; it has: {', '.join(known)}")
    entry = known[name]
    heads = [entry['title']] + [str(split) for split in entry['splits']]
    lines = [[row] + ['' if value is None else str(value) for value in values]
             for row, values in entry['rows'].items()]
    return ['Published, not made with this code:', '', markdown_table(heads, lines), '',
            f"Source: {entry['source']}", '']
