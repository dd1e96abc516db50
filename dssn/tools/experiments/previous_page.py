"""Reads the existing page of results, so that writing it again does not lose results silently."""
import os
import re

from dssn.errors import UserError

# The row of a variant in the first table of a section: '| 1_8 | DSSN | 45 | 3 (1, 2, 3) | ...'.
ROW = re.compile(r'\| ([^|]+) \| ([^|]+) \| \d* \| \d+ \(([\d, ]+)\) \|')
NOTE = ('*The records of these runs were not kept. This section is unchanged since they were '
        'available.*')
# The line of the note, also in its earlier wordings.
NOTE_LINE = re.compile(r'\n\*The records of these runs were not kept.*\*\n')


def read_sections(path):
    """{experiment's name: its section, Markdown} of a page; {} if there is no page yet."""
    try:
        with open(path, encoding='utf-8') as file:
            _, *parts = re.split(r'^## ', file.read(), flags=re.MULTILINE)
    except FileNotFoundError:
        return {}
    return {part.split('\n', 1)[0].strip(): '## ' + part for part in parts}


def runs_of(section):
    """{(split, variant, seed)} of the runs whose scores a section shows."""
    return {(split, variant, int(seed)) for split, variant, seeds in ROW.findall(section)
            for seed in seeds.split(',')}


def refuse_to_drop(before, names, page):
    """Raise a UserError if this command would drop sections from the page.

    These are sections with results of an experiment that is not in `names`, and sections that do
    not belong to an experiment.
    """
    missing = [name for name, section in before.items() if name not in names and (
        runs_of(section) or not os.path.exists(f'experiments/{name}.yaml'))]
    if missing:
        raise UserError(f"{page}: has sections that this command would drop: {', '.join(missing)}; "
                        'name the files of these experiments too, write another --page, or delete '
                        'the sections first')


def refuse_to_lose(known, found, name, page):
    """Raise a UserError if a section shows runs that are not among those `found` now."""
    lost = sorted(runs_of(known) - set(found))
    if lost:
        shown = '; '.join(f'{variant}, split {split}, seed {seed}' for split, variant, seed in lost)
        raise UserError(f'{page}: {name} has results of {len(lost)} runs that no longer exist, '
                        f'neither in their folders nor kept: {shown}. Restore them, or delete the '
                        'section from the page to write it without them')


def unchanged_section(section):
    """A section whose runs no longer exist. One with results gets a note, once."""
    if runs_of(section):
        title, rest = section.split('\n', 1)
        section = f'{title}\n\n{NOTE}\n' + NOTE_LINE.sub('', rest, count=1)
    return section.rstrip('\n') + '\n'


def old_prediction_lines(section, link, path):
    """The lines of a section with the image of predictions: `link` and the text below it.

    [] if the section has no such link, or the image file `path` does not exist.
    """
    lines = section.split('\n')
    if link not in lines or not os.path.exists(path):
        return []
    start = lines.index(link)
    return [*lines[start:start + 3], '']
