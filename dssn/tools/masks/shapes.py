"""What a reader of annotations yields: images with their shapes, each of which knows its pixels."""
import contextlib
import json
import math
from typing import Callable, List, NamedTuple, Optional, Tuple

import numpy as np

from dssn.data.files import open_untrusted
from dssn.errors import UserError

FARTHEST = 1e9  # coordinates are below it


class Shape(NamedTuple):
    """A shape on an image.

    `place` is None if no pixel of the label is nothing to report.
    """
    label: str
    place: Optional[str]  # 'a.json shape 3', for messages
    region: Callable      # size (H, W) -> its pixels, bool (H, W)


class Annotated(NamedTuple):
    """An image and its shapes."""
    image: str              # its name in the file, with / between folders
    size: Optional[Tuple[int, int]]  # (H, W) in the file; None if the file does not state it
    shapes: List[Shape]     # in the order in which they are rendered: later ones lie on top
    place: str              # the file, and what in it
    smallest_on_top: bool = False  # the larger shapes are rendered first; the order breaks ties


class Annotations(NamedTuple):
    """The content of an export."""
    images: List[Annotated]
    labels: List[str]       # in the order of the tool; [] if it has none
    colours: dict           # {label: (R, G, B)}, as far as the tool has them
    left_out: dict          # {text: number} of what has no pixels, such as points
    warnings: List[str] = []


@contextlib.contextmanager
def explained(place, remedy):
    """Turn the errors that wrong content raises into a UserError that names the place."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f'{place}: has no {error}; {remedy}') from None
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError,
            RecursionError) as error:
        raise UserError(f'{place}: cannot be read ({type(error).__name__}: {error}); '
                        f'{remedy}') from None


@contextlib.contextmanager
def opened(path, remedy):
    """An image, opened with Pillow; errors of Pillow become a UserError with the remedy."""
    try:
        with open_untrusted(path) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost any error
        raise UserError(f'{path}: cannot be read as an image ({type(error).__name__}: {error}); '
                        f'{remedy}') from None


def read_json(path, remedy):
    """The content of a JSON file. Raises a UserError that ends with the remedy."""
    with explained(path, remedy):
        return json.loads(read_file(path).decode('utf-8-sig'))


def read_file(path):
    """The content of a file of annotations, bytes. Raises a UserError."""
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); name the file of the '
                        'annotations') from None
    if data[:4] == b'PK\3\4':
        raise UserError(f'{path}: is a zip file; unpack it, and name the file in it')
    return data


def points_of(pairs, least=1):
    """Pairs x, y as an array (n, 2).

    Raises:
        ValueError: fewer than `least`, or a number is not finite or too large.
    """
    points = np.array([(float(x), float(y)) for x, y in pairs]).reshape(-1, 2)
    if len(points) < least:
        raise ValueError(f'{len(points)} points, needs {least}')
    if not (np.abs(points) < FARTHEST).all():  # not a number is not below it, either
        raise ValueError(f'a coordinate that is no number below {FARTHEST:.0e}')
    return points


def corners(left, top, width, height, turn=0, centre=None):
    """The corners (4, 2) of a rectangle, turned clockwise around `centre` (default: left, top)."""
    points = points_of([(left, top), (left + width, top), (left + width, top + height),
                        (left, top + height)])
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    centre = np.array((left, top) if centre is None else centre, float)
    return centre + (points - centre) @ np.array([[cos, sin], [-sin, cos]])


def rendered(annotated, size, values):
    """The mask of an image, uint8 (H, W), and the shapes that cover no pixel of it.

    Args:
        size: (H, W). values: {label: mask value}.

    Returns:
        (int16 (H, W), in which -1 is a pixel without a shape; list of places).
    """
    mask, empty = np.full(size, -1, np.int16), []
    regions = []
    for shape in annotated.shapes:
        with explained(shape.place or annotated.place, 'correct it in the tool and export again'):
            region = shape.region(size)
        if shape.place and not region.any():
            empty.append(f'{shape.place} ({shape.label})')
        if annotated.smallest_on_top:
            regions.append((np.count_nonzero(region), region, shape.label))
        else:
            mask[region] = values[shape.label]
    for _, region, label in sorted(regions, key=lambda item: -item[0]):
        mask[region] = values[label]
    return mask, empty
