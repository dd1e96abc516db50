"""A network in Python, `dssn.load`: it predicts what `eval.py --images` writes."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dssn
import eval as eval_script
from dssn import config, methods
from dssn.errors import UserError
from dssn.models import build_model
from dssn.models.weights import network_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLOURS = [[9, 8, 7], [1, 2, 3], [250, 0, 0]]


@pytest.fixture
def saved(tiny_world, tmp_path):
    """Path of a checkpoint with two networks, whose predictions differ, and their config."""
    cfg = tiny_world().load(classes=['sky', 'road', 'car'], colours=COLOURS)
    torch.manual_seed(0)
    states, pixels = [], torch.randn(1, 3, 40, 60)
    for _ in range(2):
        model = build_model(cfg).eval()
        model.classifier.weight.data.mul_(30)
        with torch.no_grad():  # so that no class wins everywhere
            model.classifier.bias -= model(pixels).mean((0, 2, 3))
        states.append(network_weights(model))
    path = str(tmp_path / 'latest.pth')
    torch.save({'student': states[0], 'teacher': states[1], 'config': config.to_dict(cfg)}, path)
    return path


@pytest.mark.parametrize('method', ['oracle_labels', 'supervised_strong_views', 'of_somebody_else'])
def test_the_method_of_the_training_does_not_matter(saved, monkeypatch, method):
    expected = dssn.load(saved).predict(noise())
    content = torch.load(saved)
    content['config']['method'] = method
    torch.save(content, saved)
    monkeypatch.setattr(methods, '_registered', {})  # as in a program that knows no experiments
    assert (dssn.load(saved).predict(noise()) == expected).all()


def noise(width=60, height=40, mode='RGB'):
    rng = np.random.default_rng(3)
    cells = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    return cells.resize((width, height), Image.BILINEAR).convert(mode)


def write_images(folder):
    """Images of several modes and formats, and one that EXIF turns."""
    os.makedirs(str(folder))
    noise().save(str(folder / 'a.png'))
    noise(mode='L').save(str(folder / 'b.jpg'))
    noise(mode='CMYK').save(str(folder / 'c.jpg'))
    noise(mode='P').save(str(folder / 'd.gif'))
    transparent = noise()
    transparent.putalpha(Image.new('L', transparent.size, 40))
    transparent.save(str(folder / 'e.png'))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(str(folder / 'f.jpg'), exif=exif)
    noise().save(str(folder / 'g.tif'), tiffinfo={0x0112: 8})


@pytest.mark.parametrize('flags, arguments', [
    ([], {}), (['--weights', 'teacher'], {'weights': 'teacher'}),
    (['--set', 'protocol=sliding_window', '--flip'],
     {'settings': ['protocol=sliding_window'], 'flip': True}),
    (['--tile', '32', '--overlap', '10', '--scales', '0.5', '1'],
     {'tile': 32, 'overlap': 10, 'scales': [0.5, 1.0]})])
def test_it_predicts_what_eval_writes(saved, tmp_path, flags, arguments):
    write_images(tmp_path / 'photos')
    out = tmp_path / 'out'
    assert eval_script.main(['--checkpoint', saved, '--images', str(tmp_path / 'photos'),
                             '--save-dir', str(out), *flags]) == 0
    net = dssn.load(saved, **arguments)
    names = sorted(os.listdir(str(tmp_path / 'photos')))
    assert len(names) == 7
    for position, name in enumerate(names):
        path = str(tmp_path / 'photos' / name)
        written = np.asarray(Image.open(
            str(out / 'prediction' / f'{position:05d}_{os.path.splitext(name)[0]}.png')))
        with Image.open(path) as opened, Image.open(path) as loaded:
            loaded.load()
            for image in (path, tmp_path / 'photos' / name, opened, loaded):
                found = net.predict(image)
                assert found.dtype == np.uint8
                np.testing.assert_array_equal(found, written, err_msg=name)
    assert written.shape == (60, 40) and len(np.unique(written)) > 1  # turned


def test_an_array_is_predicted_like_its_file(saved, tmp_path):
    net = dssn.load(saved)
    noise().save(str(tmp_path / 'x.png'))
    array = np.asarray(noise())
    expected = net.predict(str(tmp_path / 'x.png'))
    for same in (array, array[:, ::-1].copy()[:, ::-1], noise()):  # strides, too
        np.testing.assert_array_equal(net.predict(same), expected)


@pytest.mark.parametrize('tile', [2048, 32])
def test_probabilities(saved, tile):
    net = dssn.load(saved, tile=tile)
    found = net.probabilities(noise())
    assert found.shape == (3, 40, 60) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(0), net.predict(noise()))
    if tile == 2048:
        pixels = torch.from_numpy(np.array(noise())).permute(2, 0, 1)[None] / 255
        mean, std = [torch.tensor(values).view(3, 1, 1) for values in (
            (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        with torch.no_grad():
            expected = net.model((pixels - mean) / std).softmax(1)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_facts_of_a_network(saved):
    net = dssn.load(saved)
    assert net.classes == ['sky', 'road', 'car']
    assert net.colours == [tuple(colour) for colour in COLOURS]
    assert net.to('cpu') is net and not net.model.training
    assert net.config.nclass == 3


@pytest.mark.parametrize('image, words', [
    (np.zeros((4, 5, 3), np.float32), r'float32 of shape \(4, 5, 3\); give uint8'),
    (np.zeros((4, 5), np.uint8), r'shape \(4, 5\)'), (np.zeros((3, 4, 5), np.uint8), 'shape'),
    (np.zeros((0, 5, 3), np.uint8), 'shape'), (7, 'int is not an image'),
    (Image.new('I;16', (5, 4)), 'more than 8 bits'), ('gone.png', 'image: gone.png: no such file')])
def test_what_is_no_image(saved, tmp_path, monkeypatch, image, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        dssn.load(saved).predict(image)


def test_a_damaged_image(saved, tmp_path):
    noise(300, 200).save(str(tmp_path / 'x.png'))
    data = (tmp_path / 'x.png').read_bytes()
    (tmp_path / 'x.png').write_bytes(data[:len(data) // 2])
    with Image.open(str(tmp_path / 'x.png')) as opened:
        for image in (str(tmp_path / 'x.png'), opened):
            with pytest.raises(dssn.UserError, match='x.png cannot be read'):
                dssn.load(saved).predict(image)


@pytest.mark.parametrize('arguments, words', [
    ({'weights': 'both'}, 'weights'), ({'tile': 0}, 'tile'), ({'tile': 9, 'overlap': 5}, 'half'),
    ({'scales': [0]}, 'scales'), ({'scales': []}, 'scales'), ({'settings': ['crop=3']}, 'crop'),
    ({'device': 'abacus'}, "device 'abacus' cannot be used")])
def test_wrong_arguments(saved, arguments, words):
    with pytest.raises(UserError, match=words):
        dssn.load(saved, **arguments)


def test_a_checkpoint_without_a_config(saved, tiny_world, tmp_path):
    content = torch.load(saved)
    del content['config']
    path = str(tmp_path / 'bare.pth')
    torch.save(content, path)
    with pytest.raises(UserError, match='bare.pth: contains no config.*config='):
        dssn.load(path)
    net = dssn.load(path, config=tiny_world().config_path)
    np.testing.assert_array_equal(net.predict(noise()), dssn.load(saved).predict(noise()))


def test_importing_the_package_is_light():
    """It imports no other package; `load` and its helpers come when they are used."""
    code = ("import sys, dssn; assert {'load', 'Network'} <= set(dir(dssn)); "
            "print([n for n in ('torch', 'numpy', 'PIL', 'yaml') if n in sys.modules])")
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                          universal_newlines=True, check=True)
    assert done.stdout.strip() == '[]'
    assert not hasattr(dssn, 'unload')
