"""Input from strangers: no list leaves data_root, nothing is written elsewhere, nothing is run."""
import itertools
import os
import pickle
import struct
import time
import zlib

import pytest
import torch
from PIL import Image

import eval as eval_script
import train as train_script
from dssn import config
from dssn.__main__ import main as data_main
from dssn.data import files
from dssn.data.files import FileProblem, open_image, open_mask
from dssn.data.lists import Sample, read_list
from dssn.errors import UserError
from dssn.inference.gallery import write_gallery
from dssn.inference.pictures import file_stem
from dssn.models import build_model
from dssn.models.weights import network_weights


def error_of(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def saved(world, path, **changes):
    """A checkpoint of the world's untrained network, with changes of the config that it carries."""
    cfg = world.load()
    torch.save({'model': network_weights(build_model(cfg)),
                'config': dict(config.to_dict(cfg), **changes)}, str(path))
    return str(path)


# ---- id lists

OUTSIDE = ['../secret.png', 'a/../../secret.png', '/etc/secret.png', '..', './../x.png',
           'a/b/../../../x.png']
INSIDE = ['a/../b.png', './a.png', 'a..b/c...png', '...', '..a/b.png', 'a/b/../../c.png', '~/a.png']


@pytest.mark.parametrize('name', OUTSIDE)
@pytest.mark.parametrize('line', ['{} masks/a.png', 'images/a.jpg {}', 'images/a.jpg\t{}'])
def test_a_line_that_leaves_data_root(tmp_path, name, line):
    path = tmp_path / 'list.txt'
    path.write_text('images/a.jpg masks/a.png\n' + line.format(name) + '\n')
    for masks in (True, False):
        message = error_of(read_list, str(path), masks)
        for word in (str(path) + ' line 2', name, 'data_root', 'allow_outside: true'):
            assert word in message
    assert name in read_list(str(path), True, allow_outside=True)[1][:2]


@pytest.mark.parametrize('name', INSIDE)
def test_a_line_that_stays_in_data_root(tmp_path, name):
    path = tmp_path / 'list.txt'
    path.write_text(name + ' masks/a.png\n')
    assert read_list(str(path))[0].image == name


def move_out(world, part):
    """The first image of a list is moved out of data_root, and named there; returns the name."""
    with open(getattr(world, part)) as file:
        lines = file.read().splitlines()
    image, *mask = lines[0].split()
    outside = os.path.join(os.path.dirname(world.root), 'moved.jpg')
    os.rename(os.path.join(world.root, image), outside)
    lines[0] = ' '.join(['../moved.jpg'] + mask)
    with open(getattr(world, part), 'w') as file:
        file.write('\n'.join(lines) + '\n')
    return '../moved.jpg'


@pytest.mark.parametrize('part', ['labeled', 'unlabeled', 'val'])
def test_training_and_its_lists(tiny_world, part):
    world = tiny_world(epochs=1)
    name = move_out(world, part)
    run = ['--config', world.config_path, '--set', 'batch_size=1', 'panel_every=0']
    for more in ([], ['skip_check=true']):
        assert name in error_of(train_script.main, run + more)
    train_script.main(run + ['allow_outside=true'])
    assert os.path.exists(os.path.join(world.save_path, 'latest.pth'))


def test_select_on_too(tiny_world, tmp_path):
    world = tiny_world()
    path = tmp_path / 'select.txt'
    path.write_text('/etc/a.png masks/val0.png\n')
    assert '/etc/a.png' in error_of(train_script.main, [
        '--config', world.config_path, '--set', 'select_on=' + str(path)])


def test_check_and_its_lists(tiny_world, capsys):
    world = tiny_world()
    move_out(world, 'labeled')
    command = ['check', '--config', world.config_path, '--workers', '0']
    assert data_main(command) == 1
    assert 'line 1: ../moved.jpg may lie outside data_root' in capsys.readouterr().out
    assert data_main(command + ['--set', 'allow_outside=true']) == 0


def test_split_and_its_lists(tiny_world, tmp_path, capsys):
    world = tiny_world()
    move_out(world, 'labeled')
    command = ['split', world.labeled, '--labeled', '2', '--out', str(tmp_path / 'out/2')]
    assert data_main(command) == 1
    assert '--allow-outside' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert data_main(command + ['--allow-outside']) == 0
    move_out(world, 'val')
    assert data_main(command + ['--allow-outside', '--val', world.val]) == 0
    assert data_main(command[:-1] + [str(tmp_path / 'other/2'), '--val', world.val]) == 1


def test_evaluation_and_its_list(tiny_world, tmp_path):
    world = tiny_world()
    name = move_out(world, 'val')
    # What a checkpoint allows, its user has not allowed.
    run = ['--checkpoint', saved(world, tmp_path / 'a.pth', allow_outside=True)]
    assert name in error_of(eval_script.main, run)
    assert eval_script.main(run + ['--set', 'allow_outside=true']) == 0
    assert name in error_of(eval_script.main, run + ['--config', world.config_path])


def test_links_in_data_root_are_followed(tiny_world, tmp_path):
    world = tiny_world(n_val=1)
    image = os.path.join(world.root, 'images', 'val0.jpg')
    os.rename(image, str(tmp_path / 'elsewhere.jpg'))
    os.symlink(str(tmp_path / 'elsewhere.jpg'), image)
    assert eval_script.main(['--checkpoint', saved(world, tmp_path / 'a.pth')]) == 0


def test_dots_behind_a_link_do_not_lead_to_what_is_beside_its_target(tmp_path):
    for name in ('elsewhere/images', 'root'):
        (tmp_path / name).mkdir(parents=True)
    Image.new('RGB', (3, 2)).save(str(tmp_path / 'elsewhere/secret.png'))
    Image.new('RGB', (5, 4)).save(str(tmp_path / 'root/secret.png'))
    (tmp_path / 'root/images').symlink_to(tmp_path / 'elsewhere/images')
    sample = Sample('images/../secret.png', None, 'list line 1')
    assert open_image(str(tmp_path / 'root'), sample).size == (5, 4)


@pytest.mark.parametrize('name', ['/dev/zero', '/dev/urandom'])
def test_a_list_that_never_ends(name, monkeypatch):
    monkeypatch.setattr('dssn.data.lists.MAX_CHARACTERS', 2 ** 16)
    assert name in error_of(read_list, name)


def test_a_pipe_in_place_of_an_image(tmp_path):
    os.mkfifo(str(tmp_path / 'a.jpg'))
    sample = Sample('a.jpg', 'a.jpg', 'list line 1')
    for attempt in (lambda: open_image(str(tmp_path), sample),
                    lambda: open_mask(str(tmp_path), sample, 3, (2, 2))):
        assert 'pipe or a device' in error_of(attempt)


def test_names_do_not_reach_the_terminal_as_commands(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_bytes(b'\x1b[2Ja.jpg b.png c.png\n')
    message = error_of(read_list, str(path))
    assert '\x1b' not in message and '\\x1b[2Ja.jpg' in message


# ---- images

BOMB = pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')


def png_head(width, height):
    """A PNG that states a size, and whose pixels are zeros as far as they go."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack(
            '>I', zlib.crc32(kind + data) & 0xffffffff)
    rows = zlib.compress(bytes(min(width * height, 2_000_000)), 9)
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
            + chunk(b'IDAT', rows) + chunk(b'IEND', b''))


@pytest.mark.parametrize('width, height', [(60000, 60000), (20000, 10001), (1, 200_000_001)])
@BOMB
def test_a_picture_that_would_fill_the_memory(tmp_path, width, height):
    (tmp_path / 'a.png').write_bytes(png_head(width, height))
    assert os.path.getsize(str(tmp_path / 'a.png')) < 10_000
    sample = Sample('a.png', 'a.png', 'list line 1')
    started = time.process_time()
    for attempt in (lambda: open_image(str(tmp_path), sample),
                    lambda: open_mask(str(tmp_path), sample, 3, (width, height))):
        message = error_of(attempt)
        for word in ('list line 1', 'a.png', '200000000 pixels', 'DSSN_MAX_PIXELS='):
            assert word in message
    assert time.process_time() - started < 5


@pytest.mark.parametrize('width, height', [(12000, 9000), (16320, 12240), (20000, 10000)])
def test_large_photographs_are_within_the_limit(tmp_path, width, height):
    (tmp_path / 'a.png').write_bytes(png_head(width, height))
    assert files.image_header(str(tmp_path), Sample('a.png', None, 'x')).size == (width, height)


def test_the_environment_sets_another_limit(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_bytes(png_head(60000, 60000))
    monkeypatch.setenv('DSSN_MAX_PIXELS', '3600000000')
    assert files.image_header(str(tmp_path), Sample('a.png', None, 'x')).size == (60000, 60000)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
(FLAG) (w) file closefile showpage
%%EOF
"""


@pytest.mark.filterwarnings('ignore::ResourceWarning')  # of the attempt without our care
@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.eps'])
def test_a_picture_that_is_a_program_is_not_run(tmp_path, name, monkeypatch):
    from PIL import EpsImagePlugin

    def called(*args, **kwargs):
        raise AssertionError('Ghostscript was called')
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', called)
    (tmp_path / name).write_bytes(EPS)
    message = error_of(open_image, str(tmp_path), Sample(name, None, 'list line 1'))
    assert 'PostScript program' in message and 'not run' in message
    assert error_of(files.image_header, str(tmp_path), Sample(name, None, 'list line 1')) == message
    with pytest.raises(AssertionError):  # it would have been
        Image.open(str(tmp_path / name)).load()


def test_other_formats_are_read_as_before(tmp_path):
    for name in ('a.bmp', 'a.gif', 'a.ppm', 'a.tif', 'a.tga', 'a.jpg', 'a.png', 'a.webp'):
        Image.new('RGB', (6, 4), (250, 0, 0)).save(str(tmp_path / name))
        assert open_image(str(tmp_path), Sample(name, None, 'x')).size == (6, 4)


# ---- configs

def load(tmp_path, text):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    return config.load(str(path))


def laughs(levels, width=9):
    """Each level repeats the one before: width ** levels values in a few lines."""
    lines = ['dataset: mine', 'nclass: 2', 'a0: &a0 [x]']
    for level in range(1, levels):
        values = ', '.join([f'*a{level - 1}'] * width)
        lines.append(f'a{level}: &a{level} [{values}]')
    return '\n'.join(lines) + '\n'


@pytest.mark.parametrize('text, word', [
    (laughs(12), 'aliases'),
    (laughs(300, 2), 'aliases'),
    ('lr: &a [*a]\n', 'contains itself'),
    ('lr: &a {x: *a}\n', 'contains itself'),
    ('lr: ' + '[' * 100000, 'nested'),
    ('lr: ' + '{a: ' * 5000, 'nested'),
    ('? ' * 3000, 'nested'),
    ('- ' * 3000, 'nested'),
    ('lr: [' + 'x, ' * 30000 + ']', 'more than 20000 values'),
    ('lr: 1\nlr: 2\n', "'lr' appears twice"),
    ('criterion: {name: OHEM, name: CELoss}\n', "'name' appears twice"),
    ('a: &a {lr: 1}\n<<: *a\n', 'merges are not read'),
    ('lr: !!python/object/apply:os.system ["touch FLAG"]\n', 'not valid YAML'),
    ('lr: !!python/name:os.system\n', 'not valid YAML'),
    ('lr: !!python/object/new:os.system []\n', 'not valid YAML'),
    ('lr: !!bool maybe\n', 'not valid YAML'),
    ('lr: !!int ""\n', 'not valid YAML'),
    ('lr: !!timestamp soon\n', 'not valid YAML'),
    ('x' * (2 ** 20 + 1), 'larger than'),
], ids=itertools.count(1))
def test_yaml_that_is_an_attack(tmp_path, text, word, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    started = time.process_time()
    message = error_of(load, tmp_path, text)
    assert word in message and len(message) < 2000 and str(tmp_path) in message
    assert time.process_time() - started < 10 and not (tmp_path / 'FLAG').exists()


def test_an_alias_of_a_value_is_read(tmp_path):
    cfg = load(tmp_path, 'dataset: mine\nnclass: &n 7\ndilations: [*n, *n, *n]\n')
    assert cfg.nclass == 7 and list(cfg.dilations) == [7, 7, 7]


@pytest.mark.parametrize('line', [
    'lr: 1' + '0' * 400, 'seed: 1' + '0' * 30, 'seed: 0x' + 'f' * 6000,
    'epochs: 9223372036854775808',
    'criterion: {name: OHEM, kwargs: {min_kept: .inf}}', 'classes: "names\\0.txt"',
    'criterion: {name: OHEM, kwargs: {min_kept: .nan}}', 'classes: false', 'classes: {a: b}',
    'criterion: {name: OHEM, kwargs: {thresh: 0x' + 'f' * 6000 + '}}',
    'classes: ["a\\e[2J", b]', 'classes: [a, "%s"]' % ('b' * 101), 'classes: /dev/zero',
    'dataset: ..', 'dataset: .hidden', 'dataset: a/b', 'lr: !!binary aGk=', 'lr: !!set {a, b}'])
def test_values_that_no_key_allows(tmp_path, line):
    message = error_of(load, tmp_path, 'dataset: mine\nnclass: 2\n'.replace(
        'dataset: mine\n' if line.startswith('dataset') else '\0', '') + line + '\n')
    assert line.split(':')[0] in message and len(message) < 1500


def test_class_names_are_text_to_the_gallery(tmp_path):
    names = ['<img src=x onerror=alert(1)>', '"><script>alert(1)</script>', "'`javascript:alert(1)"]
    rows = [{'position': 0, 'name': name, 'size': (4, 3), 'iou': None, 'accuracy': None,
             'parts': ['image'], 'thumbnail': f'thumbnail/{file_stem(0, name)}.jpg',
             'thumbnail_size': (4, 3),
             'files': {'overlay': f'overlay/{file_stem(0, name)}.jpg'}}
            for name in names + ['javascript:alert(1)//.jpg', 'data:text/html,x.png',
                                 "a' onload='x.jpg"]]
    write_gallery(str(tmp_path / 'index.html'), 'T', [], rows, [(n, (1, 2, 3)) for n in names])
    from test_gallery import Page
    page = Page((tmp_path / 'index.html').read_text(encoding='utf-8'))
    assert len(page.all('script')) == 1 and len(page.all('img')) == len(rows)
    for attributes in page.all('img') + page.all('a') + page.all('figure'):
        assert not any(name.startswith('on') for name in attributes)
    for link in [a['href'] for a in page.all('a')] + [i['src'] for i in page.all('img')]:
        assert link.split('/')[0] in ('overlay', 'thumbnail') and '..' not in link


# ---- what a checkpoint says

def snapshot(folder):
    return sorted(os.path.join(place, name) for place, _, names in os.walk(str(folder))
                  for name in names)


def test_paths_in_a_checkpoint_make_evaluation_write_nowhere_else(
        tiny_world, tmp_path, monkeypatch):
    world = tiny_world(n_val=2)
    (tmp_path / 'trap').mkdir()
    trap = str(tmp_path / 'trap' / 'run')
    path = saved(world, tmp_path / 'a.pth', save_path=trap, init_from=trap, labeled_id_path=trap,
                 unlabeled_id_path=trap, select_on=trap)
    monkeypatch.chdir(str(tmp_path / 'trap'))
    before = snapshot(tmp_path)
    assert eval_script.main(['--checkpoint', path, '--save-dir', str(tmp_path / 'out')]) == 0
    new = set(snapshot(tmp_path)) - set(before)
    assert new and all(name.startswith(str(tmp_path / 'out')) for name in new)


def test_names_of_a_list_make_evaluation_write_nowhere_else(tiny_world, tmp_path):
    world = tiny_world(n_val=1)
    move_out(world, 'val')
    before = snapshot(tmp_path)
    assert eval_script.main(['--checkpoint', saved(world, tmp_path / 'a.pth'), '--set',
                             'allow_outside=true', '--save-dir', str(tmp_path / 'out')]) == 0
    new = set(snapshot(tmp_path)) - set(before) - {str(tmp_path / 'a.pth')}
    assert len(new) == 6 and all(name.startswith(str(tmp_path / 'out')) for name in new)


@pytest.mark.parametrize('changes, word', [
    ({'classes': '/etc/passwd'}, 'list of names'), ({'classes': ['\x1b[2J', 'b', 'c']}, 'classes'),
    ({'lr': torch.ones(3, 3)}, 'lr'), ({7: 1}, 'unknown key'), ({'nclass': 3.5}, 'nclass'),
    ({'val_id_path': '/dev/null'}, 'empty'), ({'data_root': 'no/where'}, 'no such folder'),
    ({'dataset': '../..'}, 'dataset')])
def test_a_config_in_a_checkpoint_is_checked_as_any(tiny_world, tmp_path, changes, word):
    world = tiny_world()
    cfg = world.load()
    path = str(tmp_path / 'a.pth')
    torch.save({'model': network_weights(build_model(cfg)),
                'config': {**config.to_dict(cfg), **changes}}, path)
    assert word in error_of(eval_script.main, ['--checkpoint', path])


def test_a_problem_names_its_file_after_a_worker_process(tmp_path):
    problem = FileProblem('list line 1: \x1b', 'missing', 'a.jpg', {3: 4})
    again = pickle.loads(pickle.dumps(problem))
    assert (str(again), again.kind, again.file, again.values) == (
        'list line 1: \\x1b', 'missing', 'a.jpg', {3: 4})
