"""`python -m dssn export`: a network as ONNX or torch.export program, compared with PyTorch.

N images, C classes, H x W the size of an image.
"""
import contextlib
import io
import json
import os
import warnings
from typing import NamedTuple

import numpy as np
import torch

from dssn.atomic import write_atomically
from dssn.batch import MEAN, STD, normalise
from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.inference.network import load
from dssn.inference.predict import find_images, read_image
from dssn.tools.experiments import oracles  # noqa: F401, registers its methods

SINCE = 2, 14      # the first release whose exports are tested
PACKAGES = 'onnx', 'onnxscript', 'onnxruntime'
SMALLEST = 32      # side of the smallest image, pixels
IMAGES, SIDE = 4, 1024   # images that are compared, at most; longest side of what is compared
EQUAL, CLOSE = 0.999, 1e-3   # see `check_agreement`
OUTPUTS = {
    'logits': 'float32 (n, classes, h, w), before the softmax',
    'softmax': 'float32 (n, classes, h, w), probabilities',
    'argmax': 'uint8 (n, h, w), class indices',
}


def add_arguments(parser):
    """Export a network for other programs, and compare it with PyTorch on real images.

        python -m dssn export best.pth net.onnx --normalise --output argmax
        python -m dssn export best.pth net.pt2 --check photos

    The ending of OUT decides the format: .onnx is ONNX, for ONNX Runtime and others, and needs
    `pip install onnx onnxscript onnxruntime`; .pt2 is a program of torch.export, for PyTorch
    without this project. Number, height and width of the images are free. The class names and
    colours are in the file's metadata.

    The file is compared with the PyTorch network on a few images, in several sizes and numbers.
    They come from --check, or from the config's val list. The file is written only if it agrees.
    The graph predicts whole images in float32; protocol, tiles and eval_amp are not part of it.
    """
    parser.add_argument('checkpoint', metavar='CHECKPOINT')
    parser.add_argument('out', metavar='OUT', help='file to write: .onnx or .pt2')
    parser.add_argument('--normalise', action='store_true',
                        help='the graph takes images as uint8 RGB and normalises them (default: it '
                             'takes float32 images that are already normalised)')
    parser.add_argument('--output', choices=OUTPUTS, default='logits',
                        help='what the graph returns (default: logits); argmax: class indices')
    parser.add_argument('--check', nargs='+', metavar='PATH',
                        help='images to compare on: files, folders, or patterns (default: those of '
                             "the config's val list)")
    parser.add_argument('--config', help='YAML file (default: the config in the checkpoint)')
    parser.add_argument('--weights', choices=('student', 'teacher'),
                        help='network to export, if the file has both (default: student)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys, such as data_root')


def run(args):
    ending = os.path.splitext(args.out)[1].lower()
    if ending not in ('.onnx', '.pt2'):
        raise UserError(f'OUT {args.out}: the ending decides the format; name it .onnx or .pt2')
    check_packages(ending)
    folder = os.path.dirname(args.out) or '.'
    if not os.path.isdir(folder):
        raise UserError(f'OUT {args.out}: no folder {folder}; make it, or name another')
    net = load(args.checkpoint, args.config, args.weights, settings=args.assignments)
    images = images_to_compare(args, net.config)
    graph = Graph(net.model, args.normalise, args.output).eval()
    print(f'exporting {args.checkpoint} to {args.out}', flush=True)
    facts = metadata(net, args, graph.patch)
    try:
        data, call = (as_onnx if ending == '.onnx' else as_program)(graph, facts)
    except Exception as error:  # the exporters raise almost any error
        text = ' '.join(str(error).split())[:300]
        raise UserError(f'{args.checkpoint}: cannot be exported ({type(error).__name__}: {text}); '
                        f'{other_ways(args)}') from error
    found = compare(graph, call, images)
    for line in found:
        print(line.text(args.output))
    check_agreement(found, args)
    try:
        write_atomically(args.out, data)
    except OSError as error:
        raise UserError(f'OUT {args.out}: cannot be written ({error.strerror})') from None
    print(f"{args.out}: {len(data) / 2 ** 20:.1f} MiB; input images: {facts['input']}; output "
          f"{args.output}: {facts['output']}")
    if net.config.protocol == 'sliding_window':
        print(f'note: the config predicts by windows of {net.config.crop_size} pixels; the graph '
              'predicts whole images, so call it for windows to get the same')
    return 0


def check_packages(ending):
    """Raise a UserError if this PyTorch is too old, or a package is missing."""
    if tuple(map(int, torch.__version__.split('.')[:2])) < SINCE:
        raise UserError(f"export needs PyTorch {'.'.join(map(str, SINCE))} or newer, this is "
                        f'{torch.__version__}; checkpoints are the same for all versions, so '
                        'export with an environment of requirements.txt')
    if ending == '.onnx':
        missing = []
        for name in PACKAGES:
            try:
                __import__(name)
            except ImportError:
                missing.append(name)
        if missing:
            raise UserError(f"export to .onnx needs {', '.join(missing)}: pip install "
                            f"{' '.join(missing)}")


def images_to_compare(args, cfg):
    """Up to IMAGES images (3, H, W) uint8, at even distances in --check or the val list.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    if args.check:
        folder, samples, _ = find_images(args.check, args.out, flag='--check')
    else:
        folder = cfg.data_root
        try:
            samples = read_list(cfg.val_id_path, False, cfg.allow_outside)
        except UserError as error:
            raise UserError(f'{error}; or name images to compare on: --check PATH') from None
    count = min(IMAGES, len(samples))
    try:
        return [read_image(folder, samples[i * len(samples) // count]) for i in range(count)]
    except UserError as error:
        raise UserError(f'{error}; or name other images to compare on: --check PATH') from None


class Graph(torch.nn.Module):
    """What is exported: a network, with normalisation before it and softmax or argmax after it.

    Attributes:
        patch: height and width of an image must be multiples of it.
    """

    def __init__(self, network, normalises, output):
        super().__init__()
        self.patch = getattr(network, 'patch', 1)
        self.network, self.normalises, self.output = network, normalises, output
        self.register_buffer('mean', torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer('std', torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images):
        """(N, 3, H, W), uint8 RGB or normalised float32 -> one of OUTPUTS."""
        if self.normalises:
            images = (images.float() / 255 - self.mean) / self.std
        logits = self.network(images)
        if self.output == 'argmax':
            return logits.argmax(1).to(torch.uint8)
        return logits.softmax(1) if self.output == 'softmax' else logits

    def prepared(self, images):
        """Images (N, 3, H, W) uint8 as the input of the graph."""
        return images if self.normalises else normalise(images)


def metadata(net, args, patch):
    """{name: text} that the file carries. `patch`: see `Graph`."""
    sides = '' if patch == 1 else f', h and w multiples of {patch}'
    kind = 'uint8 RGB' if args.normalise else 'float32 RGB, (value / 255 - mean) / std'
    return {'classes': json.dumps(net.classes), 'colours': json.dumps(net.colours),
            'input': f'{kind} (n, 3, h, w){sides}', 'output': OUTPUTS[args.output],
            'mean': json.dumps(MEAN), 'std': json.dumps(STD)}


def example(graph):
    """((images,), dynamic shapes), from which a graph is traced; its sizes are not kept."""
    patch, dim = graph.patch, torch.export.Dim
    least = -(-SMALLEST // patch)  # patches
    images = torch.zeros(2, 3, 3 * least * patch, 4 * least * patch, dtype=torch.uint8)
    sides = [dim(name, min=least) for name in 'hw']
    height, width = sides if patch == 1 else [patch * side for side in sides]
    return (graph.prepared(images),), {'images': {0: dim('n'), 2: height, 3: width}}


@contextlib.contextmanager
def quiet():
    """A context without the exporters' warnings, which are about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def as_onnx(graph, facts):
    """(bytes of an ONNX file, function array -> array that runs them)."""
    import onnxruntime
    inputs, shapes = example(graph)
    with quiet():
        proto = torch.onnx.export(
            graph, inputs, dynamo=True, dynamic_shapes=shapes, input_names=['images'],
            output_names=['result'], external_data=False, verbose=False).model_proto
    for name, text in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, text
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
    return data, lambda images: session.run(None, {'images': images})[0]


def as_program(graph, facts):
    """(bytes of a .pt2 file, function array -> array that runs them)."""
    inputs, shapes = example(graph)
    file = io.BytesIO()
    with quiet():
        torch.export.save(torch.export.export(graph, inputs, dynamic_shapes=shapes), file,
                          extra_files={'dssn.json': json.dumps(facts)})
        file.seek(0)
        program = torch.export.load(file).module()

    @torch.no_grad()
    def call(images):
        return program(torch.from_numpy(images)).numpy()
    return file.getvalue(), call


class Agreement(NamedTuple):
    """How the file and the PyTorch network agree on some images.

    With argmax, `difference` is the largest gap, in probability, between the class of PyTorch and
    the class of the file at the same pixel. Otherwise it is that of the outputs.
    """
    shape: tuple       # (N, H, W)
    difference: float
    largest: float     # the largest absolute value of PyTorch's output
    equal: int         # pixels of the same class

    @property
    def pixels(self):
        return int(np.prod(self.shape))

    def text(self, output):
        kind = 'probability' if output != 'logits' else 'logits'
        return (f'  {self.shape[0]} x {self.shape[1]} x {self.shape[2]}: largest difference of '
                f'{kind} {self.difference:.2g} (largest value {self.largest:.3g}), '
                f'equal pixels {100 * self.equal / self.pixels:.4f} %')


@torch.no_grad()
def compare(graph, call, images):
    """[`Agreement`] of the file with the PyTorch network: each image alone, then two, then three.

    Args:
        call: runs the file. images: (3, H, W) uint8. Groups are made of the middles of the images,
            in two smaller sizes with odd sides.
    """
    found = [agreement(graph, call, middle(image, SIDE, SIDE, graph.patch)[None])
             for image in images]
    height, width = [min(SIDE, *[image.shape[axis] for image in images]) for axis in (1, 2)]
    for count, part in ((2, 0.7), (3, 0.45)):
        sides = [int(side * part) // 2 * 2 + 1 for side in (height, width)]
        group = [middle(images[i % len(images)], *sides, graph.patch) for i in range(count)]
        found.append(agreement(graph, call, torch.stack(group)))
    return found


def middle(image, height, width, patch=1):
    """The middle of an image (3, H, W), at most height x width.

    Its sides are multiples of `patch`, and at least SMALLEST: a shorter image is padded.
    """
    least = -(-SMALLEST // patch) * patch
    sides = [max(min(wanted, side) // patch * patch, least)
             for wanted, side in zip((height, width), image.shape[1:])]
    top, left = [max(side - wanted, 0) // 2 for side, wanted in zip(image.shape[1:], sides)]
    image = image[:, top:top + sides[0], left:left + sides[1]]
    below, right = [wanted - side for wanted, side in zip(sides, image.shape[1:])]
    return torch.nn.functional.pad(image, (0, right, 0, below))


def agreement(graph, call, images):
    """The `Agreement` on images (N, 3, H, W) uint8."""
    output, logits = call(graph.prepared(images).numpy()), graph.network(normalise(images))
    shape = (len(images), *images.shape[2:])
    if graph.output == 'argmax':
        prob = logits.softmax(1)
        index = torch.from_numpy(output.astype(np.int64))
        gap = prob.max(1).values - prob.gather(1, index[:, None])[:, 0]
        return Agreement(shape, float(gap.max()), float(prob.max()),
                         int((index == prob.argmax(1)).sum()))
    expected = (logits.softmax(1) if graph.output == 'softmax' else logits).numpy()
    return Agreement(shape, float(np.abs(output - expected).max()), float(np.abs(expected).max()),
                     int((output.argmax(1) == expected.argmax(1)).sum()))


def check_agreement(found, args):
    """Raise a UserError unless the file computes what the PyTorch network computes.

    Of all pixels, at least the fraction EQUAL has the same class, and no value differs by more than
    CLOSE times the largest one. Rounding alone stays far below.
    """
    equal = sum(one.equal for one in found) / sum(one.pixels for one in found)
    worst = max(one.difference / max(one.largest, 1e-12) for one in found)
    if not (equal >= EQUAL and worst <= CLOSE):  # also if a value is not a number
        raise UserError(f'{args.checkpoint}: the exported graph does not agree with PyTorch: '
                        f'{100 * equal:.2f} % equal pixels, differences of up to {worst:.2g} of '
                        f'the largest value; {args.out} is not written; {other_ways(args)}')


def other_ways(args):
    """What to do if an export fails, as text."""
    if args.out.lower().endswith('.onnx'):
        return ('use the versions of tests/extras.txt (pip install -r tests/extras.txt), or export '
                'to .pt2')
    return 'use the PyTorch of requirements.txt, or export to .onnx'
