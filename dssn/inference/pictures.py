"""Pictures of predictions: index PNGs, overlays, error maps, panels, and their gallery."""
import json
import os
import re
import sys

import numpy as np
import torch
from PIL import Image

from dssn.data.classes import IGNORE_COLOUR, colours_of_classes, names_of_classes
from dssn.errors import UserError
from dssn.inference.evaluation import confusion_matrix, scores
from dssn.inference.gallery import CORRECT_COLOUR, WRONG_COLOUR, write_gallery
from dssn.labels import IGNORE

THUMBNAIL = 240, 180   # maximum width and height of one picture in a thumbnail, pixels
JPEG_SIDE = 65500      # maximum side of a JPEG file, pixels
STRIP = 256            # rows of an image that are rendered at once
# Folders with the files of predictions.
KINDS = ('prediction', 'overlay', 'error', 'panel', 'thumbnail', 'confidence', 'probabilities',
         'geotiff')


def index_picture(index, colours):
    """Class indices (H, W), 255 = ignore, as a Pillow image of mode P with the class colours."""
    table = np.full((256, 3), IGNORE_COLOUR, np.uint8)
    table[:len(colours)] = colours
    picture = Image.fromarray(np.asarray(index).astype(np.uint8))
    picture.putpalette(table.tobytes())
    return picture


def overlay(image, prediction):
    """A Pillow image, blended half and half with the colours of an `index_picture`."""
    return Image.blend(image, prediction.convert('RGB'), 0.5)


def error_picture(label, prediction):
    """Errors of class indices (H, W) as mode P: 0 correct, 1 wrong, 255 ignored in `label`."""
    error = np.where(label == IGNORE, IGNORE, label != prediction)
    return index_picture(error, [CORRECT_COLOUR, WRONG_COLOUR])


def draw_prediction(image, prediction, colours):
    """The overlay of a prediction, and small copies for a thumbnail, rendered in strips of rows.

    Args:
        image: (3, H, W) uint8, or a `TiffWindows`. prediction: class indices (H, W), an array.

    Returns:
        (overlay RGB, [image, prediction, overlay], RGB, reduced by a whole number, which is 1 if
        they are small).
    """
    height, width = prediction.shape
    factor = max(1, min(width // (4 * THUMBNAIL[0]), height // (4 * THUMBNAIL[1])))
    whole = Image.new('RGB', (width, height))
    small = [Image.new('RGB', (-(-width // factor), -(-height // factor))) for _ in range(3)]
    step = max(STRIP // factor, 1) * factor
    for top in range(0, height, step):
        photo = Image.fromarray(
            image[:, top:top + step].permute(1, 2, 0).contiguous().numpy())
        found = index_picture(prediction[top:top + step], colours).convert('RGB')
        mixed = overlay(photo, found)
        whole.paste(mixed, (0, top))
        for canvas, part in zip(small, (photo, found, mixed)):
            canvas.paste(part.reduce(factor), (0, top // factor))
    return whole, small


def side_by_side(pictures, gap=4):
    """Pillow images of the same height as one RGB image, with white gaps of `gap` pixels."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new('RGB', (width, pictures[0].height), (255, 255, 255))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def thumbnail(picture):
    """The picture as RGB, scaled down to THUMBNAIL if it is larger."""
    scale = min(1, THUMBNAIL[0] / picture.width, THUMBNAIL[1] / picture.height)
    size = [max(round(side * scale), 1) for side in picture.size]
    return picture.convert('RGB').resize(size, Image.BILINEAR, reducing_gap=3)


def file_stem(position, path):
    """'00007_name': unique for each position, and safe in paths on any system."""
    stem = re.sub(r'[^\w.-]+', '_', os.path.splitext(os.path.basename(path))[0])
    return f'{position:05d}_' + stem.encode()[:200].decode(errors='ignore')


def is_picture_name(name):
    """Whether the name of a file has the form of `file_stem`."""
    return bool(re.match(r'\d{5,}_', name))


class PictureWriter:
    """Writes pictures of every image into a folder, and at the end the gallery of all ranks.

    prediction/NAME.png has the predicted class indices with the class colours, overlay/NAME.jpg
    the image blended with these colours. With ground truth there are also error/NAME.png and
    panel/NAME.png: image | ground truth | prediction. NAME is the position and the stem of the
    image. The gallery is index.html.

    Args:
        folder: is created if needed. samples: `__call__` gets positions in this list.
        numbers: with which the names of pictures begin, one a sample; None: the positions.

    Raises:
        UserError: a file cannot be written, now or later.
    """

    def __init__(self, folder, cfg, samples, numbers=None):
        self.folder, self.samples = folder, samples
        self.numbers = range(len(samples)) if numbers is None else numbers
        self.names, self.colours = names_of_classes(cfg), colours_of_classes(cfg)
        self.rows = []
        self._write('', lambda path: os.makedirs(path, exist_ok=True))

    def __call__(self, position, image, label, predictions):
        """Write the pictures of an image; see `on_image` of `evaluate`.

        Args:
            label: (H, W) uint8; None without ground truth.
        """
        prediction, = [np.asarray(found) for found in predictions.values()]
        files, parts = self.draw(image, label, prediction, self.stem(position))
        small = side_by_side([thumbnail(picture) for picture in parts.values()])
        iou, accuracy = self.scores_of(label, prediction)
        self.rows.append({
            'position': position, 'name': self.samples[position].image,
            'size': prediction.shape[::-1], 'iou': iou, 'accuracy': accuracy,
            'parts': list(parts), 'files': files, 'thumbnail_size': small.size,
            'thumbnail': self.save('thumbnail', self.stem(position), small)})

    def draw(self, image, label, prediction, stem):
        """Write all but the thumbnail; ({kind: path}, {name: picture} for the thumbnail)."""
        if label is None:
            mixed, small = draw_prediction(image, prediction, self.colours)
            files = {'overlay': self.save('overlay', stem, mixed)}
            del mixed  # of a large image it takes much memory
            files['prediction'] = self.save('prediction', stem,
                                            index_picture(prediction, self.colours))
            return files, dict(zip(('image', 'prediction', 'overlay'), small))
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        found, truth = [index_picture(index, self.colours) for index in (prediction, label)]
        pictures = {'panel': side_by_side([photo, truth, found]), 'overlay': overlay(photo, found),
                    'prediction': found, 'error': error_picture(np.asarray(label), prediction)}
        files = {kind: self.save(kind, stem, picture) for kind, picture in pictures.items()}
        return files, {'image': photo, 'ground truth': truth, 'prediction': found,
                       'overlay': pictures['overlay'], 'error': pictures['error']}

    def stem(self, position):
        """The name, without its ending, of the pictures of a sample."""
        return file_stem(self.numbers[position], self.samples[position].image)

    def scores_of(self, label, prediction):
        """(mIoU over the classes in ground truth or prediction, pixel accuracy) of an image.

        Both are None without ground truth.
        """
        if label is None or bool((label == IGNORE).all()):
            return None, None
        prediction = torch.as_tensor(prediction).long()
        score = scores(confusion_matrix(label, prediction, len(self.names)))
        return score.miou, score.pixel_accuracy

    def save(self, kind, stem, picture):
        """Write a picture; returns its path relative to the folder."""
        is_photo = kind in ('overlay', 'thumbnail') and max(picture.size) <= JPEG_SIDE
        name = f'{kind}/{stem}.jpg' if is_photo else f'{kind}/{stem}.png'
        options = {'quality': 90, 'subsampling': 0} if is_photo else {}

        def write(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            picture.save(path, **options)
        self._write(name, write)
        return name

    def finish(self, world, title, facts, score=None, problems=()):
        """Write the gallery of the images of all ranks. Every rank must call it; rank 0 writes.

        Args:
            title, facts, score: as in `write_gallery`. problems: lines on images of this rank that
                have no pictures.

        Returns:
            The problems of all ranks.
        """
        rows = sorted(gather(self.rows, world), key=lambda row: row['position'])
        problems = sorted(gather(problems, world))
        if world.is_main:
            classes = list(zip(self.names, self.colours))
            self._write('index.html', lambda path: write_gallery(
                path, title, facts, rows, classes, score, problems))
            others = self.other_pictures(rows)
            if others:
                print(f'{self.folder}: {len(others)} pictures of an earlier run are in the same '
                      f'folders, such as {min(others)}; they are not in the gallery',
                      file=sys.stderr)
        return problems

    def other_pictures(self, rows):
        """Paths of pictures (by the pattern of `file_stem`) that belong to none of the rows."""
        own = {path for row in rows for path in (*row['files'].values(), row['thumbnail'])}
        kinds = {os.path.dirname(path) for path in own}
        return {f'{kind}/{name}' for kind in kinds
                for _, _, names in os.walk(os.path.join(self.folder, kind)) for name in names
                if is_picture_name(name)} - own

    def _write(self, name, write):
        path = os.path.join(self.folder, name) if name else self.folder
        try:
            return write(path)
        except OSError as error:
            raise UserError(f'--save-dir {self.folder}: {name or "the folder"} cannot be written '
                            f'({error.strerror or error})') from None


def gather(items, world):
    """The concatenated lists of all ranks, on every rank. Items must be valid in JSON."""
    own = json.dumps(items).encode()
    lengths = torch.zeros(world.size, dtype=torch.long, device=world.device)
    lengths[world.rank] = len(own)
    lengths = world.sum(lengths).tolist()
    # Each rank writes its text at its own place of a zero tensor; the sum contains all texts.
    starts = [sum(lengths[:rank]) for rank in range(world.size)]
    texts = torch.zeros(sum(lengths), dtype=torch.uint8, device=world.device)
    start = starts[world.rank]
    texts[start:start + len(own)] = torch.tensor(list(own), dtype=torch.uint8)
    texts = bytes(world.sum(texts).tolist())
    return [item for start, length in zip(starts, lengths)
            for item in json.loads(texts[start:start + length])]
