"""What a check found: the table for people, the JSON for programs."""
import json
from collections import Counter

from dssn.config import names_of_classes
from dssn.data.causes import cause_of_values
from dssn.data.files import histogram_text
from dssn.data.findings import ERROR, KINDS, WARNING
from dssn.errors import UserError


def head(report):
    """A line a list: its path, length and identity."""
    lines = []
    for role, listed in report.lists.items():
        what = listed.identity.text if listed.identity else 'it has lines that cannot be read'
        lines.append(f'{role + ":":10} {listed.path}: {len(listed.samples)} samples; {what}')
    return '\n'.join(lines)


def text(report, show):
    """The report for people: the first `show` problems of each kind, the classes, the sum."""
    parts = [problems_text(report, kind, show) for kind in KINDS]
    parts += [values_text(report, role) for role in report.totals]
    parts.append(classes_text(report))
    parts.append(f'errors: {report.count(ERROR)}, warnings: {report.count(WARNING)}')
    return '\n' + '\n\n'.join(part for part in parts if part)


def problems_text(report, kind, show):
    found = [problem.message for problem in report.problems if problem.kind == kind]
    if not found:
        return ''
    severity, heading = KINDS[kind]
    lines = [f'{severity}: {heading}: {len(found)}'] + ['  ' + message for message in found[:show]]
    if len(found) > show:
        lines.append(f'  ... and {len(found) - show} more (--show N shows N, --json FILE has all)')
    return '\n'.join(lines)


def values_text(report, role):
    """The values that are no class over all masks that hold any: one mask alone may mislead."""
    masks, wrong, cause = wrong_values(report, role)
    return masks and (f'{role}: pixels of values that are no class, over {masks} masks: '
                      f'{histogram_text(wrong)}\n  likely cause: {cause}')


def wrong_values(report, role):
    """(masks that hold values that are no class, {such a value: pixels}, its likely cause)."""
    found = [problem.values for problem in report.problems
             if problem.kind == 'wrong_values' and problem.role == role]
    pixels = sum(map(Counter, found), Counter())
    wrong = {value: pixels[value] for value in sorted(pixels)
             if report.cfg.nclass <= value < 255}
    return len(found), wrong, cause_of_values(pixels, report.cfg.nclass) if found else None


def classes_text(report):
    """A table of the share of pixels, and the number of masks, of each class in labeled and val."""
    if not report.totals:
        return ''
    names = [f'{index:3} {name:20}' for index, name in enumerate(names_of_classes(report.cfg))]
    rows = [(name, index) for index, name in enumerate(names)] + [('ignored, of all pixels', 255)]
    lines = [f'{"class":24}' + ''.join(f'{role + " %":>12}{"masks":>8}' for role in report.totals)]
    for name, value in rows:
        lines.append(f'{name:24}' + ''.join(
            f'{percent(report, role, value):>12}{totals.masks_with[value]:8}'
            for role, totals in report.totals.items()))
    return '\n'.join(lines)


def percent(report, role, value):
    part = share(report, role, value)
    return '-' if part is None else f'{100 * part:.2f}'


def share(report, role, value):
    """A class's share of the pixels with a class, or 255's of all; None without any."""
    pixels = report.totals[role].pixels
    whole = pixels.sum() if value == 255 else pixels[:report.cfg.nclass].sum()
    return float(pixels[value] / whole) if whole else None


def write_json(path, report, status):
    """Write the whole report as JSON."""
    content = {
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
    try:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
    except OSError as error:
        raise UserError(f'--json {path}: cannot be written ({error.strerror})') from None


def list_entry(report, role):
    listed = report.lists[role]
    entry = {'path': listed.path, 'samples': len(listed.samples),
             'identity': listed.identity._asdict() if listed.identity else None}
    if role in report.totals:
        _, wrong, cause = wrong_values(report, role)
        entry.update(masks_read=report.totals[role].masks, ignored=value_entry(report, role, 255),
                     wrong_values=wrong, likely_cause=cause)
    return entry


def value_entry(report, role, value):
    totals = report.totals[role]
    return {'pixels': int(totals.pixels[value]), 'masks': int(totals.masks_with[value]),
            'share': share(report, role, value)}
