"""`shapes`: a small data set that the package draws, so that everything runs with no download.

Rotated, overlapping objects of six classes with a long tail on cluttered grounds. A class shows in
its outline, in a coarse pattern, and in whether it is brighter or darker than the ground. Colour
and light say nothing of it, and vary from object to object and from picture to picture: a few
labeled images show chance colours, and strong views teach to do without.
"""
import math
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dssn.data.arguments import positive_number, whole_number
from dssn.data.classes import CLASSES
from dssn.data.lists import Sample, write_list
from dssn.errors import UserError

TAIL = (0.24, 0.20, 0.17, 0.15, 0.13, 0.11)  # share of the objects, by class from 1
SIZE = (96, 96)                              # width, height in pixels
OBJECTS = (3, 5)                             # in a picture, fewest and most
RADIUS = (0.20, 0.34)                        # of an object, in heights of the picture
PERIOD = (10, 15)                            # of its pattern, in pixels: it survives blur at half size
COLOURLESS = 0.2                             # share of the pictures
OVERSAMPLE = 2                               # drawn larger, then shrunk: smooth edges
# Ranges of saturation and of gray level; hue is any.
DULL, DARK, BRIGHT = ((0, 0.5), (0.35, 0.55)), ((0.2, 1), (0.05, 0.22)), ((0.2, 1), (0.7, 0.95))
N_TRAIN, N_VAL = 420, 120
SEED = 2023
DRAWING = 3  # raised when other pixels come from the same seed


def add_arguments(parser):
    """Draw the shapes data set as JPEG images, PNG masks and id lists; nothing where it is there."""
    parser.add_argument('--root', default='data/shapes', help='folder (default: %(default)s)')
    parser.add_argument('--train', type=positive_number, default=N_TRAIN,
                        help='images (default: %(default)s)')
    parser.add_argument('--val', type=positive_number, default=N_VAL,
                        help='images (default: %(default)s)')
    parser.add_argument('--seed', type=whole_number, default=SEED, help='default: %(default)s')


def run(args):
    drawn = draw_set(args.root, args.train, args.val, args.seed)
    print(f'{args.root}: {args.train} train and {args.val} val images '
          + ('drawn' if drawn else 'are there already'))
    return 0


def draw_set(root, n_train=N_TRAIN, n_val=N_VAL, seed=SEED):
    """Draw the data set as JPEG images, PNG masks and the id lists train.txt and val.txt.

    An image depends on (seed, its number) alone. What was drawn is noted last, in shapes.txt:
    where the note agrees, the set is complete.

    Returns:
        True if it was drawn, False if it was there already.

    Raises:
        UserError: the folder cannot be written.
    """
    note = f'drawing {DRAWING}, seed {seed}, {n_train} train, {n_val} val\n'
    note_path = os.path.join(root, 'shapes.txt')
    if _read(note_path) == note:
        return False
    try:
        for folder in ('images', 'masks'):
            os.makedirs(os.path.join(root, folder), exist_ok=True)
        if os.path.exists(note_path):
            os.remove(note_path)  # if we are broken off, no note may claim the old set
        # Val is numbered from its own start: the train list's length does not change it.
        for part, count, start in (('train', n_train, 0), ('val', n_val, 1_000_000)):
            samples = [_draw_sample(root, f'{part}_{i:04d}', (seed, start + i))
                       for i in range(count)]
            write_list(os.path.join(root, f'{part}.txt'), samples)
        with open(note_path, 'w', encoding='utf-8') as file:
            file.write(note)
    except OSError as error:
        raise UserError(f'--root {root}: cannot be written ({error.strerror}); choose another '
                        'folder') from None
    return True


def _read(path):
    if not os.path.isfile(path):
        return None
    with open(path, encoding='utf-8') as file:
        return file.read()


def _draw_sample(root, name, seed):
    image, mask, quality = draw(np.random.default_rng(seed))
    sample = Sample(f'images/{name}.jpg', f'masks/{name}.png', name)
    image.save(os.path.join(root, sample.image), quality=quality)
    mask.save(os.path.join(root, sample.mask))
    return sample


CIRCLE = [(1, 2 * math.pi * i / 40) for i in range(40)]


def _cross(half):
    """Corners of an upright cross with arms of length 1.2 and the given half width, polar."""
    corners = []
    for quarter in range(4):
        for a, b in ((1.2, -half), (1.2, half), (half, half)):
            corners.append((math.hypot(a, b), math.atan2(b, a) + quarter * math.pi / 2))
    return corners


# Class: its pattern, and its outline as polygons of polar points (radius, angle); a second one is
# a hole.
LOOKS = {
    'disk': ('bright', [CIRCLE]),
    'square': ('stripes', [[(1.15, math.pi * (i + 0.5) / 2) for i in range(4)]]),
    'triangle': ('core', [[(1.3, 2 * math.pi * i / 3) for i in range(3)]]),
    'star': ('dots', [[(1.35 if i % 2 == 0 else 0.62, math.pi * i / 5) for i in range(10)]]),
    'ring': ('dark', [[(1.1, angle) for _, angle in CIRCLE], [(0.5, angle) for _, angle in CIRCLE]]),
    'cross': ('checks', [_cross(0.4)]),
}


def draw(rng):
    """One image: (RGB, mask of class indices, JPEG quality)."""
    width, height = SIZE[0] * OVERSAMPLE, SIZE[1] * OVERSAMPLE
    image = Image.fromarray(_ground(rng, width, height))
    mask = Image.new('L', (width, height), 0)
    for _ in range(int(rng.integers(*OBJECTS, endpoint=True))):
        kind = 1 + int(rng.choice(len(TAIL), p=TAIL))
        pattern, polygons = LOOKS[CLASSES['shapes'][kind]]
        place = _placement(rng, width, height)
        outline = _fill([place(polygon) for polygon in polygons], width, height)
        if pattern == 'core':
            weight = np.asarray(_fill([place(polygons[0], 0.5)], width, height)) / 255
        else:
            weight = _pattern(pattern, rng, width, height, PERIOD)
        texture = _mix(_colour(rng, *DARK), _colour(rng, *BRIGHT), weight)
        image.paste(Image.fromarray(texture), (0, 0), outline)
        mask.paste(kind, (0, 0), outline)
    image = _camera(image.resize(SIZE, Image.Resampling.BOX), rng)
    return image, mask.resize(SIZE, Image.Resampling.NEAREST), int(rng.integers(60, 95))


def _placement(rng, width, height):
    """Somewhere to put an object: a function that places polar points, at a share of its size."""
    radius = rng.uniform(*RADIUS) * height
    x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
    turn, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    lean = rng.uniform(0, math.pi)

    def place(points, share=1):
        """Points (x, y): stretched along `lean`, turned and moved."""
        placed = []
        for r, angle in points:
            a = share * radius * stretch * r * math.cos(angle + turn - lean)
            b = share * radius / stretch * r * math.sin(angle + turn - lean)
            placed.append((x + a * math.cos(lean) - b * math.sin(lean),
                           y + a * math.sin(lean) + b * math.cos(lean)))
        return placed
    return place


def _fill(polygons, width, height):
    """The first polygon less the second, as an L image of 0 and 255."""
    outline = Image.new('L', (width, height), 0)
    pen = ImageDraw.Draw(outline)
    for fill, polygon in zip((255, 0), polygons):
        pen.polygon(polygon, fill=fill)
    return outline


def _colour(rng, saturation, gray):
    """A colour (3,) of any hue, its saturation and its gray level in the given ranges of 0..1."""
    hue, saturation, gray = rng.random(), rng.uniform(*saturation), rng.uniform(*gray)
    ramp = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    colour = 1 - saturation * (1 - np.clip(ramp, 0, 1))
    level = colour @ (0.299, 0.587, 0.114)
    if gray < level:
        return 255 * colour * gray / level
    return 255 * (1 - (1 - colour) * (1 - gray) / (1 - level))


def _pattern(pattern, rng, width, height, period):
    """1 where the pattern is bright, 0 elsewhere (height, width); turned, of a random period."""
    turn, period = rng.uniform(0, math.pi), rng.uniform(*period)
    rows, columns = np.mgrid[:height, :width] / OVERSAMPLE * (2 * math.pi / period)
    a = np.sin(columns * math.cos(turn) + rows * math.sin(turn) + rng.uniform(0, 2 * math.pi))
    b = np.sin(rows * math.cos(turn) - columns * math.sin(turn) + rng.uniform(0, 2 * math.pi))
    return {'dark': np.zeros_like(a), 'bright': np.ones_like(a), 'stripes': a > -0.5,
            'checks': a * b > 0, 'dots': a * b > 0.35}[pattern].astype(float)


def _ground(rng, width, height):
    """Soft blotches and a fine, faint pattern in dull colours, crossed by lines, as an RGB array."""
    cells = int(rng.integers(2, 6))
    noise = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    blotches = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 255
    ground = _mix(_colour(rng, *DULL), _colour(rng, *DULL), blotches)
    if rng.random() < 0.6:
        weave = _pattern(('stripes', 'checks', 'dots')[rng.integers(3)], rng, width, height, (3, 5))
        ground = _mix(ground, _colour(rng, *DULL), 0.35 * weave)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        ends = [int(v) for v in rng.integers(0, (width, height, width, height))]
        pen.line(ends, tuple(int(c) for c in _colour(rng, *DULL)), int(rng.integers(2, 7)))
    return np.asarray(image)


def _mix(first, second, weight):
    """first where weight (H, W) is 0, second where it is 1: uint8 (H, W, 3)."""
    weight = weight[..., None]
    return np.clip(first * (1 - weight) + second * weight, 0, 255).astype(np.uint8)


def _camera(image, rng):
    """Uneven light, a colour cast, a little blur and noise, and no colour in some pictures."""
    width, height = image.size
    turn, fall = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.5)
    rows, columns = np.mgrid[:height, :width]
    slope = (columns / width - 0.5) * math.cos(turn) + (rows / height - 0.5) * math.sin(turn)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    light = np.asarray(image) * (rng.uniform(0.7, 1.15) + fall * slope)[..., None]
    light = light * rng.uniform(0.8, 1.2, 3) + rng.normal(0, rng.uniform(2, 10), light.shape)
    image = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    return image.convert('L').convert('RGB') if rng.random() < COLOURLESS else image
