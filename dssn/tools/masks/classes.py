"""Which class each label becomes."""
import os
from collections import Counter
from typing import Dict, List, NamedTuple

from dssn.data.classes import default_colours
from dssn.errors import UserError
from dssn.labels import IGNORE
from dssn.tools.masks.shapes import explained

IGNORED = 'ignore'
SHOWN = 12  # labels that a message lists


class Classes(NamedTuple):
    """The classes of the masks."""
    names: List[str]
    colours: List[tuple]     # (R, G, B) of each
    values: Dict[str, int]   # {label: mask value}
    rest: int                # mask value of pixels without a shape


def choose_classes(annotations, args):
    """The `Classes` of --classes, --map and --rest.

    Raises:
        UserError: a label is no class, an argument names a label or class that is not there, or
            there are too many classes.
    """
    counts = Counter(shape.label for image in annotations.images for shape in image.shapes)
    labels = annotations.labels + sorted(set(counts) - set(annotations.labels))
    renamed = parse_map(args.map, labels)
    targets = {label: renamed.get(label, label) for label in labels}
    names = read_names(args.classes) if args.classes else list(dict.fromkeys(
        target for target in targets.values() if target != IGNORED))
    if not args.classes and args.rest not in [IGNORED, *names]:
        names.insert(0, args.rest)
    check_names(names, args)
    unknown = [label for label, target in targets.items()
               if target not in [IGNORED, *names] and counts[label]]
    if unknown:
        listed = ', '.join(f'{label} ({counts[label]} shapes)' for label in unknown[:SHOWN])
        more = f' and {len(unknown) - SHOWN} others' if unknown[SHOWN:] else ''
        raise UserError(f'SOURCE {args.source}: labels that are no class: {listed}{more}; the '
                        f'classes are {", ".join(names)}. Add them to --classes, or rename them: '
                        f'--map "{unknown[0]}={names[0]}", or "{unknown[0]}={IGNORED}"')
    values = {label: IGNORE if target == IGNORED else names.index(target)
              for label, target in targets.items() if target in [IGNORED, *names]}
    own = {target: annotations.colours[label] for label, target in reversed(list(targets.items()))
           if label in annotations.colours}
    colours = [own.get(name) for name in names]
    if None in colours or len(set(colours)) < len(colours):
        colours = default_colours('', len(names))
    return Classes(names, colours, values,
                   IGNORE if args.rest == IGNORED else names.index(args.rest))


def parse_map(rules, labels):
    """{old: new} of --map."""
    renamed = {}
    for rule in rules:
        old, sign, new = rule.partition('=')
        if not sign or not new:
            raise UserError(f"--map '{rule}': write OLD=NEW, such as lorry=car")
        if old not in labels:
            raise UserError(f"--map '{rule}': no label is called '{old}'; the labels are "
                            f'{", ".join(labels[:SHOWN]) or "none"}')
        renamed[old] = new
    return renamed


def read_names(text):
    """The names of --classes: from a file with one on each line, or from the text itself."""
    if os.path.isfile(text):
        with open(text, encoding='utf-8-sig') as file, explained(
                f'--classes {text}', 'name a text file with one name on each line'):
            return [line.strip() for line in file if line.strip()]
    return [name.strip() for name in text.split(',') if name.strip()]


def check_names(names, args):
    """Raise a UserError if the names cannot be classes."""
    if not names:
        raise UserError(f'SOURCE {args.source}: no shape has a label that becomes a class; '
                        'annotate an image, or check --classes and --map')
    for name in names:
        if names.count(name) > 1 or name == IGNORED:
            raise UserError(f"--classes: '{name}' "
                            + (f'stands for the value {IGNORE} and cannot be a class'
                               if name == IGNORED else 'is there twice') + '; leave it out')
    if args.rest not in [IGNORED, *names]:
        raise UserError(f'--rest {args.rest}: is not a class of --classes '
                        f'({", ".join(names[:SHOWN])}); name one of them, or `{IGNORED}`')
    if len(names) > IGNORE:
        raise UserError(f'{len(names)} classes: a mask holds at most {IGNORE}; merge some with '
                        '--map')
