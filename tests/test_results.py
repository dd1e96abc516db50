"""`eval.py --images` at scale: files beside the pictures, the record of what is done, readers.

Large TIFFs and coordinates need rasterio, videos PyAV; without them their tests are skipped.
"""
import os
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import eval as eval_script
from dssn import config
from dssn.data.lists import Sample
from dssn.errors import UserError
from dssn.inference.canvas import Canvas, ProbabilityFile, quantised
from dssn.inference.predict import read_image
from dssn.inference.tiles import Tiling
from dssn.models import build_model
from dssn.models.weights import network_weights
from tests.conftest import draw_pair


@pytest.fixture
def cfg(tiny_world):
    return tiny_world().load(classes=['sky', 'road', 'car'],
                             colours=[[9, 8, 7], [1, 2, 3], [250, 0, 0]])


@pytest.fixture
def network(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.classifier.weight.data.mul_(30)
    with torch.no_grad():  # so that no class wins everywhere
        model.classifier.bias -= model(torch.randn(1, 3, 40, 60)).mean((0, 2, 3))
    return model


@pytest.fixture
def predict(cfg, network, tmp_path, capsys, monkeypatch):
    """Function (*images, flags) that calls eval.py in tmp_path; returns (status, out, err)."""
    monkeypatch.chdir(tmp_path)
    torch.save({'model': network_weights(network), 'config': config.to_dict(cfg)}, 'best.pth')

    def run(*images, flags='', checkpoint='best.pth'):
        capsys.readouterr()
        status = eval_script.main(['--checkpoint', checkpoint, '--save-dir', 'out', '--images',
                                   *images, *flags.split()])
        return (status, *capsys.readouterr())
    return run


def photo(seed=0, width=60, height=40):
    return draw_pair(np.random.default_rng(seed), (width, height), 5)[0]


def save(path, array, **options):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    Image.fromarray(array).save(path, **options)


def true_probabilities(network, array):
    """(H, W, C), computed from the formula."""
    x = torch.from_numpy(array.copy()).permute(2, 0, 1)[None] / 255
    mean, std = [torch.tensor(values).view(3, 1, 1) for values in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    with torch.no_grad():
        logits = network((x - mean) / std)[0].double().numpy()
    exponents = np.exp(logits - logits.max(0))
    return (exponents / exponents.sum(0)).transpose(1, 2, 0)


def text_of(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


# ---- confidence and probabilities

@pytest.mark.parametrize('flags, largest, tolerance', [
    ('--confidence --probabilities', 255, 0.51), ('--confidence uint16 --probabilities uint16',
                                                  65535, 2)])
def test_confidence_and_probabilities(predict, network, flags, largest, tolerance):
    save('in/x.png', photo())
    assert predict('in', flags=flags)[0] == 0
    expected = largest * true_probabilities(network, photo())
    confidence = read('out/confidence/00000_x.png').astype(float)
    assert np.abs(confidence - expected.max(2)).max() <= tolerance
    with np.load('out/probabilities/00000_x.npz') as found:
        assert list(found['classes']) == ['sky', 'road', 'car']
        assert found['probabilities'].dtype == {255: np.uint8, 65535: np.uint16}[largest]
        assert np.abs(found['probabilities'] - expected).max() <= tolerance
    np.testing.assert_array_equal(read('out/prediction/00000_x.png'), expected.argmax(2))
    page = text_of('out/index.html')
    assert 'confidence/00000_x.png' in page and 'probabilities/00000_x.npz' in page


def test_they_are_written_in_tiles_too(predict):
    """The file of probabilities is written row of tiles by row of tiles."""
    save('in/x.png', photo(0, 150, 110))
    assert predict('in', flags='--tile 64 --overlap 20 --confidence --probabilities')[0] == 0
    with np.load('out/probabilities/00000_x.npz') as found:
        probabilities = found['probabilities']
    assert probabilities.shape == (110, 150, 3)
    assert np.abs(probabilities.astype(int).sum(2) - 255).max() <= 2  # rounding of three numbers
    confidence, index = [read(f'out/{kind}/00000_x.png') for kind in ('confidence', 'prediction')]
    np.testing.assert_array_equal(probabilities.max(2), confidence)
    own = np.take_along_axis(probabilities, index[:, :, None].astype(int), 2)[:, :, 0]
    np.testing.assert_array_equal(own, confidence)
    assert len(np.unique(index)) > 1


@pytest.mark.parametrize('kind, fractions, expected', [
    ('uint8', [0, 1, 0.5, 1 + 1e-6, 1 / 255], [0, 255, 128, 255, 1]),
    ('uint16', [0, 1, 0.25, 1 + 1e-6], [0, 65535, 16384, 65535])])
def test_fractions_as_whole_numbers(kind, fractions, expected):
    found = quantised(torch.tensor(fractions, dtype=torch.float64), kind)
    assert found.dtype == kind and found.tolist() == expected


def test_an_unfinished_file_of_probabilities_is_removed(tmp_path):
    path = str(tmp_path / 'x.npz')
    canvas = Canvas((4, 5), None, ProbabilityFile(path, (4, 5), ['a', 'b'], 'uint8'))
    canvas.add(0, 0, torch.zeros(2, 5), torch.full((2, 2, 5), 0.5))
    canvas.probabilities.close(complete=False)
    assert os.listdir(str(tmp_path)) == []


# ---- what is done

def times(folder='out/prediction'):
    return {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}


def test_what_is_done_is_skipped_and_what_is_new_or_changed_is_predicted(predict):
    for name, seed in (('b', 1), ('d', 2)):
        save(f'in/{name}.png', photo(seed))
    assert predict('in')[1].startswith('2 of 2 images predicted; ')
    before = times()
    assert set(before) == {'00000_b.png', '00001_d.png'}
    assert predict('in')[1].startswith('2 of 2 images predicted, 2 of them in an earlier call; ')
    assert times() == before
    # New images get new numbers, wherever they stand in the order of names.
    save('in/a.png', photo(3))
    save('in/c.png', photo(4))
    status, out, err = predict('in')
    assert (status, err) == (0, '') and out.startswith('4 of 4 images predicted, 2 of them')
    assert set(times()) == {'00000_b.png', '00001_d.png', '00002_a.png', '00003_c.png'}
    page = text_of('out/index.html')
    assert re.findall('data-name="(.*?)"', page) == ['a.png', 'b.png', 'c.png', 'd.png']
    # A changed image, and one whose prediction was removed.
    save('in/b.png', photo(5, 70, 50))
    os.remove('out/prediction/00001_d.png')
    before = times()
    assert predict('in')[1].startswith('4 of 4 images predicted, 2 of them')
    after = times()
    assert {name for name in after if after[name] != before.get(name)} == {
        '00000_b.png', '00001_d.png'}
    assert read('out/prediction/00000_b.png').shape == (50, 70)


def test_an_image_that_failed_is_tried_again(predict):
    save('in/a.png', photo())
    open('in/b.png', 'w').close()
    status, out, err = predict('in')
    assert status == 1 and out.startswith('1 of 2 images predicted; ') and 'b.png' in err
    status, out, err = predict('in')
    assert status == 1 and out.startswith('1 of 2 images predicted, 1 of them') and 'b.png' in err
    save('in/b.png', photo())
    assert predict('in')[:2] == (0, '2 of 2 images predicted, 1 of them in an earlier call; '
                                    f"pictures: {os.path.join('out', 'index.html')}\n")


@pytest.mark.parametrize('flags, words', [
    ('--confidence', '--confidence is uint8, was none'), ('--flip', '--flip is True, was False'),
    ('--tile 100', '--overlap is 25, was 512; --tile is 100, was 2048'),
    ('--set protocol=sliding_window', 'protocol is sliding_window, was original'),
    ('other network', 'network is '), ('--set eval_batch_size=7', None)])
def test_another_network_or_other_options_are_not_mixed_in(predict, network, cfg, flags, words):
    save('in/a.png', photo())
    assert predict('in')[0] == 0
    checkpoint = 'best.pth'
    if flags == 'other network':
        flags, checkpoint = '', 'other.pth'
        network.classifier.bias.data += 0.5
        torch.save({'model': network_weights(network), 'config': config.to_dict(cfg)}, checkpoint)
    if words is None:  # it does not affect the prediction
        assert predict('in', flags=flags)[0] == 0
        return
    before = times()
    with pytest.raises(UserError, match='--save-dir out: holds predictions.*' + words) as error:
        predict('in', flags=flags, checkpoint=checkpoint)
    assert times() == before
    # The remedy: remove the record.
    folder, = re.findall(r'remove (\S+) to predict', str(error.value))
    for name in os.listdir(folder):
        os.remove(os.path.join(folder, name))
    os.rmdir(folder)
    assert predict('in', flags=flags, checkpoint=checkpoint)[1].count('of 1 images predicted; ')


def test_a_damaged_record_is_one_error(predict):
    save('in/a.png', photo())
    predict('in')
    with open('out/record/00000_a.json', 'w') as file:
        file.write('{"image"')
    with pytest.raises(UserError, match='00000_a.json: cannot be read.*remove it'):
        predict('in')
    os.remove('out/record/00000_a.json')
    assert predict('in')[1].startswith('1 of 1 images predicted; ')


# ---- options

@pytest.mark.parametrize('flags, words', [
    ('--tile 64', '--tile is an option of --images'),
    ('--images x --save-dir y --tile 64 --overlap 33', 'at most half of --tile (64)'),
    ('--images x --save-dir y --overlap 1025', 'at most half of --tile (2048)'),
    ('--images x --save-dir y --tile 0', 'at least 1'),
    ('--images x --save-dir y --confidence float', 'uint16')])
def test_options_that_do_not_fit(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        eval_script.main(['--checkpoint', 'c.pth'] + flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


# ---- TIFFs in parts, and coordinates

TIFFS = {  # name: (array, Pillow's or rasterio's options)
    'plain': dict(bands=3), 'gray': dict(bands=1), 'tiled': dict(
        bands=3, tiled=True, blockxsize=16, blockysize=32, compress='deflate', predictor=2),
    'lzw': dict(bands=3, compress='lzw', interleave='band'),
    'four': dict(bands=4, photometric='rgb', alpha='unspecified')}


def write_tiff(path, bands, size=(90, 70), **options):
    rasterio = pytest.importorskip('rasterio')
    pixels = photo(2, *size).transpose(2, 0, 1)
    pixels = np.concatenate([pixels, 255 - pixels])[:bands]
    options = {'photometric': 'rgb', **options} if bands == 3 else options
    with rasterio.open(path, 'w', driver='GTiff', width=size[0], height=size[1], count=bands,
                       dtype='uint8', **options) as file:
        file.write(pixels)


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
@pytest.mark.parametrize('name', sorted(TIFFS))
def test_parts_of_a_tiff_are_those_of_the_whole(tmp_path, name):
    path = str(tmp_path / 'x.tif')
    write_tiff(path, **TIFFS[name])
    sample = Sample('x.tif', None, '--images')
    whole = read_image(str(tmp_path), sample)
    parts = read_image(str(tmp_path), sample, Tiling(32, 8))
    assert type(parts).__name__ == 'TiffWindows' and parts.shape == whole.shape == (3, 70, 90)
    for rows, columns in ((slice(0, 70), slice(0, 90)), (slice(5, 6), slice(80, 90)),
                          (slice(60, 99), slice(0, 1))):
        assert torch.equal(parts[:, rows, columns], whole[:, rows, columns])
    assert torch.equal(parts[:, 3:9], whole[:, 3:9])
    small = read_image(str(tmp_path), sample, Tiling(100, 8))
    assert torch.equal(small, whole)  # no parts are needed


@pytest.mark.parametrize('options, mode', [
    ({'tiffinfo': {0x0112: 6}}, 'RGB'), ({}, 'P'), ({}, 'CMYK'), ({}, '1'), ({}, 'LA')])
def test_tiffs_that_are_not_shown_as_stored_are_read_whole(tmp_path, options, mode):
    Image.fromarray(photo(1, 90, 70)).convert(mode).save(str(tmp_path / 'x.tif'), **options)
    found = read_image(str(tmp_path), Sample('x.tif', None, ''), Tiling(32, 8))
    assert torch.is_tensor(found)
    assert torch.equal(found, read_image(str(tmp_path), Sample('x.tif', None, '')))


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
def test_a_tiff_in_parts_gives_the_same_files(predict, monkeypatch):
    pytest.importorskip('rasterio')
    flags = '--tile 48 --overlap 16 --confidence'
    os.makedirs('in')
    write_tiff('in/x.tif', **TIFFS['tiled'])
    assert predict('in', flags=flags)[0] == 0
    os.rename('out', 'in_parts')
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    assert predict('in', flags=flags)[0] == 0
    for kind in ('prediction', 'confidence', 'overlay', 'thumbnail'):
        name, = os.listdir(f'out/{kind}')
        np.testing.assert_array_equal(read(f'out/{kind}/{name}'), read(f'in_parts/{kind}/{name}'))
    assert len(np.unique(read('out/prediction/00000_x.png'))) > 1


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
def test_a_damaged_tiff_is_one_line(predict):
    os.makedirs('in')
    write_tiff('in/x.tif', **TIFFS['tiled'])
    with open('in/x.tif', 'r+b') as file:  # the blocks of pixels follow the tags
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    status, out, err = predict('in', flags='--tile 48')
    line, = err.splitlines()
    assert status == 1 and out.startswith('0 of 1') and 'x.tif cannot be read' in line


def test_a_georeferenced_tiff_keeps_its_coordinates(predict, monkeypatch):
    rasterio = pytest.importorskip('rasterio')
    from rasterio.control import GroundControlPoint
    from rasterio.transform import Affine
    os.makedirs('in')
    place = dict(crs='EPSG:32633', transform=Affine(0.5, 0, 399960, 0, -0.5, 5000040))
    write_tiff('in/a.tif', bands=3, **place)
    points = [GroundControlPoint(row, col, 13 + col / 1e4, 45 - row / 1e4, 0)
              for row, col in ((0, 0), (0, 90), (70, 0), (70, 90))]
    write_tiff('in/b.tif', bands=3, gcps=points, crs='EPSG:4326')
    save('in/c.tif', photo())
    assert predict('in')[0] == 0
    assert sorted(os.listdir('out/geotiff')) == ['00000_a.tif', '00001_b.tif']
    for name in ('00000_a', '00001_b'):
        with rasterio.open(f'in/{name[-1]}.tif') as source, \
                rasterio.open(f'out/geotiff/{name}.tif') as found:
            assert (found.crs, found.transform) == (source.crs, source.transform)
            assert (found.count, found.dtypes, found.shape) == (1, ('uint8',), (70, 90))
            assert [(p.row, p.col, p.x, p.y) for p in found.gcps[0]] == \
                [(p.row, p.col, p.x, p.y) for p in source.gcps[0]]
            np.testing.assert_array_equal(found.read(1), read(f'out/prediction/{name}.png'))
            assert found.colormap(1)[2][:3] == (250, 0, 0)
    # Without rasterio the user learns of it, and the predictions are made.
    os.rename('out', 'with')
    monkeypatch.setitem(sys.modules, 'rasterio', None)
    status, _, err = predict('in')
    assert status == 0 and not os.path.exists('out/geotiff')
    assert 'geo-referenced images: 2' in err and 'pip install rasterio' in err


# ---- videos

def write_video(path, frames, turn=0):
    av = pytest.importorskip('av')
    with av.open(path, 'w') as container:
        stream = container.add_stream('ffv1' if path.endswith('.mkv') else 'mpeg4', rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'bgr0' if path.endswith('.mkv') else 'yuv420p'
        if turn:
            stream.set_display_rotation(turn)
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format='rgb24')))
        container.mux(stream.encode())


def test_frames_of_a_video_are_predicted_like_images(predict):
    frames = [photo(seed, 64, 48) for seed in range(5)]
    write_video('drive.mkv', frames)  # without loss
    assert predict('drive.mkv', flags='--every 2')[0] == 0
    assert sorted(os.listdir('out/prediction')) == [
        f'{i:05d}_drive_frame_{2 * i:05d}.png' for i in range(3)]
    os.rename('out', 'of_video')
    for i in range(3):
        save(f'frames/{i}.png', frames[2 * i])
    assert predict('frames')[0] == 0
    for i in range(3):
        np.testing.assert_array_equal(read(f'out/prediction/{i:05d}_{i}.png'), read(
            f'of_video/prediction/{i:05d}_drive_frame_{2 * i:05d}.png'))


def test_a_video_goes_on_where_a_call_ended(predict):
    write_video('drive.mkv', [photo(seed, 64, 48) for seed in range(4)])
    assert predict('drive.mkv', flags='--every 3')[0] == 0
    before = times()
    assert predict('drive.mkv')[1].startswith('4 of 4 images predicted, 2 of them in an earlier')
    assert {name: time for name, time in times().items() if name in before} == before
    assert set(times()) == {'00000_drive_frame_00000.png', '00001_drive_frame_00003.png',
                            '00002_drive_frame_00001.png', '00003_drive_frame_00002.png'}


def test_a_turned_video_is_turned(predict):
    write_video('drive.mp4', [photo(0, 64, 48)], turn=90)
    assert predict('drive.mp4')[0] == 0
    assert read('out/prediction/00000_drive_frame_00000.png').shape == (64, 48)
    shown = read('out/overlay/00000_drive_frame_00000.jpg').astype(float)
    upright = np.rot90(photo(0, 64, 48)).astype(float)
    assert np.corrcoef(shown.ravel(), upright.ravel())[0, 1] > 0.5 > np.corrcoef(
        shown.ravel(), upright[::-1, ::-1].ravel())[0, 1] + 0.2


def test_videos_in_folders_are_skipped_and_counted(predict):
    save('in/x.png', photo())
    write_video('in/drive.mp4', [photo(0, 64, 48)])
    status, out, err = predict('in')
    assert status == 0 and out.startswith('1 of 1 images') and '.mp4: 1' in err


@pytest.mark.parametrize('content', [b'text', b''])
def test_what_is_no_video(predict, content):
    pytest.importorskip('av')
    with open('drive.mp4', 'wb') as file:
        file.write(content)
    with pytest.raises(UserError, match='drive.mp4 cannot be read as a video.*convert it'):
        predict('drive.mp4')


def test_the_install_line_of_the_reader_of_videos(predict, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    open('drive.mp4', 'w').close()
    with pytest.raises(UserError, match='drive.mp4 is a video, .*pip install --upgrade av'):
        predict('drive.mp4')
