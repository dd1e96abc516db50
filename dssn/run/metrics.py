"""metrics.jsonl, the scores of a run: read and summarised."""
import json

from dssn.errors import UserError
from dssn.inference.evaluation import few_classes, scored_classes
from dssn.run.scoring import BEST_FILES

ROLES = ('student', 'teacher')
ABSENT = 'skip'  # rule for a class in neither ground truth nor prediction, see `scores`
FALL_LENGTH, FALL_POINTS = 5, 1.0  # evaluations, points of mIoU: thresholds of `fall`
ABSENT_TEXT = {'skip': 'left out of the mean', 'zero': 'counted as 0'}


def parse(line, place):
    """A line of metrics.jsonl as a dict with `kind` and `epoch`; `place` is for errors."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or type(record.get('epoch')) is not int:
        shown = line if len(line) <= 60 else line[:60] + '...'
        raise UserError(f'{place}: {shown!r} is no record of a run (a JSON object with an '
                        'epoch); restore the file, or remove the line')
    # The first runs recorded evaluations only, without `kind`.
    return {'kind': 'evaluation', **record}


def read(path):
    """The records of a metrics.jsonl, in order.

    An incomplete last line is left out: it is being written, or the run was killed.

    Raises:
        UserError: the file cannot be read, or a line is no record.
    """
    try:
        with open(path, encoding='utf-8') as file:
            *lines, last = file.read().split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: cannot be read as the scores of a run: {error}') from None
    records = [parse(line, f'{path} line {number}') for number, line in enumerate(lines, 1)]
    try:
        return records + [parse(last, path)]
    except UserError:
        return records


def evaluations(records, path):
    """The records that are evaluations, checked: all must have scores of the same networks.

    Raises:
        UserError: a value is missing or of a wrong type. The message names the line of `path`.
    """
    found = []
    for number, record in enumerate(records, 1):
        if record['kind'] != 'evaluation':
            continue
        found.append(record)
        roles = ROLES if found[0].get('teacher') is not None else ROLES[:1]
        wrong = wrong_keys(record, roles)
        if wrong:
            raise UserError(f'{path} line {number}: {wrong[0]} = {record.get(wrong[0])!r} is not a '
                            'value that a run records; restore the file, or remove the line')
    return found


def wrong_keys(record, roles):
    """The keys of an evaluation whose value is missing or of a wrong type."""
    def is_number(values, key):
        return isinstance(values, dict) and type(values.get(key)) in (int, float)

    def is_identity(known):
        return isinstance(known, dict) and {'text', 'lines', 'sha256'} <= set(known)
    wrong = [key for key in ('iteration',) + roles if not is_number(record, key)]
    if not all(is_number(record.get('select_on', record), role) for role in roles):
        wrong.append('select_on')
    if not isinstance(record.get('anew', ''), str):
        wrong.append('anew')
    lists = record.get('lists', {})
    if not isinstance(lists, dict) or not all(map(is_identity, lists.values())):
        wrong.append('lists')
    return wrong


def comparable(evaluations):
    """The last evaluations whose scores are comparable.

    A run may be resumed with another val list, selection list or protocol. The first evaluation
    after that has `anew`: what changed.
    """
    first = max((i for i, line in enumerate(evaluations) if line.get('anew')), default=0)
    return evaluations[first:]


def best(evaluations, role):
    """The evaluation with the highest mIoU of a network (the first if several are equal).

    The mIoU is that on select_on if the run has this list, else on val.
    """
    return max(evaluations, key=lambda line: line.get('select_on', line)[role])


def summarise(evaluations, protocol):
    """The record that ends a run, kind `summary`: best and last scores of both networks.

    Only the last `comparable` evaluations count. If others are left out, `anew` states the first
    epoch that counts, and what changed.

    Args:
        evaluations: of the run, at least one. protocol: used if the records have none.
    """
    evaluations = comparable(evaluations)
    last, anew = evaluations[-1], evaluations[0].get('anew')
    summary = {'kind': 'summary', 'epoch': last['epoch'], 'iteration': last['iteration'],
               'evaluations': len(evaluations),
               'selected_on': 'select_on' if 'select_on' in last else 'val', 'best': {}, 'last': {}}
    if anew:
        summary['anew'] = {'epoch': evaluations[0]['epoch'], 'changes': anew}
    for role in ROLES:
        scored = last.get(role) is not None
        summary['best'][role] = entry(best(evaluations, role), role) if scored else None
        summary['last'][role] = entry(last, role) if scored else None
    summary.update(protocol=last.get('protocol', protocol), absent=last.get('absent', ABSENT),
                   processes=last.get('processes'), lists=last.get('lists', {}),
                   seconds=last.get('seconds'), machine=last.get('machine'))
    return summary


def entry(line, role):
    """A network's score in an evaluation: mIoU on val, the epoch, and mIoU on select_on.

    With a score of fewer than two classes, `scored_classes` is their number.
    """
    found = {'miou': line[role], 'epoch': line['epoch']}
    iou = line.get(f'{role}_iou')  # the oldest records have none
    if isinstance(iou, dict) and scored_classes(iou.values()) < 2:
        found['scored_classes'] = scored_classes(iou.values())
    if 'select_on' in line:
        found['select_on'] = line['select_on'][role]
    return found


def fall(scores):
    """The peak of a network's scores, if they have been below it long enough for a warning.

    That is so if exactly the last FALL_LENGTH evaluations are more than FALL_POINTS below the peak
    (the first of the highest). So each fall gives one warning. Another fall gives another warning
    only after scores have come back to within FALL_POINTS of the peak.

    Args:
        scores: [(epoch, mIoU in percent)] of all evaluations so far, in order.

    Returns:
        The peak, an item of `scores`; else None.
    """
    peak = max(scores, key=lambda item: item[1], default=None)
    below = [score < peak[1] - FALL_POINTS for _, score in scores]
    lasts = 0
    while lasts < len(below) and below[-1 - lasts]:
        lasts += 1
    return peak if lasts == FALL_LENGTH else None


def fall_text(records, role):
    """The warning that a network's mIoU has fallen, or None; see `fall`.

    Args:
        records: of the run so far. The mIoU is that on select_on if the run has this list.
    """
    lines = comparable([record for record in records if record['kind'] == 'evaluation'])
    scores = [(line['epoch'], line.get('select_on', line).get(role)) for line in lines]
    scores = [(epoch, score) for epoch, score in scores if score is not None]
    peak = fall(scores)
    if peak is None:
        return None
    where = 'select_on' if 'select_on' in lines[-1] else 'val'
    return (f"warning: the {role}'s mIoU on {where} has been more than {FALL_POINTS:g} below its "
            f'peak for {FALL_LENGTH} evaluations: {peak[1]:.2f} at epoch {peak[0]}, now '
            f'{scores[-1][1]:.2f} at epoch {scores[-1][0]}; {BEST_FILES[role]} keeps the peak')


def text(summary):
    """A summary as text of several lines."""
    held = [role for role in ROLES if summary['best'][role]]
    rows = [('best', 'best', 'miou'), ('  at epoch', 'best', 'epoch'),
            ('  mIoU on select_on', 'best', 'select_on'), ('last', 'last', 'miou'),
            ('  at epoch', 'last', 'epoch'), ('  mIoU on select_on', 'last', 'select_on')]
    lines = [head(summary), ' '.join([f'{"mIoU on val":<19}'] + [f'{role:>9}' for role in held])]
    for name, which, key in rows:
        values = [summary[which][role].get(key) for role in held]
        if None not in values:
            cells = [f'{v:>9}' if key == 'epoch' else f'{v:9.2f}' for v in values]
            lines.append(' '.join([f'{name:<19}'] + cells))
    lines += few_classes_lines(summary)
    if 'anew' in summary:
        lines.append(anew_text(summary['anew']))
    return '\n'.join(lines + [selection_text(summary)])


def few_classes_lines(summary):
    """Warnings of networks whose best or last mIoU is not a mean over classes."""
    lines = []
    for role in ROLES:
        counts = [summary[which][role].get('scored_classes', 2) for which in ('best', 'last')
                  if summary[which][role]]
        lines += few_classes(role, 'mIoU', min(counts, default=2))
    return lines


def anew_text(anew):
    """A line on the evaluations that a summary leaves out."""
    return (f"evaluations before epoch {anew['epoch']} are left out, because their scores are not "
            f"comparable: {anew['changes']}")


def head(summary):
    lists = ''.join(f"; {role}: {known['text']}" for role, known in summary['lists'].items()
                    if role in ('val', 'select_on'))
    seconds = '' if summary['seconds'] is None else f" in {summary['seconds']:.0f} s"
    return (f"finished: {summary['epoch']} epochs{seconds}; protocol {summary['protocol']}; absent "
            f"classes: {ABSENT_TEXT[summary['absent']]}{lists}")


def selection_text(summary):
    """A line on how `best` was selected."""
    count = summary['evaluations']
    if summary['selected_on'] == 'select_on':
        return f'best: the evaluation with the highest mIoU on select_on, out of {count}'
    if count == 1:
        return 'best: there was only one evaluation, so nothing was selected'
    return (f'best: the highest of {count} evaluations on val itself, so other images will '
            'probably score lower; the key select_on names another list for the selection')
