"""Compare runs: one table of all, with mean and standard deviation over the seeds of like ones.

    python -m dssn.report exp/shapes                      every run in a folder, or below it
    python -m dssn.report exp/a exp/b --csv runs.csv --plot curves.png

A run is a folder with config.yaml and metrics.jsonl. Finished runs share a row, and are averaged,
where everything but the seed is alike: data set, id lists (the ids, not the file's name), method,
protocol, rule for absent classes, number of processes, and all config keys that change a number.
Whatever is unlike is a row of its own that says in what, and so is a run that is not finished.

Scores are mIoU on val, in percent: `best` at the epoch that the run selected, for student and
teacher each, and `last` at its last epoch. The table is Markdown. Exit status: 0, or 1 for folders
that cannot be reported, or 2 for a wrong command line.
"""
import argparse
import csv
import json
import sys

from dssn.errors import UserError, exit_status
from dssn.records import ABSENT_TEXT, ROLES
from dssn.runs import LISTS, NOT_RECORDED, SCORED_BY, find_runs, make_rows, scores, unlike


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        prog='python -m dssn.report', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', nargs='+', metavar='FOLDER',
                        help="a run's folder, or one with runs anywhere below it")
    parser.add_argument('--csv', metavar='FILE', help='write the table with all columns: lists by '
                        'SHA-256, epochs, folders, every config key')
    parser.add_argument('--plot', metavar='FILE', help='draw the learning curves, mean and '
                        'standard deviation over the seeds of a row (.png, .pdf, .svg; needs '
                        'matplotlib: pip install matplotlib)')
    return parser.parse_args(argv)


def main(argv=None):
    return exit_status('python -m dssn.report', report, parse_arguments(argv))


def report(args):
    runs, empty = find_runs(args.folders)
    rows = make_rows(runs)
    if rows:
        print(markdown(rows))
    print('\n'.join(f'- {note}' for note in notes(rows, empty)))
    if not rows and (args.csv or args.plot):
        raise UserError('no run has been evaluated yet: there is nothing to write or to draw')
    if args.csv:
        write_csv(args.csv, rows)
    if args.plot:
        from dssn.curves import draw
        draw(args.plot, rows)
    return 0


# The table.

def markdown(rows):
    """The rows as a Markdown table."""
    heads = ['#', 'data set', 'labeled list', 'method', 'differs in', 'runs', 'student best',
             'student last', 'teacher best', 'teacher last']
    table = [heads] + [['---'] * len(heads)] + [cells(row) for row in rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in table) + '\n'


def cells(row):
    run = row.first
    line = [str(row.number), run.dataset, run.lists['labeled'], run.method, differs_text(row),
            runs_text(row)]
    for role in ROLES:
        score = scores(row, role)
        line += ['-', '-'] if score is None else [
            mean_text(score.best, score.best_deviation),
            mean_text(score.last, score.last_deviation)]
    return [cell.replace('|', '\\|') for cell in line]


def differs_text(row):
    return ', '.join(f'{key}={value}' for key, value in row.differs.items())


def runs_text(row):
    """'3 (seeds 0, 1, 2)'."""
    seeds = ', '.join(str(run.seed) for run in row.runs)
    state = '' if row.first.finished else f'; unfinished, {progress(row.first)}'
    return f"{len(row.runs)} (seed{'s' if len(row.runs) > 1 else ''} {seeds}{state})"


def progress(run):
    return f"{run.summary['epoch']} of {run.epochs} epochs"


def mean_text(mean, deviation):
    return f'{mean:.2f}' if deviation is None else f'{mean:.2f} ± {deviation:.2f}'


# What must be known to read it.

def notes(rows, empty):
    """Lines on how to read the rows, and on the runs that are not averaged."""
    lines = [legend(rows)] if rows else []
    lines += unlike_scoring(rows) + unlike_lists(rows)
    for row in rows:
        seeds = [run.seed for run in row.runs]
        if len(set(seeds)) < len(seeds):
            lines.append(f'row {row.number} has a seed more than once: its runs are not '
                         'independent')
        if unlike([run.summary['evaluations'] for run in row.runs]):
            lines.append(f'row {row.number}: its runs were not evaluated equally often; a line of '
                         'their metrics.jsonl was lost, and `best` may be too low')
    unknown = [row.number for row in rows
               if any(NOT_RECORDED in text for text in row.first.lists.values())]
    if unknown:
        lines.append(f'{rows_text(unknown)}: the ids of lists were {NOT_RECORDED}; taken as alike '
                     'where their paths are')
    unfinished = [f'{row.first.folder} ({progress(row.first)})' for row in rows
                  if not row.first.finished]
    if unfinished:
        lines.append(f"unfinished, and averaged with no other: {', '.join(unfinished)}")
    if empty:
        lines.append(f"no evaluation yet: {', '.join(empty)}")
    return lines


def legend(rows):
    rules = sorted({row.first.facts['absent'] for row in rows})
    absent = ' or '.join(ABSENT_TEXT.get(rule, rule) for rule in rules)
    several = any(len(row.runs) > 1 for row in rows)
    deviation = ', mean ± sample standard deviation' if several else ''
    on_val = [row.first.facts['select_on'] == 'val' for row in rows]
    selected = 'on val itself, and so above what to expect on other images' \
        if any(on_val) else 'on another list'
    if any(on_val) and not all(on_val):
        selected += ', but where select_on is another list'
    return (f'mIoU on val in percent{deviation}; absent classes {absent}; `best` is selected '
            f'{selected}')


def unlike_scoring(rows):
    """A line for each data set whose rows were not all scored alike."""
    lines = []
    for dataset in sorted({row.first.dataset for row in rows}):
        peers = [row for row in rows if row.first.dataset == dataset]
        kinds = {}
        for row in peers:
            kind = tuple(row.first.facts[key] for key in SCORED_BY)
            kinds.setdefault(kind, []).append(row.number)
        if len(kinds) > 1:
            keys = [key for key, values in zip(SCORED_BY, zip(*kinds)) if unlike(values)]
            groups = ' / '.join(map(rows_text, kinds.values()))
            lines.append(f"not comparable: {groups} of {dataset} were scored unlike "
                         f"({', '.join(keys)})")
    return lines


def unlike_lists(rows):
    """A line for rows that are alike but for lists and other facts that are no config key."""
    families = {}
    for row in rows:
        run = row.first
        kind = json.dumps([run.dataset, run.method, run.settings], sort_keys=True)
        families.setdefault(kind, []).append(row)
    lines = []
    for family in families.values():
        keys = [key for key in family[0].first.facts
                if unlike([row.first.facts[key] for row in family])]
        if keys:
            lines.append(f'not averaged: {rows_text([row.number for row in family])} have the same '
                         f"method and config, but unlike {', '.join(keys)}")
    return lines


def rows_text(numbers):
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


# The file.

def write_csv(path, rows):
    """Write the rows with all that is known of them; a key that a method lacks is empty."""
    table = [csv_line(row) for row in rows]
    columns = list(dict.fromkeys(column for line in table for column in line))
    try:
        with open(path, 'w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(table)
    except OSError as error:
        raise UserError(f'--csv {path}: cannot be written ({error.strerror})') from None


def csv_line(row):
    run = row.first
    line = {'row': row.number, 'dataset': run.dataset, 'method': run.method}
    for role in LISTS:
        line.update({role: run.lists[role], f'{role}_sha256': run.facts[role]})
    line.update(protocol=run.facts['protocol'], absent=run.facts['absent'],
                processes=run.facts['processes'], differs_in=differs_text(row), runs=len(row.runs),
                seeds=joined(run.seed for run in row.runs), finished=run.finished,
                epochs_done=run.summary['epoch'])
    for role in ROLES:
        score = scores(row, role)
        for name in ('best', 'last'):
            line[f'{role}_{name}_mean'] = score and getattr(score, name)
            line[f'{role}_{name}_deviation'] = score and getattr(score, f'{name}_deviation')
        line[f'{role}_best_epochs'] = score and joined(score.best_epochs)
    line['seconds'] = joined(run.summary['seconds'] for run in row.runs)
    line['folders'] = joined(run.folder for run in row.runs)
    line.update({f'config.{key}': value if isinstance(value, str) else json.dumps(value)
                 for key, value in run.settings.items()})
    return line


def joined(values):
    return '; '.join('' if value is None else str(value) for value in values)


if __name__ == '__main__':
    sys.exit(main())
