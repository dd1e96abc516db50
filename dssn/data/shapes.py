"""`shapes`: a small data set that the package draws, so that everything runs with no download.

Rotated, overlapping objects of six classes with a long tail on cluttered grounds. A class shows in
its hue, and in brightness, pattern and outline too. Half of the pictures are black and white: few
labels do not teach what to go by there, but strong views of the coloured ones do.
"""
import math
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dssn.data.arguments import positive_number, whole_number
from dssn.data.classes import CLASSES
from dssn.data.lists import Sample, write_list
from dssn.errors import UserError

TAIL = (0.28, 0.22, 0.18, 0.14, 0.10, 0.08)  # share of the objects, by class from 1
SIZE = (96, 96)                              # width, height in pixels
BRIGHTNESS = ((0.85, 1.0), (0.25, 0.4), (0.55, 0.7))  # value (HSV) of the classes, in turn
COLOURLESS = 0.5                             # share of the pictures
OVERSAMPLE = 2                               # drawn larger, then shrunk: smooth edges
N_TRAIN, N_VAL = 420, 120
SEED = 2023
DRAWING = 2  # raised when other pixels come from the same seed


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


def draw(rng):
    """One image: (RGB, mask of class indices, JPEG quality)."""
    width, height = SIZE[0] * OVERSAMPLE, SIZE[1] * OVERSAMPLE
    image = Image.fromarray(_ground(rng, width, height))
    mask = Image.new('L', (width, height), 0)
    for _ in range(int(rng.integers(2, 6))):
        kind = 1 + int(rng.choice(len(TAIL), p=TAIL))
        outline = _outline(CLASSES['shapes'][kind], rng, width, height)
        texture = _texture(kind, rng, width, height)
        image.paste(Image.fromarray(texture), (0, 0), outline)
        mask.paste(kind, (0, 0), outline)
    image = _camera(image.resize(SIZE, Image.Resampling.BOX), rng)
    return image, mask.resize(SIZE, Image.Resampling.NEAREST), int(rng.integers(60, 95))


def _outline(name, rng, width, height):
    """A filled outline somewhere in the picture, as an L image of 0 and 255."""
    radius = rng.uniform(0.16, 0.32) * height
    x, y = rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height
    turn, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    lean = rng.uniform(0, math.pi)

    def place(points):
        """Polar points (radius, angle), stretched along `lean`, turned and moved."""
        placed = []
        for r, angle in points:
            a, b = r * math.cos(angle + turn - lean), r * math.sin(angle + turn - lean)
            a, b = a * stretch, b / stretch
            placed.append((x + radius * (a * math.cos(lean) - b * math.sin(lean)),
                           y + radius * (a * math.sin(lean) + b * math.cos(lean))))
        return placed

    circle = [(1, 2 * math.pi * i / 40) for i in range(40)]
    polygons = {
        'disk': [circle],
        'square': [[(1.15, math.pi * (i + 0.5) / 2) for i in range(4)]],
        'triangle': [[(1.3, 2 * math.pi * i / 3) for i in range(3)]],
        'star': [[(1.35 if i % 2 == 0 else 0.55, math.pi * i / 5) for i in range(10)]],
        'ring': [circle, [(0.5, angle) for _, angle in circle]],
        'cross': [_cross(0.34)],
    }[name]
    outline = Image.new('L', (width, height), 0)
    pen = ImageDraw.Draw(outline)
    for fill, polygon in zip((255, 0), polygons):
        pen.polygon(place(polygon), fill=fill)
    return outline


def _cross(half):
    """Corners of an upright cross with arms of length 1.2 and the given half width, polar."""
    corners = []
    for quarter in range(4):
        for a, b in ((1.2, -half), (1.2, half), (half, half)):
            corners.append((math.hypot(a, b), math.atan2(b, a) + quarter * math.pi / 2))
    return corners


def _colour(rng, hue=None, saturation=(0.35, 0.95), value=(0.4, 1.0)):
    """A random colour (3,), of about the given hue if any."""
    hue = rng.random() if hue is None else (hue + rng.normal(0, 0.04)) % 1
    saturation, value = rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return 255 * value * (1 - saturation * (1 - np.clip(ramp, 0, 1)))


def _texture(kind, rng, width, height):
    """A full-size RGB array to cut the object from: in its class's hue, brightness and pattern."""
    place = kind - 1
    first = _colour(rng, place / 6, (0.45, 0.95), BRIGHTNESS[place % 3])
    if place < 3:  # plain
        return _mix(first, first, np.zeros((height, width)))
    factor = rng.uniform(0.35, 0.6)
    second = first / factor if place % 3 == 1 else first * factor  # the dark one turns brighter
    return _mix(first, second, _pattern(1 + int(rng.integers(2)), rng, width, height))


def _pattern(pattern, rng, width, height):
    """Values in 0..1 (height, width): 1 stripes, 2 checks, 3 dots, turned and scaled."""
    turn, pitch = rng.uniform(0, math.pi), rng.uniform(0.35, 0.9)
    rows, columns = np.mgrid[:height, :width] / OVERSAMPLE
    a = (columns * math.cos(turn) + rows * math.sin(turn)) * pitch
    b = (rows * math.cos(turn) - columns * math.sin(turn)) * pitch
    if pattern == 1:
        return (np.sin(a) > 0).astype(float)
    if pattern == 2:
        return ((np.sin(a) > 0) ^ (np.sin(b) > 0)).astype(float)
    return (np.sin(a) * np.sin(b) > 0.45).astype(float)


def _ground(rng, width, height):
    """Soft blotches and a pattern in dull colours, crossed by thin lines, as an RGB array."""
    cells = int(rng.integers(2, 6))
    noise = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    blotches = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 255
    dull = (0.0, 0.3)
    ground = _mix(_colour(rng, None, dull), _colour(rng, None, dull), blotches)
    if rng.random() < 0.6:
        stripes = _pattern(int(rng.integers(1, 4)), rng, width, height)
        ground = _mix(ground, _colour(rng, None, dull), 0.35 * stripes)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        ends = [int(v) for v in rng.integers(0, (width, height, width, height))]
        pen.line(ends, tuple(int(c) for c in _colour(rng, None, dull)), int(rng.integers(2, 7)))
    return np.asarray(image)


def _mix(first, second, weight):
    """first where weight (H, W) is 0, second where it is 1: uint8 (H, W, 3)."""
    weight = weight[..., None]
    return np.clip(first * (1 - weight) + second * weight, 0, 255).astype(np.uint8)


def _camera(image, rng):
    """Uneven light, a little blur and noise, and no colour in half of the pictures."""
    width, height = image.size
    turn, fall = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.5)
    rows, columns = np.mgrid[:height, :width]
    slope = (columns / width - 0.5) * math.cos(turn) + (rows / height - 0.5) * math.sin(turn)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    light = np.asarray(image) * (rng.uniform(0.75, 1.1) + fall * slope)[..., None]
    light = light + rng.normal(0, rng.uniform(2, 10), light.shape)
    image = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    return image.convert('L').convert('RGB') if rng.random() < COLOURLESS else image
