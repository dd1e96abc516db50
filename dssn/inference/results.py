"""The files of predictions without ground truth, and the record of what is done.

A second call with the same network and options predicts only the images that are new or changed.
"""
import json
import os

from PIL import Image

from dssn.atomic import write_atomically
from dssn.data.files import TIFF_ENDINGS, tiff_facts
from dssn.data.windows import rasterio_module, write_located
from dssn.errors import UserError
from dssn.inference.canvas import Canvas, ProbabilityFile
from dssn.inference.pictures import PictureWriter

RECORD, SETTING = 'record', 'setting.json'


class PredictionWriter(PictureWriter):
    """A `PictureWriter` that also writes confidence, probabilities and GeoTIFFs, and a record.

    confidence/NAME.png has the probability of the predicted class of each pixel, from 0 to the
    largest number of its type. probabilities/NAME.npz is a `ProbabilityFile`. geotiff/NAME.tif has
    class indices with the coordinates of a geo-referenced TIFF, if rasterio is installed.
    record/NAME.json has what is known of an image that is done. It is written last.

    Args:
        root: folder that the samples are relative to.
        setting: {name: value, valid in JSON} of all that the predictions depend on.
        confidence, probabilities: 'uint8', 'uint16' or None, what is written.
        annotations: `AnnotationWriter` that gets the predictions, too; None: none.

    Attributes:
        waiting: positions of the samples that are not done, the same on every rank.
        unlocated: geo-referenced images of this rank whose coordinates were not kept.

    Raises:
        UserError: the folder has predictions of another setting, or a file cannot be written.
    """

    def __init__(self, folder, cfg, samples, root, world, setting, confidence=None,
                 probabilities=None, annotations=None):
        super().__init__(folder, cfg, samples)
        self.root, self.kind, self.probabilities = root, confidence, probabilities
        self.annotations = annotations
        self.unlocated = []
        # One process looks at the files: another may write some before the next has looked.
        self.numbers, self.waiting, done = world.on_main(lambda: self._plan(setting))
        self.rows = [{**row, 'position': position, 'name': samples[position].image}
                     for position, row in done] if world.is_main else []

    def _plan(self, setting):
        """(numbers of the samples, positions to predict, [(position, row)] of those done)."""
        entries = self._read_record(setting)
        free = 1 + max([entry['number'] for entry in entries.values()], default=-1)
        numbers, waiting, done = [], [], []
        for position, sample in enumerate(self.samples):
            entry = entries.get(self.key(sample))
            if entry:
                numbers.append(entry['number'])
            else:
                numbers.append(free)
                free += 1
            if entry and self.is_done(position, entry):
                done.append((position, entry['row']))
            else:
                waiting.append(position)
        return numbers, waiting, done

    def _read_record(self, setting):
        """{key: entry} of the images that are done; writes the setting, if there is none yet."""
        folder, setting = os.path.join(self.folder, RECORD), json.loads(json.dumps(setting))
        path = os.path.join(folder, SETTING)
        if not os.path.exists(path):
            self._write(RECORD, lambda path: os.makedirs(path, exist_ok=True))
            self._write(f'{RECORD}/{SETTING}',
                        lambda path: write_atomically(path, json.dumps(setting, indent=1) + '\n'))
        earlier = read_json(path)
        changed = [f'{name} is {shown(setting.get(name))}, was {shown(earlier.get(name))}'
                   for name in sorted({*setting, *earlier})
                   if setting.get(name) != earlier.get(name)]
        if changed:
            raise UserError(f'--save-dir {self.folder}: holds predictions of another network or '
                            f'other options ({"; ".join(changed)}); name another folder, or remove '
                            f'{folder} to predict all images again')
        entries = [read_json(os.path.join(folder, name)) for name in sorted(os.listdir(folder))
                   if name.endswith('.json') and name != SETTING]
        return {entry['image']: entry for entry in entries}

    def key(self, sample):
        """What names an image in the record: its absolute path, with the number of a frame."""
        path = os.path.abspath(os.path.join(self.root, getattr(sample, 'video', sample.image)))
        return f'{path}#{sample.number}' if hasattr(sample, 'number') else path

    def facts(self, position):
        """The size and time of an image's file, which show whether it has changed."""
        sample = self.samples[position]
        found = os.stat(os.path.join(self.root, getattr(sample, 'video', sample.image)))
        return [found.st_size, found.st_mtime_ns]

    def is_done(self, position, entry):
        """Whether an image is as its entry in the record states, and all its files are there."""
        row = entry['row']
        if self.annotations and not self.annotations.is_done(position):
            return False
        try:
            return entry['facts'] == self.facts(position) and all(
                os.path.exists(os.path.join(self.folder, path))
                for path in (*row['files'].values(), row['thumbnail']))
        except OSError:
            return False  # the image cannot be read; predicting it reports why

    def canvas(self, position, size):
        """The `Canvas` for an image of (height, width) `size`."""
        target = self.probabilities and self._write(
            f'probabilities/{self.stem(position)}.npz',
            lambda path: ProbabilityFile(path, size, self.names, self.probabilities))
        for_annotations = self.annotations and self.annotations.needs_confidence
        return Canvas(size, self.kind or ('uint16' if for_annotations else None), target)

    def __call__(self, position, image, label, found):
        """Write the files of an image, and then its entry; see `on_image` of `predict_folder`."""
        super().__call__(position, image, label, {'prediction': found['prediction']})
        stem, sample, row = self.stem(position), self.samples[position], self.rows[-1]
        if self.kind:
            row['files']['confidence'] = self.save('confidence', stem,
                                                   Image.fromarray(found['confidence']))
        if self.probabilities:
            row['files']['probabilities'] = f'probabilities/{stem}.npz'
        if sample.image.lower().endswith(TIFF_ENDINGS) and tiff_facts(self.root, sample).located:
            self._write_located(stem, sample, row, found['prediction'])
        if self.annotations:
            self.annotations(position, found['prediction'], found.get('confidence'))
        entry = {'image': self.key(sample), 'facts': self.facts(position),
                 'number': self.numbers[position], 'row': row}
        self._write(f'{RECORD}/{stem}.json',
                    lambda path: write_atomically(path, json.dumps(entry)))

    def _write_located(self, stem, sample, row, prediction):
        if rasterio_module() is None:
            self.unlocated.append(sample.image)
            return
        name = f'geotiff/{stem}.tif'

        def write(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_located(path, prediction, self.colours, os.path.join(self.root, sample.image))
        self._write(name, write)
        row['files']['geotiff'] = name


def read_json(path):
    """The mapping in a file of the record. Raises a UserError if it cannot be read."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        if isinstance(content, dict):
            return content
        error = 'not a mapping'
    except (OSError, ValueError) as problem:
        error = problem
    raise UserError(f'{path}: cannot be read ({error}); remove it, and the predictions that it '
                    'records are made again')


def shown(value):
    """A value of a setting, for a message."""
    text = 'none' if value is None else str(value)
    return text if len(text) <= 40 else f'{text[:37]}...'
