"""Pictures of predictions: index PNGs, overlays, error maps, panels, and the gallery of all."""
import json
import os
import re
import sys

import numpy as np
import torch
from PIL import Image

from dssn.config import colours_of_classes, names_of_classes
from dssn.data.classes import IGNORE_COLOUR
from dssn.errors import UserError
from dssn.evaluation import confusion_matrix, scores
from dssn.gallery import CORRECT_COLOUR, WRONG_COLOUR, write_gallery

THUMBNAIL = 240, 180   # pixels that one part of a thumbnail fits in
JPEG_SIDE = 65500      # JPEG ends here


def index_picture(index, colours):
    """Class indices (H, W), 255 = ignore, as a Pillow image of mode P with the classes' palette."""
    table = np.full((256, 3), IGNORE_COLOUR, np.uint8)
    table[:len(colours)] = colours
    picture = Image.fromarray(np.asarray(index).astype(np.uint8))
    picture.putpalette(table.tobytes())
    return picture


def overlay(image, prediction):
    """A Pillow image half covered by the colours of an `index_picture`."""
    return Image.blend(image, prediction.convert('RGB'), 0.5)


def error_picture(label, prediction):
    """Where (H, W) class indices differ, as mode P: 0 correct, 1 wrong, 255 ignored in `label`."""
    error = np.where(label == 255, 255, label != prediction)
    return index_picture(error, [CORRECT_COLOUR, WRONG_COLOUR])


def side_by_side(pictures, gap=4):
    """Pillow images of one height as one RGB image, white between them."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new('RGB', (width, pictures[0].height), (255, 255, 255))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def thumbnail(picture):
    """The picture as RGB, made to fit in THUMBNAIL where it is larger."""
    scale = min(1, THUMBNAIL[0] / picture.width, THUMBNAIL[1] / picture.height)
    size = [max(round(side * scale), 1) for side in picture.size]
    return picture.convert('RGB').resize(size, Image.BILINEAR, reducing_gap=3)


def file_stem(position, path):
    """'00007_name': unlike any other position's, and safe as part of a path on any system."""
    stem = re.sub(r'[^\w.-]+', '_', os.path.splitext(os.path.basename(path))[0])
    return f'{position:05d}_' + stem.encode()[:200].decode(errors='ignore')


class PictureWriter:
    """Writes pictures of every image into a folder, and at the end the gallery of all ranks'.

    prediction/NAME.png is the predicted class indices with the classes' palette, overlay/NAME.jpg
    the image under their colours; where there is truth also error/NAME.png and panel/NAME.png:
    image | truth | prediction. NAME is position and stem of the image, index.html the gallery.

    Args:
        folder: made where it does not exist. samples: of which the writer is told positions.

    Raises:
        UserError: a file cannot be written, here and later.
    """

    def __init__(self, folder, cfg, samples):
        self.folder, self.samples = folder, samples
        self.names, self.colours = names_of_classes(cfg), colours_of_classes(cfg)
        self.rows = []
        self._write('', lambda path: os.makedirs(path, exist_ok=True))

    def __call__(self, position, image, label, predictions):
        """See `evaluate`; `label` is None where there is no truth."""
        prediction, = [np.asarray(found) for found in predictions.values()]
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        found = index_picture(prediction, self.colours)
        files = {'overlay': overlay(photo, found), 'prediction': found}
        parts = {'image': photo, **files}
        if label is not None:
            truth = index_picture(label, self.colours)
            files = {'panel': side_by_side([photo, truth, found]), **files,
                     'error': error_picture(np.asarray(label), prediction)}
            parts = {'image': photo, 'truth': truth, 'prediction': found,
                     'overlay': files['overlay'], 'error': files['error']}
        stem = file_stem(position, self.samples[position].image)
        small = side_by_side([thumbnail(picture) for picture in parts.values()])
        iou, accuracy = self.scores_of(label, prediction)
        self.rows.append({
            'position': position, 'name': self.samples[position].image, 'size': photo.size,
            'iou': iou, 'accuracy': accuracy, 'parts': list(parts),
            'files': {kind: self.save(kind, stem, picture) for kind, picture in files.items()},
            'thumbnail': self.save('thumbnail', stem, small), 'thumbnail_size': small.size})

    def scores_of(self, label, prediction):
        """(IoU, pixel accuracy) of one image, over the classes in its truth or prediction."""
        if label is None or bool((label == 255).all()):
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
        """Rank 0 writes the gallery of all ranks' images; every rank must call it.

        Args:
            title, facts, score: as in `write_gallery`. problems: this rank's lines on images that
                have no pictures.

        Returns:
            All ranks' problems.
        """
        rows = sorted(gather(self.rows, world), key=lambda row: row['position'])
        problems = sorted(gather(problems, world))
        if world.is_main:
            classes = list(zip(self.names, self.colours))
            self._write('index.html', lambda path: write_gallery(
                path, title, facts, rows, classes, score, problems))
            others = self.not_in(rows)
            if others:
                print(f'{self.folder}: {len(others)} pictures of an earlier run lie among the new '
                      f'ones, such as {min(others)}; the gallery leaves them out', file=sys.stderr)
        return problems

    def not_in(self, rows):
        """Pictures in the rows' folders, by `file_stem`'s names, that are of none of the rows."""
        own = {path for row in rows for path in (*row['files'].values(), row['thumbnail'])}
        kinds = {os.path.dirname(path) for path in own}
        return {f'{kind}/{name}' for kind in kinds
                for _, _, names in os.walk(os.path.join(self.folder, kind)) for name in names
                if re.match(r'\d{5,}_', name)} - own

    def _write(self, name, write):
        path = os.path.join(self.folder, name) if name else self.folder
        try:
            write(path)
        except OSError as error:
            raise UserError(f'--save-dir {self.folder}: {name or "the folder"} cannot be written '
                            f'({error.strerror or error})') from None


def gather(items, world):
    """All ranks' lists as one, on every rank; items are what JSON can hold."""
    own = json.dumps(items).encode()
    lengths = torch.zeros(world.size, dtype=torch.long, device=world.device)
    lengths[world.rank] = len(own)
    lengths = world.sum(lengths).tolist()
    # Each rank's text goes to a place of its own, so that the sum is all of them in a row.
    starts = [sum(lengths[:rank]) for rank in range(world.size)]
    texts = torch.zeros(sum(lengths), dtype=torch.uint8, device=world.device)
    start = starts[world.rank]
    texts[start:start + len(own)] = torch.tensor(list(own), dtype=torch.uint8)
    texts = bytes(world.sum(texts).tolist())
    return [item for start, length in zip(starts, lengths)
            for item in json.loads(texts[start:start + length])]
