"""Export: files compute what the network computes, for any number and size of images."""
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dssn
from dssn import config
from dssn.__main__ import main
from dssn.models import build_model
from dssn.models.weights import network_weights
from dssn.tools import export
from tests.conftest import draw_pair

PAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                    'docs/deployment.md')
RELEASE = tuple(map(int, torch.__version__.split('.')[:2]))
current = pytest.mark.skipif(RELEASE < export.SINCE, reason='this PyTorch does not export')
old = pytest.mark.skipif(RELEASE >= export.SINCE, reason='this PyTorch exports')
COLOURS = [[9, 8, 7], [1, 2, 3], [250, 0, 0]]


def make_checkpoint(folder):
    """A small network whose predictions have all classes; returns the path of its checkpoint."""
    cfg = config.from_dict(dict(
        dataset='mine', classes=['sky', 'road', 'car'], colours=COLOURS, nclass=3,
        method='supervised', data_root='gone', labeled_id_path='gone.txt', val_id_path='gone.txt',
        save_path='run', backbone='resnet18', base_channels=4, decoder_channels=8, crop_size=33,
        device='cpu'), 'test')
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.classifier.weight.data.mul_(30)
    with torch.no_grad():
        model.classifier.bias -= model(torch.randn(1, 3, 40, 60)).mean((0, 2, 3))
    path = os.path.join(str(folder), 'best.pth')
    torch.save({'model': network_weights(model), 'config': config.to_dict(cfg)}, path)
    return path


def photo(seed=0, width=90, height=70):
    return draw_pair(np.random.default_rng(seed), (width, height), 5)[0]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with best.pth and photos/, of several sizes and modes; one is turned by EXIF."""
    folder = tmp_path_factory.mktemp('export')
    make_checkpoint(folder)
    (folder / 'photos').mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(str(folder / 'photos/a.jpg'), exif=exif)
    Image.fromarray(photo(1, 50, 41)).convert('L').save(str(folder / 'photos/b.png'))
    transparent = Image.fromarray(photo(2, 33, 64))
    transparent.putalpha(Image.new('L', transparent.size, 40))
    transparent.save(str(folder / 'photos/c.png'))
    return folder


def exported(folder, name, *flags):
    """Path of the file that an export into the folder has written."""
    path = str(folder / name)
    done = main(['export', str(folder / 'best.pth'), path, '--check', str(folder / 'photos'),
                 *flags])
    assert done == 0
    return path


@pytest.fixture(scope='module')
def onnx_file(folder):
    for package in export.PACKAGES:
        pytest.importorskip(package)
    return exported(folder, 'net.onnx', '--normalise', '--output', 'argmax')


def batch(count, height, width):
    return np.stack([photo(seed, width, height) for seed in range(count)]).transpose(0, 3, 1, 2)


SIZES = [(1, 32, 32), (1, 70, 90), (2, 65, 33), (3, 48, 32), (5, 32, 100)]


@current
@pytest.mark.parametrize('count, height, width', SIZES)
def test_an_onnx_file_takes_any_number_and_size(folder, onnx_file, count, height, width):
    import onnxruntime
    session = onnxruntime.InferenceSession(onnx_file, providers=['CPUExecutionProvider'])
    images = batch(count, height, width)
    found, = session.run(None, {'images': images})
    net = dssn.load(str(folder / 'best.pth'))
    expected = np.stack([net.predict(image.transpose(1, 2, 0)) for image in images])
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert (found == expected).mean() > 0.999 and len(np.unique(found)) > 1


@current
def test_an_onnx_file_says_what_it_is(onnx_file):
    import onnx
    import onnxruntime
    onnx.checker.check_model(onnx.load(onnx_file), full_check=True)
    session = onnxruntime.InferenceSession(onnx_file, providers=['CPUExecutionProvider'])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts['classes']) == ['sky', 'road', 'car']
    assert json.loads(facts['colours']) == COLOURS
    assert json.loads(facts['mean']) == [0.485, 0.456, 0.406]
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1]) == ('images', 'tensor(uint8)', 3)
    assert (found.name, found.type, len(found.shape)) == ('result', 'tensor(uint8)', 3)
    assert all(isinstance(given.shape[i], str) for i in (0, 2, 3))  # free


@current
def test_the_program_of_the_page_predicts_the_same(folder, onnx_file, tmp_path):
    """The text of the page, as it stands, without PyTorch and this project."""
    with open(PAGE, encoding='utf-8') as file:
        text, = re.findall(r'```python\n("""python predict_onnx.py.*?)```', file.read(), re.DOTALL)
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'dssn')))\n"
    names = sorted(os.listdir(str(folder / 'photos')))
    done = subprocess.run(
        [sys.executable, '-c', blocked + text, onnx_file, str(tmp_path / 'out')]
        + [str(folder / 'photos' / name) for name in names],
        stdout=subprocess.PIPE, universal_newlines=True, check=True)
    net = dssn.load(str(folder / 'best.pth'))
    for name in names:
        expected = net.predict(str(folder / 'photos' / name))
        with Image.open(str(tmp_path / 'out' / f'{name[0]}.png')) as picture:
            assert picture.mode == 'P' and picture.getpalette()[:9] == sum(COLOURS, [])
            assert (np.asarray(picture) == expected).mean() > 0.999
    lines = done.stdout.splitlines()
    for line, name in zip(lines, names):  # pixels by class
        pixels = np.prod(net.predict(str(folder / 'photos' / name)).shape)
        assert name in line and sum(map(int, re.findall(r"': (\d+)", line))) == pixels
    assert len(lines) == 3 and "'road': " in done.stdout


@current
def test_a_program_of_torch_export(folder, capsys):
    path = exported(folder, 'net.pt2')
    printed = capsys.readouterr().out
    assert printed.count('equal pixels 100.0000 %') == 5  # 3 images alone, and two groups
    facts = {'dssn.json': ''}
    program = torch.export.load(path, extra_files=facts).module()
    assert json.loads(json.loads(facts['dssn.json'])['classes']) == ['sky', 'road', 'car']
    net = dssn.load(str(folder / 'best.pth'))
    for size in SIZES:
        images = export.normalise(torch.from_numpy(batch(*size)))
        with torch.no_grad():
            np.testing.assert_allclose(program(images), net.model(images), atol=1e-5)


@pytest.mark.parametrize('output', ['logits', 'softmax', 'argmax'])
@pytest.mark.parametrize('normalises', [False, True])
def test_what_a_graph_computes(folder, output, normalises):
    net = dssn.load(str(folder / 'best.pth'))
    graph = export.Graph(net.model, normalises, output).eval()
    images = torch.from_numpy(batch(2, 40, 50))
    with torch.no_grad():
        found = graph(graph.prepared(images))
    assert graph.prepared(images).dtype == (torch.uint8 if normalises else torch.float32)
    expected = np.stack([net.probabilities(image.permute(1, 2, 0).numpy()) for image in images])
    if output == 'logits':
        found = found.softmax(1)
    if output == 'argmax':
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found, expected.argmax(1))
    else:
        np.testing.assert_allclose(found, expected, atol=1e-5)


# ---- the comparison

def compared(folder, output, change):
    """`Agreement`s of a file that computes change(what the graph computes)."""
    net = dssn.load(str(folder / 'best.pth'))
    graph = export.Graph(net.model, True, output).eval()
    images = [torch.from_numpy(photo(seed, *size).transpose(2, 0, 1).copy())
              for seed, size in ((0, (90, 70)), (1, (50, 41)), (2, (20, 64)))]
    with torch.no_grad():
        return export.compare(graph, lambda x: change(graph(torch.from_numpy(x)).numpy()), images)


def test_the_comparison_covers_sizes_and_numbers(folder):
    found = compared(folder, 'logits', lambda logits: logits)
    assert [one.shape for one in found] == [(1, 70, 90), (1, 41, 50), (1, 64, 32), (2, 32, 32),
                                            (3, 32, 32)]
    assert all(one.difference < 1e-5 and one.equal == one.pixels for one in found)


@pytest.mark.parametrize('output, change, difference, equal', [
    ('logits', lambda x: x + 0.25, 0.25, 1), ('softmax', lambda x: x * 0, None, None),
    ('argmax', lambda x: (x + 1) % 3, None, 0)])
def test_a_difference_is_measured(folder, output, change, difference, equal):
    found = compared(folder, output, change)
    for one in found:
        if difference:
            assert one.difference == pytest.approx(difference, abs=1e-4)
        if equal is not None:
            assert one.equal == equal * one.pixels
        assert one.difference > 0.1


@pytest.mark.parametrize('change, passes', [
    (lambda x: x, True), (lambda x: x * (1 + 5e-4), True), (lambda x: x * (1 + 5e-3), False),
    (lambda x: x * np.nan, False), (lambda x: x[:, ::-1], False)])
def test_a_file_that_does_not_agree_is_not_written(folder, monkeypatch, tmp_path, capsys, change,
                                                   passes):
    def broken(graph, facts):
        return b'program', lambda images: change(graph(torch.from_numpy(images)).numpy())
    monkeypatch.setattr(export, 'as_program', broken)
    monkeypatch.setattr(export, 'check_packages', lambda ending: None)
    out = str(tmp_path / 'net.pt2')
    done = main(['export', str(folder / 'best.pth'), out, '--check', str(folder / 'photos')])
    assert done == (0 if passes else 1) and os.listdir(str(tmp_path)) == ['net.pt2'] * passes
    assert passes or 'does not agree with PyTorch' in capsys.readouterr().err


# ---- what is refused

def message(capsys, *arguments):
    assert main(['export', *arguments]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith('python -m dssn export: error: ')
    return line


@current
@pytest.mark.parametrize('out, flags, words', [
    ('net.pth', (), 'name it .onnx or .pt2'), ('gone/net.pt2', (), 'no folder gone; make it'),
    ('net.pt2', (), 'gone.txt: no such id list.*or name images to compare on: --check PATH'),
    ('net.pt2', ('--check', 'gone'), '--check gone: no such file or folder'),
    ('net.pt2', ('--check', 'text.png'), 'text.png is not an image.*other images to compare on'),
    ('net.pt2', ('--set', 'nclass=3', 'classes=[a, b]'), 'classes')])
def test_a_mistake_is_one_line(folder, tmp_path, monkeypatch, capsys, out, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.png').write_text('text')
    assert re.search(words, message(capsys, str(folder / 'best.pth'), out, *flags))
    assert os.listdir('.') == ['text.png']


@current
def test_the_install_line_names_what_is_missing(folder, monkeypatch, capsys):
    for package in export.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    assert 'pip install onnx onnxscript onnxruntime' in message(
        capsys, str(folder / 'best.pth'), 'net.onnx')


@old
def test_an_old_pytorch_does_not_export(folder, capsys):
    assert f'needs PyTorch 2.14 or newer, this is {torch.__version__}' in message(
        capsys, str(folder / 'best.pth'), 'net.onnx')


@current
def test_an_exporter_that_fails_is_one_line(folder, monkeypatch, tmp_path, capsys):
    def failing(graph, facts):
        raise ValueError('no such\noperator')
    monkeypatch.setattr(export, 'as_program', failing)
    text = message(capsys, str(folder / 'best.pth'), str(tmp_path / 'net.pt2'), '--check',
                   str(folder / 'photos'))
    assert 'cannot be exported (ValueError: no such operator); use the PyTorch' in text


@pytest.mark.parametrize('height, width', [(1, 1), (20, 100), (32, 32), (2000, 40)])
@pytest.mark.parametrize('patch', [1, 14])
def test_the_middle_of_an_image(height, width, patch):
    image = torch.randint(1, 256, (3, height, width), dtype=torch.uint8)
    found = export.middle(image, 1024, 1024, patch)
    for side, original in zip(found.shape[1:], image.shape[1:]):
        assert side % patch == 0 and side >= 32
        assert side == max(min(original, 1024) // patch * patch, {1: 32, 14: 42}[patch])
    tall, wide = min(height, found.shape[1]), min(width, found.shape[2])
    top, left = [max(side - wanted, 0) // 2 for side, wanted in zip((height, width),
                                                                    found.shape[1:])]
    assert torch.equal(found[:, :tall, :wide], image[:, top:top + tall, left:left + wide])
    assert (found > 0).sum() == 3 * tall * wide  # the rest is padding


class Patches(torch.nn.Module):
    """A network that takes only multiples of its patch, as a vision transformer does."""
    patch = 14

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 3, 14, stride=14)

    def forward(self, images):
        assert images.shape[2] % 14 == 0 and images.shape[3] % 14 == 0
        return self.conv(images).repeat_interleave(14, 2).repeat_interleave(14, 3)


def test_a_network_of_patches_is_compared_in_multiples():
    graph = export.Graph(Patches(), True, 'logits').eval()
    images = [torch.from_numpy(photo(seed, *size).transpose(2, 0, 1).copy())
              for seed, size in ((0, (90, 70)), (1, (50, 41)), (2, (20, 64)))]
    with torch.no_grad():
        found = export.compare(graph, lambda x: graph(torch.from_numpy(x)).numpy(), images)
    assert [one.shape for one in found] == [(1, 70, 84), (1, 42, 42), (1, 56, 42), (2, 42, 42),
                                            (3, 42, 42)]
    assert all(one.equal == one.pixels for one in found)


@current
def test_a_network_of_patches_is_traced_with_free_sizes(capsys):
    graph = export.Graph(Patches(), True, 'logits').eval()
    _, call = export.as_program(graph, {})
    for size in ((1, 42, 42), (3, 140, 56)):
        images = batch(*size)
        with torch.no_grad():
            np.testing.assert_allclose(call(images), graph(torch.from_numpy(images)), atol=1e-5)
