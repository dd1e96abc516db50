"""Parts of large TIFF files, read without decoding the whole file, and their coordinates.

Both need rasterio, which no other module needs.
"""
import contextlib
import os
import warnings

import numpy as np
import torch

from dssn.data.files import FileProblem
from dssn.errors import UserError

CACHE = 128  # MiB of decoded blocks that GDAL keeps


def rasterio_module():
    """The module rasterio; None if it is not installed."""
    try:
        import rasterio
    except ImportError:
        return None
    return rasterio


class TiffWindows:
    """An image (3, H, W) uint8 in a TIFF file, of which parts are read when they are asked for.

    `windows[:, top:bottom, left:right]` gives a part as a tensor, like the tensor of the image.

    Args:
        folder, sample: of an image whose `TiffFacts` are `plain`.
    """

    def __init__(self, folder, sample):
        self.path, self.sample = os.path.join(folder, sample.image), sample
        with self.opened() as file:
            self.bands = [1, 2, 3] if file.count >= 3 else [1, 1, 1]
            self.shape = torch.Size((3, file.height, file.width))

    def __getitem__(self, slices):
        _, rows, columns = slices if len(slices) == 3 else (*slices, slice(None))
        rows, columns = [range(*part.indices(side))
                         for part, side in zip((rows, columns), self.shape[1:])]
        with self.opened() as file:
            window = (rows.start, rows.stop), (columns.start, columns.stop)
            return torch.from_numpy(file.read(self.bands, window=window))

    @contextlib.contextmanager
    def opened(self):
        """The opened file. Raises a FileProblem if it cannot be read."""
        rasterio = rasterio_module()
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR'), \
                    quiet(rasterio), rasterio.open(self.path, driver='GTiff') as file:
                yield file
        except rasterio.errors.RasterioError as error:
            text = ' '.join(str(error.__cause__ or error).split())
            raise FileProblem(f'{self.sample.place}: {self.path} cannot be read: {text}; copy or '
                              'download it again', 'unreadable', self.sample.image) from None


@contextlib.contextmanager
def quiet(rasterio):
    """A context without rasterio's warning of files without coordinates."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
        yield


def write_located(path, index, colours, source):
    """Write class indices as a GeoTIFF with the coordinates of their image.

    The file has one band of 8 bits, the class colours, and the coordinate system, transformation
    and ground control points of the image.

    Args:
        index: (H, W) uint8. colours: [(red, green, blue)] in index order. source: path of the
            image, a TIFF.

    Raises:
        UserError: the coordinates cannot be read, or the file cannot be written.
    """
    rasterio = rasterio_module()
    index = np.asarray(index)
    try:
        with quiet(rasterio), rasterio.open(source, driver='GTiff') as file:
            points, system = file.gcps
            place = {'gcps': points, 'crs': system} if points else \
                {'transform': file.transform, 'crs': file.crs}
        with quiet(rasterio), rasterio.open(
                path, 'w', driver='GTiff', height=index.shape[0], width=index.shape[1], count=1,
                dtype='uint8', compress='deflate', tiled=True, blockxsize=256, blockysize=256,
                **place) as file:
            file.write(index, 1)
            file.write_colormap(1, {i: tuple(colour) for i, colour in enumerate(colours)})
    except rasterio.errors.RasterioError as error:
        raise UserError(f'{path}: cannot be written with the coordinates of {source}: '
                        f'{" ".join(str(error).split())}; remove the coordinates from the image, '
                        'or uninstall rasterio: then only the PNG is written') from None
