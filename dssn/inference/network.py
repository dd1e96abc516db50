"""A trained network in Python: `dssn.load(checkpoint)`, and predictions of images.

C classes, H x W the size of an image as viewers show it.
"""
import os
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image

from dssn import config, methods, precision
from dssn.data.classes import colours_of_classes, names_of_classes
from dssn.data.datasets import to_tensor
from dssn.data.files import as_rgb, check_depth, open_image
from dssn.data.headers import decode_upright
from dssn.data.lists import Sample
from dssn.errors import UserError
from dssn.inference.canvas import Canvas
from dssn.inference.evaluation import Predictor, predictor
from dssn.inference.memory import explained_memory
from dssn.inference.predict import SMALLER, predict_image
from dssn.inference.tiles import DEFAULT, Tiling
from dssn.models import build_model
from dssn.models.weights import choose_weights, load_weights, read_torch_file

Picture = Union[str, 'os.PathLike[str]', Image.Image, np.ndarray]


class Network:
    """A network with the weights of a checkpoint; `load` makes one.

    Attributes:
        classes: names of the classes, in index order.
        colours: their colours (red, green, blue), 0..255.
        model: the PyTorch network, in evaluation mode: normalised images (N, 3, H, W) -> logits
            (N, C, H, W).
        config: the resolved config.
    """

    def __init__(self, model: torch.nn.Module, cfg, predict: Predictor, tiling: Tiling) -> None:
        self.model, self.config = model.eval(), cfg
        self.classes: List[str] = names_of_classes(cfg)
        self.colours: List[Tuple[int, int, int]] = colours_of_classes(cfg)
        self._predict, self._tiling = predict, tiling
        self.device = torch.device('cpu')

    def to(self, device: Union[str, torch.device]) -> 'Network':
        """Move the network to a device, such as 'cuda'; returns the network.

        Raises:
            UserError: there is no such device, or it does not support the config.
        """
        try:
            device = torch.device(device)
            precision.check_evaluation(self.config, device)
            precision.set_arithmetic(self.config, device)
            self.model.to(device)
        except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
            reason = ' '.join(str(error).split()).split('. ')[0]
            raise UserError(f"device '{device}' cannot be used: {reason}; use 'cpu', or 'cuda' "
                            'where PyTorch finds a GPU') from None
        self.device = device
        return self

    def predict(self, image: Picture) -> np.ndarray:
        """The class index of each pixel, (H, W) uint8: what `eval.py --images` writes.

        Args:
            image: path of a file, Pillow image, or array (H, W, 3) uint8 of RGB. A file or a Pillow
                image is turned as viewers show it (EXIF); transparency is left out.

        Raises:
            UserError: the image cannot be read, or is of another kind.
        """
        return self._canvas(image).index.numpy()

    def probabilities(self, image: Picture) -> np.ndarray:
        """The probability of each class at each pixel, (C, H, W) float32; see `predict`.

        They need 4 C H W bytes.
        """
        found = _Probabilities()
        self._canvas(image, found)
        return found.array

    @torch.no_grad()
    def _canvas(self, image: Picture, probabilities: Optional['_Probabilities'] = None) -> Canvas:
        name, pixels = read_picture(image)
        size = tuple(pixels.shape[1:])
        canvas = Canvas(size, probabilities=probabilities)
        if probabilities:
            probabilities.array = np.empty((len(self.classes), *size), np.float32)
        with explained_memory(name, size, SMALLER):
            predict_image(self._predict, self._model(), pixels, self.device, self._tiling, canvas)
        return canvas

    def _model(self):
        return precision.half_in_evaluation(self.model, self.config, self.device)


class _Probabilities:
    """Gets the blocks of a `Canvas`, as a `ProbabilityFile` does, and keeps them as an array."""

    def __init__(self) -> None:
        self.array, self.top = np.empty((0, 0, 0), np.float32), 0

    def add(self, left: int, prob: torch.Tensor) -> None:
        height, width = prob.shape[1:]
        self.array[:, self.top:self.top + height, left:left + width] = prob.cpu().numpy()
        if left + width == self.array.shape[2]:
            self.top += height


def read_picture(image: Picture) -> Tuple[str, torch.Tensor]:
    """(name for messages, (3, H, W) uint8) of what `Network.predict` takes.

    Raises:
        UserError: the image cannot be read, or is of another kind.
    """
    if isinstance(image, (str, os.PathLike)):
        if not os.path.isfile(image):
            raise UserError(f'image: {os.fspath(image)}: no such file; give the path of an image')
        folder, name = os.path.split(os.fspath(image))
        return os.fspath(image), to_tensor(open_image(folder, Sample(name, None, 'image')))
    if isinstance(image, Image.Image):
        return read_pillow(image)
    if not isinstance(image, np.ndarray):
        raise UserError(f'image: {type(image).__name__} is not an image; give a path, a Pillow '
                        'image, or an array uint8 of shape (height, width, 3)')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f'image: an array {image.dtype} of shape {image.shape}; give uint8 of '
                        'shape (height, width, 3), red, green and blue from 0 to 255')
    return 'in memory', torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def read_pillow(image: Image.Image) -> Tuple[str, torch.Tensor]:
    """The same for a Pillow image. Its pixels are checked as those of a file are."""
    sample = Sample(getattr(image, 'filename', '') or 'in memory', None, 'image')
    if getattr(image, 'fp', None) is None:
        image = image.copy()  # decoded: what its file stated is gone, so its mode counts
    try:
        check_depth('', sample, image)
        return sample.image, to_tensor(as_rgb('', sample, decode_upright(image)[0]))
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost any error
        raise UserError(f'image: {sample.image} cannot be read: {error}; copy or download it '
                        'again') from None


def read_config(content, path, config_path=None, overrides=None, assignments=()):
    """The config of a checkpoint, or of a YAML file.

    Args:
        content: of the checkpoint at `path`. config_path: a YAML file to read instead; None: the
            config in the checkpoint. overrides: {key: value}. assignments: list of 'key=value'.

    Raises:
        UserError: there is no valid config.
    """
    if config_path:
        return config.load(config_path, overrides, assignments)
    if not isinstance(content, dict) or not isinstance(content.get('config'), dict):
        raise UserError(f'{path}: contains no config; give the one it was trained with: '
                        "--config configs/....yaml, in Python config='configs/....yaml'")
    # Settings in a checkpoint are not trusted: the user must set `allow_outside`.
    values = dict(content['config'], allow_outside=False)
    if isinstance(values.get('classes'), str):
        raise UserError(f'{path}: `classes` in its config is not a list of names; give a config: '
                        "--config configs/....yaml, in Python config='configs/....yaml'")
    # Predictions do not depend on the method. The oracles of experiments have DSSN's keys, and are
    # known only to programs that import them.
    if not is_known_method(values.get('method')):
        values['method'] = 'DSSN'
    return config.from_dict(values, path, overrides, assignments)


def is_known_method(name):
    try:
        return bool(methods.find(name, ''))
    except UserError:
        return False


def load(checkpoint: Union[str, 'os.PathLike[str]'], config: Optional[str] = None,
         weights: Optional[str] = None, device: Union[str, torch.device] = 'cpu',
         settings: Sequence[str] = (), scales: Sequence[float] = (1.0,), flip: bool = False,
         tile: int = DEFAULT.tile, overlap: Optional[int] = None) -> Network:
    """Load a checkpoint for prediction. No code in the file is run.

        net = dssn.load('best.pth')
        mask = net.predict('photo.jpg')          # (H, W) uint8
        print(net.classes[mask[0, 0]])

    The arguments are the options of `eval.py`, and so are their defaults. As there, a key of the
    config may set PyTorch's global flags of arithmetic (TF32, deterministic algorithms).

    Args:
        checkpoint: file with weights, of this or another project.
        config: YAML file, for a checkpoint that carries no config (--config).
        weights: 'student' or 'teacher', if the file holds both; None: the student (--weights).
        device: such as 'cpu' or 'cuda'.
        settings: config keys to override, such as ['protocol=sliding_window'] (--set).
        scales, flip: average the predictions of scaled and mirrored copies (--scales, --flip).
        tile, overlap: larger images are predicted in tiles (--tile, --overlap); overlap None: a
            quarter of `tile`.

    Raises:
        UserError: the file is no checkpoint, its weights do not fit its config, or an argument is
            wrong.
    """
    path = os.fspath(checkpoint)
    overlap = tile // 4 if overlap is None else overlap
    if weights not in (None, 'student', 'teacher'):
        raise UserError(f"weights: {weights!r} must be 'student', 'teacher' or None")
    if tile < 1 or not 0 <= 2 * overlap <= tile:
        raise UserError(f'tile: {tile}, overlap: {overlap} must be at least 1, and from 0 to half '
                        'of it')
    if not scales or not all(0 < scale <= 8 for scale in scales):
        raise UserError(f'scales: {scales!r} must be numbers above 0 and at most 8')
    content = read_torch_file(path)
    cfg = read_config(content, path, config, None, list(settings))
    model = build_model(cfg)
    state, _ = choose_weights(content, path, model.state_dict(), weights)
    load_weights(model, state, path)
    predict = predictor(cfg.protocol, cfg.crop_size, list(scales), flip)
    return Network(model, cfg, predict, Tiling(tile, overlap)).to(device)
