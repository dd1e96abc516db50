"""`python -m dssn report`: compare runs in one table."""
import csv
import json

from dssn.errors import UserError
from dssn.run.metrics import ABSENT_TEXT, ROLES, anew_text, few_classes_lines
from dssn.tools.run_folders import (
    LISTS,
    NOT_RECORDED,
    SCORED_BY,
    differ,
    find_runs,
    make_rows,
    row_scores,
)


def add_arguments(parser):
    """Compare runs in one table, with mean and standard deviation over seeds.

        python -m dssn report exp/shapes                      every run in this folder or below it
        python -m dssn report exp/a exp/b --csv runs.csv --plot curves.png

    A run is a folder with config.yaml and metrics.jsonl. Finished runs that differ in nothing but
    the seed share a row and are averaged. They have the same data set, id lists (the ids, not the
    file name), method, protocol, rule for absent classes and number of processes, and the same
    values of all config keys that affect the result. Other runs have rows of their own, and the
    column `differs in` names the differences. An unfinished run has a row of its own.

    Scores are mIoU on val in percent. `best` is the score at the selected epoch, for student and
    teacher separately. `last` is the score at the last epoch. The table is Markdown. Exit status:
    0; 1 if a folder cannot be reported; 2 for a wrong command line.
    """
    parser.add_argument('folders', nargs='+', metavar='FOLDER',
                        help='the folder of a run, or a folder with runs anywhere below it')
    parser.add_argument('--csv', metavar='FILE', help='write the table with all columns: SHA-256 '
                        'of the lists, epochs, folders, every config key')
    parser.add_argument('--plot', metavar='FILE', help='plot the learning curves: mean and '
                        'standard deviation over the seeds of each row (.png, .pdf, .svg; needs '
                        'matplotlib: pip install matplotlib)')


def run(args):
    runs, empty = find_runs(args.folders)
    rows = make_rows(runs)
    if rows:
        print(runs_table(rows))
    print('\n'.join(f'- {note}' for note in notes(rows, empty)))
    if not rows and (args.csv or args.plot):
        raise UserError('no run has been evaluated yet: there is nothing to write or to plot')
    if args.csv:
        write_csv(args.csv, rows)
    if args.plot:
        from dssn.tools.curves import plot_curves
        plot_curves(args.plot, rows)
    return 0


# The table.

def runs_table(rows):
    """The `Row`s as a Markdown table."""
    heads = ['#', 'data set', 'labeled list', 'method', 'differs in', 'runs', 'student best',
             'student last', 'teacher best', 'teacher last']
    return markdown_table(heads, [row_cells(row) for row in rows]) + '\n'


def markdown_table(heads, rows):
    """A Markdown table of texts, without a line end after the last row."""
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def row_cells(row):
    run = row.first
    line = [str(row.number), run.dataset, run.lists['labeled'], run.method, differs_text(row),
            runs_text(row)]
    for role in ROLES:
        score = row_scores(row, role)
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


# Notes below the table.

def notes(rows, empty):
    """Lines on how to read the rows, and on runs that are not averaged.

    Args:
        rows: `Row`s. empty: folders of runs without an evaluation.
    """
    lines = [legend(rows)] if rows else []
    lines += few_classes_notes(rows) + different_scoring(rows) + different_lists(rows)
    for row in rows:
        seeds = [run.seed for run in row.runs]
        if len(set(seeds)) < len(seeds):
            lines.append(f'row {row.number} has a seed more than once: its runs are not '
                         'independent')
        if differ([run.summary['evaluations'] for run in row.runs]):
            lines.append(f'row {row.number}: its runs have different numbers of evaluations; a '
                         'line of their metrics.jsonl was lost, or a run was resumed with other '
                         'evaluations; `best` may be too low')
    lines += [f"{run.folder}: {anew_text(run.summary['anew'])}"
              for row in rows for run in row.runs if 'anew' in run.summary]
    unknown = [row.number for row in rows
               if any(NOT_RECORDED in text for text in row.first.lists.values())]
    if unknown:
        lines.append(f'{rows_text(unknown)}: the ids of lists were {NOT_RECORDED}; lists with the '
                     'same path are taken as the same')
    unfinished = [f'{row.first.folder} ({progress(row.first)})' for row in rows
                  if not row.first.finished]
    if unfinished:
        lines.append(f"unfinished, not averaged: {', '.join(unfinished)}")
    if empty:
        lines.append(f"no evaluation yet: {', '.join(empty)}")
    return lines


def legend(rows):
    """What the scores of the rows are, a line."""
    rules = sorted({row.first.facts['absent'] for row in rows})
    absent = ' or '.join(ABSENT_TEXT.get(rule, rule) for rule in rules)
    several = any(len(row.runs) > 1 for row in rows)
    deviation = ', mean ± sample standard deviation' if several else ''
    on_val = [row.first.facts['select_on'] == 'val' for row in rows]
    selected = 'on val itself, so it is biased upwards' if any(on_val) else 'on another list'
    if any(on_val) and not all(on_val):
        selected += ', except where select_on is another list'
    return (f'mIoU on val in percent{deviation}; absent classes {absent}; `best` is selected '
            f'{selected}')


def few_classes_notes(rows):
    """A line for each row and network whose mIoU is not a mean over classes."""
    return list(dict.fromkeys(f'row {row.number}: {text}' for row in rows for run in row.runs
                              for text in few_classes_lines(run.summary)))


def different_scoring(rows):
    """A line for each data set whose rows were not all scored in the same way."""
    lines = []
    for dataset in sorted({row.first.dataset for row in rows}):
        peers = [row for row in rows if row.first.dataset == dataset]
        kinds = {}
        for row in peers:
            kind = tuple(row.first.facts[key] for key in SCORED_BY)
            kinds.setdefault(kind, []).append(row.number)
        if len(kinds) > 1:
            keys = [key for key, values in zip(SCORED_BY, zip(*kinds)) if differ(values)]
            groups = ' / '.join(map(rows_text, kinds.values()))
            lines.append(f"not comparable: {groups} of {dataset} were scored "
                         f"differently ({', '.join(keys)})")
    return lines


def different_lists(rows):
    """A line for rows with the same method and config but different lists or other facts."""
    families = {}
    for row in rows:
        run = row.first
        kind = json.dumps([run.dataset, run.method, run.settings], sort_keys=True)
        families.setdefault(kind, []).append(row)
    lines = []
    for family in families.values():
        keys = [key for key in family[0].first.facts
                if differ([row.first.facts[key] for row in family])]
        if keys:
            lines.append(f'not averaged: {rows_text([row.number for row in family])} have the same '
                         f"method and config, but different {', '.join(keys)}")
    return lines


def rows_text(numbers):
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


# The CSV file.

def write_csv(path, rows):
    """Write the rows with all columns; a config key that a method does not have is empty."""
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
        score = row_scores(row, role)
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

