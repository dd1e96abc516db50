"""The report of a check: as text, and as JSON."""
from collections import Counter

from dssn.data.causes import cause_of_values
from dssn.data.check.findings import ERROR, KINDS, WARNING
from dssn.data.classes import names_of_classes
from dssn.data.files import histogram_text
from dssn.labels import IGNORE


def lists_text(report):
    """One line for each list: its path, its length and its identity."""
    lines = []
    for role, checked in report.lists.items():
        identity = checked.identity.text if checked.identity else 'it has lines that cannot be read'
        lines.append(f'{role + ":":10} {checked.path}: {len(checked.samples)} samples; {identity}')
    return '\n'.join(lines)


def report_text(report, show):
    """The first `show` problems of each kind, the table of classes, and the number of problems."""
    parts = [problems_text(report, kind, show) for kind in KINDS]
    parts += [values_text(report, role) for role in report.totals]
    parts.append(classes_text(report))
    if any('`values = ' in problem.message for problem in report.problems):
        parts.append('A line `values = ...` reads the mask `path` and writes the PNG `png`. The '
                     'section "Checking data" of docs/data.md has the script that runs it.')
    parts.append(f'errors: {report.count(ERROR)}, warnings: {report.count(WARNING)}')
    return '\n' + '\n\n'.join(part for part in parts if part)


def problems_text(report, kind, show):
    """The heading and the first `show` problems of a kind; '' if there are none."""
    messages = [problem.message for problem in report.problems if problem.kind == kind]
    if not messages:
        return ''
    severity, heading = KINDS[kind]
    lines = [f'{severity}: {heading}: {len(messages)}'] + ['  ' + text for text in messages[:show]]
    if len(messages) > show:
        lines.append(f'  ... and {len(messages) - show} more (--show N prints N, --json FILE '
                     'writes all)')
    return '\n'.join(lines)


def values_text(report, role):
    """The wrong values over all masks of a list, and their likely cause; '' if there are none.

    The cause is more certain than for a single mask, which may lack some classes.
    """
    masks, wrong, cause = wrong_values(report, role)
    return f'{role}: pixels of values that are not classes, over {masks} masks: ' \
        f'{histogram_text(wrong)}\n  likely cause: {cause}' if masks else ''


def wrong_values(report, role):
    """The values in the masks of a list that are not classes.

    Returns:
        (number of masks with such values, {value: pixels}, likely cause or None).
    """
    found = [problem.values for problem in report.problems
             if problem.kind == 'wrong_values' and problem.role == role]
    pixels = sum(map(Counter, found), Counter())
    wrong = {value: pixels[value] for value in sorted(pixels)
             if report.cfg.nclass <= value < IGNORE}
    cfg = report.cfg
    cause = cause_of_values(pixels, cfg.nclass, ignore_index=cfg.ignore_index) if found else None
    return len(found), wrong, cause


def classes_text(report):
    """A table of the classes: percentage of pixels and number of masks in each list."""
    if not report.totals:
        return ''
    names = [f'{index:3} {name:20}' for index, name in enumerate(names_of_classes(report.cfg))]
    rows = [(name, index) for index, name in enumerate(names)]
    rows.append(('ignored, of all pixels', IGNORE))
    lines = [f'{"class":24}' + ''.join(f'{role + " %":>12}{"masks":>8}' for role in report.totals)]
    for name, value in rows:
        lines.append(f'{name:24}' + ''.join(
            f'{percent(report, role, value):>12}{totals.masks_with[value]:8}'
            for role, totals in report.totals.items()))
    return '\n'.join(lines)


def percent(report, role, value):
    """`fraction` as text in percent; '-' for None."""
    part = fraction(report, role, value)
    return '-' if part is None else f'{100 * part:.2f}'


def fraction(report, role, value):
    """Fraction of a class in the pixels with a class, or of 255 in all pixels; None without any."""
    pixels = report.totals[role].pixels
    whole = pixels.sum() if value == IGNORE else pixels[:report.cfg.nclass].sum()
    return float(pixels[value] / whole) if whole else None


def json_content(report, status):
    """The whole report, for a JSON file."""
    return {
        'status': status, 'errors': report.count(ERROR), 'warnings': report.count(WARNING),
        'data_root': report.cfg.data_root, 'nclass': report.cfg.nclass,
        'ignore_index': report.cfg.ignore_index,
        'lists': {role: list_entry(report, role) for role in report.lists},
        'problems': [{'severity': problem.severity, **problem._asdict()}
                     for problem in report.problems],
        'classes': [{'index': index, 'name': name,
                     **{role: value_entry(report, role, index) for role in report.totals}}
                    for index, name in enumerate(names_of_classes(report.cfg))],
    }


def list_entry(report, role):
    """The JSON entry of a list."""
    checked = report.lists[role]
    entry = {'path': checked.path, 'samples': len(checked.samples),
             'identity': checked.identity._asdict() if checked.identity else None}
    if role in report.totals:
        _, wrong, cause = wrong_values(report, role)
        entry.update(masks_read=report.totals[role].masks,
                     ignored=value_entry(report, role, IGNORE), wrong_values=wrong,
                     likely_cause=cause)
    return entry


def value_entry(report, role, value):
    """The JSON entry of a mask value in a list."""
    totals = report.totals[role]
    return {'pixels': int(totals.pixels[value]), 'masks': int(totals.masks_with[value]),
            'fraction': fraction(report, role, value)}
