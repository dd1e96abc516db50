"""`python -m dssn shapes`: render a small synthetic data set. It needs no download.

The images show rotated, overlapping objects of six classes on cluttered backgrounds. The class
frequencies have a long tail. The class of an object determines its outline, its coarse pattern, and
whether it is brighter or darker than the background. Colour and light are independent of the class:
they vary between objects and between images. A few labeled images have random colours, which a
network could learn by mistake; strong views prevent this.
"""
import math
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dssn.data.classes import CLASSES
from dssn.data.lists import Sample, write_list
from dssn.errors import UserError
from dssn.tools.arguments import positive_number, whole_number

CLASS_FREQUENCIES = (0.24, 0.20, 0.17, 0.15, 0.13, 0.11)  # of the objects, for classes 1 to 6
SIZE = (96, 96)        # width, height of an image in pixels
OBJECTS = (3, 5)       # smallest and largest number of objects in an image
RADIUS = (0.20, 0.34)  # range of the radius of an object, as a fraction of the image height
PERIOD = (10, 15)      # range of the pattern's period in pixels; blur at half size keeps it
GRAY_FRACTION = 0.2    # of the images
OVERSAMPLING = 2       # images are rendered larger and then reduced, for smooth edges
# Ranges of saturation and of gray level. The hue is random.
DULL, DARK, BRIGHT = ((0, 0.5), (0.35, 0.55)), ((0.2, 1), (0.05, 0.22)), ((0.2, 1), (0.7, 0.95))
N_TRAIN, N_VAL = 420, 120
SEED = 2023
VERSION = 3  # to be raised if the same seed gives other pixels


def add_arguments(parser):
    """Render the shapes data set as JPEG images, PNG masks and id lists, unless it exists."""
    parser.add_argument('--root', default='data/shapes', help='folder (default: %(default)s)')
    parser.add_argument('--train', type=positive_number, default=N_TRAIN,
                        help='images (default: %(default)s)')
    parser.add_argument('--val', type=positive_number, default=N_VAL,
                        help='images (default: %(default)s)')
    parser.add_argument('--seed', type=whole_number, default=SEED, help='default: %(default)s')


def run(args):
    rendered = render_dataset(args.root, args.train, args.val, args.seed)
    print(f'{args.root}: {args.train} train and {args.val} val images '
          + ('rendered' if rendered else 'exist already'))
    return 0


def render_dataset(root, n_train=N_TRAIN, n_val=N_VAL, seed=SEED):
    """Render the data set as JPEG images, PNG masks and the id lists train.txt and val.txt.

    An image depends only on the seed and on its number. The file shapes.txt is written last: if it
    holds the right text, the data set is complete.

    Returns:
        True if it was rendered, False if it existed.

    Raises:
        UserError: the folder cannot be written.
    """
    record = f'drawing {VERSION}, seed {seed}, {n_train} train, {n_val} val\n'
    record_path = os.path.join(root, 'shapes.txt')
    if _read(record_path) == record:
        return False
    try:
        for folder in ('images', 'masks'):
            os.makedirs(os.path.join(root, folder), exist_ok=True)
        if os.path.exists(record_path):
            os.remove(record_path)  # an interrupted run must not leave the record of the old set
        # Val has numbers of its own, so it does not depend on the number of train images.
        for part, count, start in (('train', n_train, 0), ('val', n_val, 1_000_000)):
            samples = [_save_sample(root, f'{part}_{i:04d}', (seed, start + i))
                       for i in range(count)]
            write_list(os.path.join(root, f'{part}.txt'), samples)
        with open(record_path, 'w', encoding='utf-8') as file:
            file.write(record)
    except OSError as error:
        raise UserError(f'--root {root}: cannot be written ({error.strerror}); choose another '
                        'folder') from None
    return True


def _read(path):
    if not os.path.isfile(path):
        return None
    with open(path, encoding='utf-8') as file:
        return file.read()


def _save_sample(root, name, seed):
    image, mask, quality = render(np.random.default_rng(seed))
    sample = Sample(f'images/{name}.jpg', f'masks/{name}.png', name)
    image.save(os.path.join(root, sample.image), quality=quality)
    mask.save(os.path.join(root, sample.mask))
    return sample


CIRCLE = [(1, 2 * math.pi * i / 40) for i in range(40)]


def _cross(half):
    """The corners of an upright cross, in polar coordinates.

    Its arms have length 1.2 and half width `half`.
    """
    corners = []
    for quarter in range(4):
        for a, b in ((1.2, -half), (1.2, half), (half, half)):
            corners.append((math.hypot(a, b), math.atan2(b, a) + quarter * math.pi / 2))
    return corners


# {class: (pattern, outline)}. An outline is a polygon of points (radius, angle). A second polygon
# is a hole.
APPEARANCE = {
    'disk': ('bright', [CIRCLE]),
    'square': ('stripes', [[(1.15, math.pi * (i + 0.5) / 2) for i in range(4)]]),
    'triangle': ('core', [[(1.3, 2 * math.pi * i / 3) for i in range(3)]]),
    'star': ('dots', [[(1.35 if i % 2 == 0 else 0.62, math.pi * i / 5) for i in range(10)]]),
    'ring': ('dark', [[(radius, angle) for _, angle in CIRCLE] for radius in (1.1, 0.5)]),
    'cross': ('checks', [_cross(0.4)]),
}


def render(rng):
    """Render one image.

    Args:
        rng: numpy Generator, the only source of random numbers.

    Returns:
        (Pillow RGB, Pillow L of class indices, JPEG quality for the image).
    """
    width, height = SIZE[0] * OVERSAMPLING, SIZE[1] * OVERSAMPLING
    image = Image.fromarray(_background(rng, width, height))
    mask = Image.new('L', (width, height), 0)
    for _ in range(int(rng.integers(*OBJECTS, endpoint=True))):
        kind = 1 + int(rng.choice(len(CLASS_FREQUENCIES), p=CLASS_FREQUENCIES))
        pattern, polygons = APPEARANCE[CLASSES['shapes'][kind]]
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
    """A random place for an object.

    Returns:
        A function place(points, scale=1): polar points (radius, angle) -> points (x, y) in pixels.
    """
    radius = rng.uniform(*RADIUS) * height
    x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
    turn, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    lean = rng.uniform(0, math.pi)

    def place(points, scale=1):
        """Stretch the points along the direction `lean`, turn and move them."""
        placed = []
        for r, angle in points:
            a = scale * radius * stretch * r * math.cos(angle + turn - lean)
            b = scale * radius / stretch * r * math.sin(angle + turn - lean)
            placed.append((x + a * math.cos(lean) - b * math.sin(lean),
                           y + a * math.sin(lean) + b * math.cos(lean)))
        return placed
    return place


def _fill(polygons, width, height):
    """The first polygon without the second, as an L image of 0 and 255."""
    outline = Image.new('L', (width, height), 0)
    pen = ImageDraw.Draw(outline)
    for fill, polygon in zip((255, 0), polygons):
        pen.polygon(polygon, fill=fill)
    return outline


def _colour(rng, saturation, gray):
    """A random colour (3,) in 0..255; saturation and gray level are ranges (low, high) in 0..1."""
    hue, saturation, gray = rng.random(), rng.uniform(*saturation), rng.uniform(*gray)
    ramp = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    colour = 1 - saturation * (1 - np.clip(ramp, 0, 1))
    level = colour @ (0.299, 0.587, 0.114)
    if gray < level:
        return 255 * colour * gray / level
    return 255 * (1 - (1 - colour) * (1 - gray) / (1 - level))


def _pattern(pattern, rng, width, height, period):
    """A pattern (height, width) float: 1 where it is bright, 0 elsewhere. Angle and period vary."""
    turn, period = rng.uniform(0, math.pi), rng.uniform(*period)
    rows, columns = np.mgrid[:height, :width] / OVERSAMPLING * (2 * math.pi / period)
    a = np.sin(columns * math.cos(turn) + rows * math.sin(turn) + rng.uniform(0, 2 * math.pi))
    b = np.sin(rows * math.cos(turn) - columns * math.sin(turn) + rng.uniform(0, 2 * math.pi))
    return {'dark': np.zeros_like(a), 'bright': np.ones_like(a), 'stripes': a > -0.5,
            'checks': a * b > 0, 'dots': a * b > 0.35}[pattern].astype(float)


def _background(rng, width, height):
    """Soft blotches, a fine, faint pattern and lines in dull colours: uint8 (height, width, 3)."""
    cells = int(rng.integers(2, 6))
    noise = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    blotches = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 255
    background = _mix(_colour(rng, *DULL), _colour(rng, *DULL), blotches)
    if rng.random() < 0.6:
        pattern = ('stripes', 'checks', 'dots')[rng.integers(3)]
        weight = 0.35 * _pattern(pattern, rng, width, height, (3, 5))
        background = _mix(background, _colour(rng, *DULL), weight)
    image = Image.fromarray(background)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        ends = [int(v) for v in rng.integers(0, (width, height, width, height))]
        pen.line(ends, tuple(int(c) for c in _colour(rng, *DULL)), int(rng.integers(2, 7)))
    return np.asarray(image)


def _mix(first, second, weight):
    """Blend: first where weight (H, W) is 0, second where it is 1. Returns uint8 (H, W, 3)."""
    weight = weight[..., None]
    return np.clip(first * (1 - weight) + second * weight, 0, 255).astype(np.uint8)


def _camera(image, rng):
    """Add uneven light, a colour cast, weak blur and noise. Some images become gray."""
    width, height = image.size
    turn, fall = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.5)
    rows, columns = np.mgrid[:height, :width]
    slope = (columns / width - 0.5) * math.cos(turn) + (rows / height - 0.5) * math.sin(turn)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    light = np.asarray(image) * (rng.uniform(0.7, 1.15) + fall * slope)[..., None]
    light = light * rng.uniform(0.8, 1.2, 3) + rng.normal(0, rng.uniform(2, 10), light.shape)
    image = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    return image.convert('L').convert('RGB') if rng.random() < GRAY_FRACTION else image
