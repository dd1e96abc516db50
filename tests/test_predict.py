"""Prediction of a folder: finding and reading images, tiles, and `eval.py --images`."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import launch

import eval as eval_script
from dssn import config
from dssn.data.lists import Sample
from dssn.distributed import World
from dssn.errors import UserError
from dssn.inference import predict
from dssn.inference.evaluation import predictor
from dssn.inference.predict import find_images, predict_folder
from dssn.models import build_model
from dssn.models.weights import network_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def gradient(width=24, height=16):
    """An RGB image in which all pixels are different."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 10, y * 15, (x + y) * 6], 2).astype(np.uint8))


# ---- finding images

def touch(folder, *names):
    for name in names:
        path = os.path.join(str(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, 'w').close()


def names(found):
    return [sample.image.replace(os.sep, '/') for sample in found[1]]


def test_images_of_all_formats_in_all_folders_in_order(tmp_path):
    wanted = ['10.webp', 'B.JPG', 'a/x.png', 'a/y/z.TIF', 'a b.gif', 'c.bmp']
    touch(tmp_path, *wanted)
    touch(tmp_path, '.hidden.jpg', '.cache/x.jpg', 'a/._z.tif')
    found = find_images([str(tmp_path)], str(tmp_path / 'out'))
    assert names(found) == sorted(wanted) and found[2] == []


def test_files_with_other_endings_are_counted(tmp_path):
    touch(tmp_path, 'x.jpg', 'a.txt', 'b.TXT', 'c.heic', 'film.mpg', 'LICENSE')
    note, = find_images([str(tmp_path)], str(tmp_path / 'out'))[2]
    assert note.endswith('.heic: 1, .mpg: 1, .txt: 2, none: 1')


def test_written_pictures_are_not_predicted_next_time(tmp_path):
    touch(tmp_path, 'x.jpg', 'out/overlay/x.jpg', 'sub/out/y.jpg')
    os.symlink(str(tmp_path / 'out'), str(tmp_path / 'link'))
    for out in ('out', 'link', 'sub/../out'):
        found = find_images([str(tmp_path)], str(tmp_path / out))
        assert names(found) == ['sub/out/y.jpg', 'x.jpg']
    with pytest.raises(UserError, match='--save-dir.*another folder'):
        find_images([str(tmp_path)], str(tmp_path / 'out' / '..'))


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path, 'in/x.jpg', 'disk/y.jpg', 'in/.hidden/z.jpg')
    os.symlink(str(tmp_path / 'disk'), str(tmp_path / 'in' / 'more'))
    found = find_images([str(tmp_path / 'in')], str(tmp_path / 'out'))
    assert names(found) == ['more/y.jpg', 'x.jpg']


@pytest.mark.parametrize('files, words', [
    (None, 'no such file or folder'), ([], 'no image'), (['a.txt'], 'no image.*[.]txt: 1')])
def test_folders_without_images_are_errors(tmp_path, files, words):
    if files is not None:
        touch(tmp_path / 'in', 'sub/' * (not files) + '.keep', *files)
    with pytest.raises(UserError, match='--images .*in: ' + words):
        find_images([str(tmp_path / 'in')], str(tmp_path / 'out'))


@pytest.mark.parametrize('arguments, root, wanted', [
    ('photos', 'photos', ['a.jpg', 'b.png', 'more/a.jpg']),
    ('photos/a.jpg', 'photos', ['a.jpg']),
    ('photos/a.jpg photos/b.png photos/a.jpg', 'photos', ['a.jpg', 'b.png']),
    ('photos/*.jpg', 'photos', ['a.jpg']),
    ('photos/**/*.jpg', 'photos', ['a.jpg', 'more/a.jpg']),
    ('photos/*', 'photos', ['a.jpg', 'b.png', 'more/a.jpg', 'notes.txt']),
    ('photos/[ab].* other', '.', ['other/a.jpg', 'photos/a.jpg', 'photos/b.png']),
    ('photos ./photos/a.jpg photos/more', 'photos', ['a.jpg', 'b.png', 'more/a.jpg']),
    ('top.jpg photos/more/a.jpg', '.', ['photos/more/a.jpg', 'top.jpg']),
    ('photos/notes.txt', 'photos', ['notes.txt']),    # named, so it is tried
    ('[x].jpg', '.', ['[x].jpg'])])                   # a name, though it looks like a pattern
def test_files_folders_and_patterns(tmp_path, monkeypatch, arguments, root, wanted):
    monkeypatch.chdir(tmp_path)
    touch('.', 'photos/a.jpg', 'photos/b.png', 'photos/notes.txt', 'photos/.hidden.jpg',
          'photos/more/a.jpg', 'other/a.jpg', 'top.jpg', '[x].jpg')
    for prefix in ('', f'{tmp_path}/'):
        found = find_images([prefix + name for name in arguments.split()], 'out')
        assert names(found) == wanted
        assert os.path.samefile(found[0], root) and os.path.isabs(found[0]) == bool(prefix)
        assert all(os.path.exists(os.path.join(found[0], name)) for name in names(found))


def test_only_pictures_of_an_earlier_run_are_left_out_of_named_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch('.', 'a.jpg', 'overlay/00000_a.jpg', 'overlay/mine.jpg', 'photos/00000_a.jpg',
          'photos/out/overlay/00001_b.jpg', 'photos/out/c.jpg')
    _, found, notes = find_images(['*.jpg', '*/*.jpg'], '.')
    assert [sample.image for sample in found] == ['a.jpg', 'overlay/mine.jpg',
                                                  'photos/00000_a.jpg']
    assert notes == ['files skipped because they are pictures in --save-dir: 1']
    # A shell's list may have the folder of the predictions in it.
    _, found, notes = find_images(['photos/00000_a.jpg', 'photos/out'], 'photos/out')
    assert [sample.image for sample in found] == ['00000_a.jpg']
    assert notes == ['folder skipped because it is --save-dir: photos/out']
    with pytest.raises(UserError, match='no image.*pictures in --save-dir: 1; name'):
        find_images(['overlay/0*'], '.')


@pytest.mark.parametrize('arguments, words', [
    (['*.jpg'], '--images [*].jpg: nothing matches this pattern; name'),
    (['there.png', 'gone.png'], '--images gone.png: no such file or folder; name'),
    ([''], '--images : no such file or folder')])
def test_what_is_not_there_is_named(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    touch('.', 'there.png')
    with pytest.raises(UserError, match=words):
        find_images(arguments, 'out')


# ---- reading images

def read(folder, name):
    return predict.read_image(str(folder), Sample(name, None, '--images')).permute(1, 2, 0).numpy()


@pytest.mark.parametrize('ending', ['png', 'bmp', 'tif', 'ppm', 'tga'])
def test_lossless_formats_are_read_exactly(tmp_path, ending):
    gradient().save(str(tmp_path / ('x.' + ending)))
    assert '.' + ending in predict.image_endings()
    assert np.array_equal(read(tmp_path, 'x.' + ending), np.asarray(gradient()))


def test_transparency_is_ignored_as_in_training(tmp_path):
    image = gradient()
    image.putalpha(Image.new('L', image.size, 0))
    image.save(str(tmp_path / 'x.png'))
    assert np.array_equal(read(tmp_path, 'x.png'), np.asarray(gradient()))


def test_gray_becomes_three_equal_channels(tmp_path):
    gradient().convert('L').save(str(tmp_path / 'x.jpg'), quality=100)
    got = read(tmp_path, 'x.jpg')
    assert got.shape == (16, 24, 3) and (got == got[:, :, :1]).all() and got.std() > 10


def test_cmyk_is_shown_in_its_colours(tmp_path):
    Image.new('RGB', (16, 16), (200, 40, 60)).convert('CMYK').save(str(tmp_path / 'x.jpg'))
    assert np.abs(read(tmp_path, 'x.jpg').astype(int) - (200, 40, 60)).max() < 12


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new('RGB', (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(str(tmp_path / 'x.gif'), save_all=True, append_images=frames[1:])
    assert (read(tmp_path, 'x.gif') == (255, 0, 0)).all()


@pytest.mark.parametrize('name', ['x.png', 'x.tif'])
@pytest.mark.parametrize('turn, undo', [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]),
    (6, lambda a: np.rot90(a, -1)), (8, np.rot90), (5, lambda a: a.transpose(1, 0, 2))])
def test_images_are_rotated_by_exif(tmp_path, name, turn, undo):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {'tiffinfo': {0x0112: turn}} if name == 'x.tif' else {'exif': exif}
    gradient().save(str(tmp_path / name), **options)
    assert np.array_equal(read(tmp_path, name), undo(np.asarray(gradient())))


def test_damaged_exif_is_ignored(tmp_path):
    gradient().save(str(tmp_path / 'x.png'), exif=b'Exif\0\0II*\0\xff\xff')
    assert np.array_equal(read(tmp_path, 'x.png'), np.asarray(gradient()))


def test_unreadable_images_are_errors_with_their_names(tmp_path):
    (tmp_path / 'text.jpg').write_text('text')
    gradient().save(str(tmp_path / 'whole.png'))
    whole = (tmp_path / 'whole.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(whole[:len(whole) // 2])
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(str(tmp_path / 'deep.png'))
    for name, words in (('text.jpg', 'not an image'), ('cut.png', 'truncated'),
                        ('deep.png', 'more than 8 bits')):
        with pytest.raises(UserError, match=words) as error:
            read(tmp_path, name)
        assert name in str(error.value) and '\n' not in str(error.value)


# ---- images of any size

class Blur(torch.nn.Module):
    """Logits that depend on the 5 x 5 pixels around; records the sizes of its inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 5, padding=2)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[2:]))
        return self.conv(x)


def test_a_folder_is_predicted_by_the_protocol_despite_unreadable_images(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    gradient(40, 30).save(str(folder / 'b.png'))
    (folder / 'a.png').write_text('text')
    _, samples, _ = find_images([str(folder)], 'out')
    model, seen = Blur().train(), []
    problems = predict_folder(model, str(folder), samples, World(),
                              lambda *args: seen.append(args), predictor('sliding_window', 18))
    assert len(model.sizes) == 12  # 40 x 30 by windows of 18, stride 12
    assert not model.training
    problem, = problems
    assert 'a.png is not an image' in problem
    (position, image, label, predictions), = seen
    assert (position, label, image.shape) == (1, None, (3, 30, 40))
    assert [found.shape for found in predictions.values()] == [(30, 40)]


# ---- eval.py --images

@pytest.fixture
def saved(tiny_world, tmp_path):
    """Path of a checkpoint that contains its config and class names."""
    cfg = tiny_world().load(classes=['sky', 'road', 'car'],
                            colours=[[9, 8, 7], [1, 2, 3], [250, 0, 0]])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.classifier.weight.data.mul_(30)
    path = str(tmp_path / 'best.pth')
    torch.save({'model': network_weights(model), 'config': config.to_dict(cfg)}, path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'sub').mkdir(parents=True)
    gradient(60, 40).save(str(folder / 'x.png'))
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient(60, 40).save(str(folder / 'sub' / 'x.jpg'), exif=exif)
    (folder / 'y.jpg').write_text('text')
    return folder


def test_eval_predicts_a_folder_and_reports_unreadable_images(saved, photos, tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = ['--checkpoint', saved, '--images', str(photos), '--save-dir', str(out)]
    assert eval_script.main(arguments) == 1
    printed = capsys.readouterr()
    line, = printed.err.splitlines()
    assert 'y.jpg is not an image' in line
    assert '2 of 3 images predicted' in printed.out and 'index.html' in printed.out
    with Image.open(str(out / 'prediction' / '00000_x.png')) as picture:  # sub/x.jpg, upright
        assert (picture.mode, picture.size) == ('P', (40, 60))
        assert picture.getpalette()[:9] == [9, 8, 7, 1, 2, 3, 250, 0, 0]
        assert np.asarray(picture).max() < 3
    with Image.open(str(out / 'prediction' / '00001_x.png')) as picture:
        assert picture.size == (60, 40)
    page = (out / 'index.html').read_text(encoding='utf-8')
    for word in ('sky', 'road', 'car', 'y.jpg is not an image', 'Not predicted: 1'):
        assert word in page
    os.remove(str(photos / 'y.jpg'))
    assert eval_script.main(arguments) == 0


def test_files_of_the_same_name_have_pictures_of_their_own(saved, photos, tmp_path, capsys):
    out = tmp_path / 'out'
    assert eval_script.main(['--checkpoint', saved, '--save-dir', str(out), '--images',
                             str(photos / 'x.png'), str(photos / 'sub' / '*.jpg')]) == 0
    assert '2 of 2 images predicted' in capsys.readouterr().out
    assert sorted(os.listdir(str(out / 'overlay'))) == ['00000_x.jpg', '00001_x.jpg']
    for name, size in (('00000_x.png', (40, 60)), ('00001_x.png', (60, 40))):  # sub/x.jpg, x.png
        with Image.open(str(out / 'prediction' / name)) as picture:
            assert picture.size == size
    page = (out / 'index.html').read_text(encoding='utf-8')
    assert f'2 images in {photos}' in page and 'sub/x.jpg' in page


@pytest.mark.parametrize('flags, words', [
    (['--images', 'x'], '--save-dir'),
    (['--images', 'x', '--save-dir', 'y', '--absent', 'skip'], '--absent'),
    (['--images', 'x', '--save-dir', 'y', '--json', 'z'], '--json'),
    (['--images', 'x', '--save-dir', 'y', '--id-path', 'z'], '--id-path'),
    (['--weights', 'both', '--save-dir', 'x'], 'student or teacher')])
def test_flags_that_contradict_each_other(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        eval_script.main(['--checkpoint', 'c.pth'] + flags)
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


def test_the_exit_status_of_the_program(saved, photos, tmp_path):
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, 'eval.py'), '--checkpoint', saved, '--images',
         str(photos), '--save-dir', str(tmp_path / 'out')], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=300,
        env=dict(os.environ, PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1'))
    assert done.returncode == 1
    line, = done.stderr.splitlines()
    assert line.startswith('eval.py: --images: ')


def test_two_processes_predict_a_folder_together(saved, photos, tmp_path):
    os.remove(str(photos / 'y.jpg'))
    out = tmp_path / 'out'
    launch(os.path.join(ROOT, 'eval.py'), '--checkpoint', saved, '--images', str(photos),
           '--save-dir', str(out))
    assert len(os.listdir(str(out / 'prediction'))) == 2
    page = (out / 'index.html').read_text(encoding='utf-8')
    assert page.count('<figure') == 2 and '2 of 2' in page
