"""Which list is which: the identity of an id list, the published lists, lists drawn by seed."""
import hashlib
import json
import os
from typing import NamedTuple

from dssn.data.lists import read_list
from dssn.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MANIFEST = os.path.join(_ROOT, 'splits', 'published.json')
NOTE = 'generated.json'  # beside lists drawn by seed: what was drawn, from what


class Identity(NamedTuple):
    """What a list is; `text` says it in a line."""
    name: str         # a published list's place below splits/, 'pascal/92/labeled.txt'; else ''
    lines: int        # samples
    sha256: str       # of the ids, see `sha256_of_ids`
    provenance: str   # one of the manifest's, 'generated' or 'own'
    published: bool
    text: str         # 'published pascal 92 (original)'


def sha256_of_ids(samples):
    """SHA-256 (hex) of a list's ids: sorted by code point, joined by newlines, in UTF-8.

    A sample's id is its image path as the list writes it. With or without masks, in any order,
    with any line ends, a list keeps its identity.
    """
    return _sha256(sample.image for sample in samples)


def sha256_of_pairs(samples):
    """The same of `image mask`, so that other masks show too."""
    return _sha256(f"{sample.image} {sample.mask or ''}".strip() for sample in samples)


def _sha256(lines):
    return hashlib.sha256('\n'.join(sorted(lines)).encode('utf-8')).hexdigest()


def identify(path):
    """The `Identity` of an id list: published, generated (as noted beside it), or the user's own.

    Raises:
        UserError: the list, or a note beside it, cannot be read.
    """
    samples = read_list(path, masks=False, allow_outside=True)  # no file is opened
    lines, sha256 = len(samples), sha256_of_ids(samples)
    for known in published_lists():
        if known['sha256'] == sha256:
            return Identity(known['name'], lines, sha256, known['provenance'], True,
                            f"published {short_name(known['name'])} ({known['provenance']})")
    note = _read_note(os.path.dirname(path)).get(os.path.basename(path))
    if note and note['sha256'] == sha256:
        return Identity('', lines, sha256, 'generated', False,
                        f"generated, seed {note['seed']}: not comparable with published numbers")
    return Identity('', lines, sha256, 'own', False,
                    f'own list, {lines} lines, sha256 {sha256[:12]}')


def short_name(name):
    """'pascal/92/labeled.txt' -> 'pascal 92'; other lists of a split say which they are."""
    return name.replace('/labeled.txt', '').replace('.txt', '').replace('/', ' ')


def published_lists():
    """The manifest's entries: dicts of name, lines, provenance, sha256, sha256_with_masks."""
    return _read_json(MANIFEST, 'restore it, it is part of this project')['lists']


def note_generated(folder, seed, source, names=('labeled.txt', 'unlabeled.txt')):
    """Note beside lists that they were drawn by seed; what was noted of other lists is kept.

    Args:
        folder: where they lie. source: text, what they were drawn from. names: their file names.

    Raises:
        UserError: a list or the note that is there cannot be read. OSError: cannot be written.
    """
    note = _read_note(folder)
    for name in names:
        samples = read_list(os.path.join(folder, name), masks=False, allow_outside=True)
        note[name] = {'seed': seed, 'source': str(source), 'lines': len(samples),
                      'sha256': sha256_of_ids(samples)}
    _write_whole(os.path.join(folder, NOTE), json.dumps(note, indent=1) + '\n')


def _read_note(folder):
    path = os.path.join(folder, NOTE)
    if not os.path.exists(path):
        return {}
    note = _read_json(path, 'remove it; its lists then count as your own')
    if not isinstance(note, dict) or not all(
            isinstance(entry, dict) and isinstance(entry.get('seed'), int)
            and isinstance(entry.get('sha256'), str) for entry in note.values()):
        raise UserError(f'{path}: not a note of generated lists; remove it, its lists then count '
                        'as your own')
    return note


def _read_json(path, remedy):
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error}); {remedy}') from None


def _write_whole(path, text):
    temporary = f'{path}.tmp'
    with open(temporary, 'w', encoding='utf-8', newline='\n') as file:
        file.write(text)
    os.replace(temporary, path)
