"""The prediction of one image, filled block by block: classes, confidence, probabilities.

C classes, H x W the size of the image.
"""
import os
import zipfile

import numpy as np
import torch

WHOLE_NUMBERS = {'uint8': np.uint8, 'uint16': np.uint16}  # the types in which files store fractions


def quantised(fractions, kind):
    """Numbers from 0 to 1 (a tensor) as the nearest whole numbers from 0 to the type's largest.

    Args:
        kind: a key of WHOLE_NUMBERS.
    """
    largest = np.iinfo(WHOLE_NUMBERS[kind]).max
    return np.rint(fractions.cpu().numpy() * largest).clip(0, largest).astype(WHOLE_NUMBERS[kind])


class Canvas:
    """The prediction of an image.

    Args:
        size: (height, width). confidence: 'uint8' or 'uint16', the type of the confidence; None:
            it is not kept. probabilities: `ProbabilityFile` that gets the probabilities, or None.

    Attributes:
        index: class indices (H, W) uint8. confidence: (H, W), the probability of the class of each
            pixel, as the type's largest number times it; None.
    """

    def __init__(self, size, confidence=None, probabilities=None):
        self.index = torch.empty(tuple(size), dtype=torch.uint8)
        self.kind, self.probabilities = confidence, probabilities
        self.confidence = confidence and np.empty(tuple(size), WHOLE_NUMBERS[confidence])

    @property
    def needs_probabilities(self):
        return bool(self.kind or self.probabilities)

    def add(self, top, left, index, prob=None):
        """Fill a block.

        Args:
            index: class indices (h, w). prob: class probabilities (C, h, w); may be None without
                `needs_probabilities`.
        """
        here = slice(top, top + index.shape[0]), slice(left, left + index.shape[1])
        self.index[here] = index.to(torch.uint8).cpu()
        if self.kind:
            self.confidence[here] = quantised(prob.max(0).values, self.kind)
        if self.probabilities:
            self.probabilities.add(left, prob)


class ProbabilityFile:
    """Writes class probabilities into an .npz file, row by row, so that they need little memory.

    The file has `probabilities` (H, W, C), whole numbers from 0 to the largest of their type, and
    `classes`, the names. `numpy.load` reads it.

    Args:
        path: of the file; it appears when it is complete. size: (height, width). names: of the
            classes. kind: 'uint8' or 'uint16'.

    Raises:
        OSError: the file cannot be written, now or later.
    """

    def __init__(self, path, size, names, kind):
        self.path, self.kind, self.width = path, kind, size[1]
        self.shape = (*size, len(names))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.archive = zipfile.ZipFile(f'{path}.tmp', 'w', zipfile.ZIP_DEFLATED)
        with self.archive.open('classes.npy', 'w') as file:
            np.lib.format.write_array(file, np.array(names), allow_pickle=False)
        self.file = self.archive.open('probabilities.npy', 'w', force_zip64=True)
        np.lib.format.write_array_header_1_0(self.file, {
            'descr': np.dtype(WHOLE_NUMBERS[kind]).newbyteorder('<').str, 'fortran_order': False,
            'shape': self.shape})
        self.rows = None  # (h, W, C), the row of blocks that is not complete yet

    def add(self, left, prob):
        """Add a block (C, h, w). Blocks come row by row, from left to right, as in `blended`."""
        if left == 0:
            self.rows = np.empty((prob.shape[1], *self.shape[1:]), WHOLE_NUMBERS[self.kind])
        self.rows[:, left:left + prob.shape[2]] = quantised(prob.permute(1, 2, 0), self.kind)
        if left + prob.shape[2] == self.width:
            self.file.write(self.rows.astype(self.rows.dtype.newbyteorder('<'), copy=False).data)

    def close(self, complete=True):
        """Finish the file, or remove it if it is not complete."""
        self.file.close()
        self.archive.close()
        if complete:
            os.replace(f'{self.path}.tmp', self.path)
        else:
            os.remove(f'{self.path}.tmp')
