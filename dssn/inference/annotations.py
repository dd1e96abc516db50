"""Predictions as the files of an annotation tool, for correction: LabelMe, CVAT, COCO."""
import hashlib
import json
import os
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from dssn.atomic import write_atomically
from dssn.data.classes import colours_of_classes, names_of_classes
from dssn.errors import UserError
from dssn.inference.outlines import outlines
from dssn.labels import IGNORE

FORMATS = ('labelme', 'cvat', 'coco')
LABELME_VERSION = '5.5.0'  # the format is that of this release


class ExportOptions(NamedTuple):
    """What is exported."""
    form: str              # one of FORMATS
    tolerance: float       # see `outlines`, pixels
    min_area: int          # see `outlines`, pixels
    min_confidence: float  # of a pixel, 0 to 1; pixels below it are in no shape


class AnnotationWriter:
    """Writes the predictions of images as shapes for an annotation tool.

    labelme/ has a file for each image, in the subfolders of the images. cvat/annotations.xml and
    coco/instances.json hold all images. They are put together from parts, a file for each image,
    which stay for the next call. A file of LabelMe that a person has changed is kept as it is.

    Args:
        folder: is created if needed. root: folder that the samples are relative to.
        options: `ExportOptions`.

    Raises:
        UserError: two images would have one file, or a file cannot be written, now or later.
    """

    def __init__(self, folder, root, samples, cfg, options):
        self.folder, self.root, self.samples, self.options = folder, root, samples, options
        self.names, self.colours = names_of_classes(cfg), colours_of_classes(cfg)
        owner = {}
        for position, sample in enumerate(samples):
            if hasattr(sample, 'video'):
                raise UserError(f'--export {options.form}: {sample.video} is a video, and the tool '
                                'opens image files; save its frames as images, and predict those')
            other = owner.setdefault(self.path(position), sample.image)
            if other != sample.image:
                raise UserError(f'--export {options.form}: {other} and {sample.image} would both '
                                f'be {self.path(position)}; predict them into two folders')

    @property
    def needs_confidence(self):
        return self.options.min_confidence > 0

    def path(self, position):
        """The file of an image: for LabelMe what it opens, otherwise a part."""
        name = self.samples[position].image.replace('\\', '/')
        if self.options.form == 'labelme':
            return os.path.join(self.folder, 'labelme', os.path.splitext(name)[0] + '.json')
        return os.path.join(self.folder, self.options.form, 'parts', name + '.json')

    def is_done(self, position):
        """Whether an image was exported before, with the same options and classes."""
        return self._earlier(position).get('export') == self._setting() or self.is_kept(position)

    def is_kept(self, position):
        """Whether a file of LabelMe was changed since it was written. It is never replaced."""
        earlier = self._earlier(position)
        return self.options.form == 'labelme' and bool(earlier) and (
            earlier.get('unchanged') != checksum(earlier.get('shapes')))

    def _earlier(self, position):
        """The content of an image's file; {} if there is none, or it is damaged."""
        try:
            with open(self.path(position), encoding='utf-8') as file:
                return dict(json.load(file))
        except (OSError, ValueError, TypeError):
            return {}

    def _setting(self):
        """What the file of an image depends on, beside the prediction."""
        return {**self.options._asdict(), 'classes': self.names}

    def __call__(self, position, prediction, confidence=None):
        """Write the shapes of an image.

        Args:
            prediction: class indices (H, W) uint8. confidence: (H, W), whole numbers that stand for
                0 to 1, as in a `Canvas`; None if `needs_confidence` is not set.
        """
        if self.is_kept(position):
            return
        mask = np.asarray(prediction)
        if self.needs_confidence:
            least = self.options.min_confidence * np.iinfo(confidence.dtype).max
            mask = np.where(confidence < least, np.uint8(IGNORE), mask)
        found = outlines(mask, self.options.tolerance, self.options.min_area)
        path = self.path(position)
        image = os.path.join(self.root, self.samples[position].image)
        if self.options.form == 'labelme':
            content = labelme_content(found, mask.shape, self.names, path, image)
        else:
            content = {'image': self.samples[position].image.replace('\\', '/'),
                       'size': mask.shape, 'shapes': [
                           [shape.value, shape.depth, shape.polygon.tolist()] for shape in found]}
        self.write(path, json.dumps({**content, 'export': self._setting()}))

    def finish(self, positions):
        """Write the file of all images, if the format has one. Only one process calls it.

        Args:
            positions: of the images that were predicted, now or before.

        Returns:
            The file, or for LabelMe the folder.
        """
        form = self.options.form
        if form == 'labelme':
            return os.path.join(self.folder, form)
        parts = []
        for position in positions:
            with open(self.path(position), encoding='utf-8') as file:
                parts.append(json.load(file))
        if form == 'cvat':
            path, text = 'annotations.xml', cvat_text(parts, self.names, self.colours)
        else:
            path, text = 'instances.json', json.dumps(coco_content(parts, self.names))
        return self.write(os.path.join(self.folder, form, path), text)

    def write(self, path, text):
        """Replace a file by a text; returns its path."""
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_atomically(path, text)
        except OSError as error:
            raise UserError(f'--save-dir {self.folder}: {path} cannot be written '
                            f'({error.strerror or error})') from None
        return path


def labelme_content(found, size, names, path, image):
    """The file of LabelMe at `path` for an image. Later shapes lie on top."""
    near = os.path.relpath(image, os.path.dirname(path)).replace(os.sep, '/')
    shapes = [
        {'label': names[shape.value], 'points': shape.polygon.tolist(), 'group_id': None,
         'description': '', 'shape_type': 'polygon', 'flags': {}, 'mask': None}
        for shape in found]
    return {'version': LABELME_VERSION, 'flags': {}, 'shapes': shapes, 'imagePath': near,
            'imageData': None, 'imageHeight': size[0], 'imageWidth': size[1],
            'unchanged': checksum(shapes)}


def checksum(shapes):
    """A text that changes with the labels and points of LabelMe's shapes."""
    try:
        facts = [[shape['label'], shape['points']] for shape in shapes]
    except (KeyError, TypeError):
        return ''
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def cvat_text(parts, names, colours):
    """The text of annotations.xml of 'CVAT for images 1.1'. A higher z_order lies on top."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', '<annotations>', '<version>1.1</version>',
             '<meta><task><labels>']
    lines += [f'<label><name>{escape(name)}</name><color>#{bytes(colour).hex()}</color>'
              '<attributes></attributes></label>' for name, colour in zip(names, colours)]
    lines.append('</labels></task></meta>')
    for number, part in enumerate(parts):
        height, width = part['size']
        lines.append(f'<image id="{number}" name={quoteattr(part["image"])} width="{width}" '
                     f'height="{height}">')
        for value, depth, polygon in part['shapes']:
            points = ';'.join(f'{x:.2f},{y:.2f}' for x, y in polygon)
            lines.append(f'<polygon label={quoteattr(names[value])} source="auto" occluded="0" '
                         f'points="{points}" z_order="{depth}"></polygon>')
        lines.append('</image>')
    return '\n'.join(lines + ['</annotations>', ''])


def coco_content(parts, names):
    """The content of an instances file of COCO. A region in a hole has fewer pixels."""
    images, annotations = [], []
    for number, part in enumerate(parts, 1):
        height, width = part['size']
        images.append({'id': number, 'file_name': part['image'], 'width': width, 'height': height})
        for value, _, polygon in part['shapes']:
            points = np.array(polygon)
            low, high = points.min(0), points.max(0)
            x, y = points.T
            annotations.append({
                'id': len(annotations) + 1, 'image_id': number, 'category_id': value + 1,
                'segmentation': [points.ravel().tolist()], 'iscrowd': 0,
                'area': float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2),
                'bbox': [*low.tolist(), *(high - low).tolist()]})
    return {'images': images, 'annotations': annotations, 'categories': [
        {'id': number, 'name': name, 'supercategory': ''} for number, name in enumerate(names, 1)]}
