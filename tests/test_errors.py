"""A user's mistakes: each ends in one message that names the place, the value and the remedy."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import eval as eval_script
import train as train_script
from dssn.errors import UserError
from dssn.models import build_model
from dssn.models.weights import network_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def train_refused(world, *words, **flags):
    """train.py's message for the world with `--set` of `flags`; it must hold all words."""
    assignments = [f'{key}={value}' for key, value in flags.items()]
    return refused(train_script.main, ['--config', world.config_path]
                   + (['--set'] + assignments if assignments else []), words)


def refused(main, arguments, words):
    with pytest.raises(UserError) as caught:
        main(arguments)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert '\n' not in message
    return message


@pytest.fixture
def saved(tiny_world, tmp_path):
    """A world, and a checkpoint of its untrained network that carries the config."""
    from dssn import config
    world = tiny_world()
    cfg = world.load()
    path = str(tmp_path / 'sound.pth')
    torch.save({'model': network_weights(build_model(cfg)), 'config': config.to_dict(cfg)}, path)
    return world, path


# ---- lists

@pytest.mark.parametrize('key', ['labeled_id_path', 'unlabeled_id_path', 'val_id_path'])
def test_a_missing_list(tiny_world, key):
    train_refused(tiny_world(), 'no/such.txt', 'dssn split', **{key: 'no/such.txt'})


@pytest.mark.parametrize('key', ['labeled_id_path', 'unlabeled_id_path'])
def test_no_list_given(tiny_world, key):
    train_refused(tiny_world(), key, '--' + key.replace('_', '-'), **{key: ''})


@pytest.mark.parametrize('part', ['labeled', 'unlabeled', 'val'])
def test_an_empty_list(tiny_world, part):
    world = tiny_world()
    open(getattr(world, part), 'w').close()
    train_refused(world, getattr(world, part), 'empty')


@pytest.mark.parametrize('part, suffix', [('labeled', '.jpg'), ('labeled', '.png'),
                                          ('unlabeled', '.jpg'), ('val', '.png')])
def test_a_line_whose_file_is_missing(tiny_world, part, suffix):
    world = tiny_world()
    with open(getattr(world, part)) as file:
        name = [n for n in file.read().splitlines()[1].split() if n.endswith(suffix)][0]
    os.remove(os.path.join(world.root, name))
    train_refused(world, getattr(world, part) + ' line 2', name, 'data_root=' + world.root)


def test_a_labeled_line_without_a_mask(tiny_world):
    world = tiny_world()
    with open(world.labeled, 'a') as file:
        file.write('images/labeled0.jpg\n')
    train_refused(world, world.labeled + ' line 6', 'images/labeled0.jpg', 'mask')


def test_a_data_root_that_is_not_there(tiny_world):
    train_refused(tiny_world(), 'no/where', 'data_root', data_root='no/where')


def test_fewer_images_than_a_batch(tiny_world):
    world = tiny_world()
    train_refused(world, world.unlabeled, '9 images', '20', 'batch_size', batch_size=20)


# ---- images and masks

def change_mask(world, part, change):
    """Replaces the mask of the list's first line; returns (place, mask's name)."""
    with open(getattr(world, part)) as file:
        name = file.readline().split()[1]
    path = os.path.join(world.root, name)
    mask = np.array(Image.open(path))
    Image.fromarray(change(mask)).save(path)
    return getattr(world, part) + ' line 1', name


def with_value(value):
    def change(mask):
        mask[:4, :5] = value
        return mask
    return change


@pytest.mark.parametrize('part', ['labeled', 'val'])
@pytest.mark.parametrize('value', [3, 254])
def test_a_mask_value_that_is_no_class(tiny_world, part, value):
    world = tiny_world(epochs=1, n_unlabeled=4, n_labeled=2)
    place, name = change_mask(world, part, with_value(value))
    train_refused(world, place, name, str(value), '20 pixels', 'nclass = 3', '255')


def test_a_mask_value_that_is_no_class_in_a_worker(tiny_world):
    world = tiny_world(epochs=1, n_unlabeled=4, n_labeled=2)
    place, name = change_mask(world, 'labeled', with_value(9))
    train_refused(world, place, name, 'nclass = 3', workers=1, skip_check='true', max_bad_samples=0)


def test_ignored_pixels_are_no_mistake(tiny_world):
    world = tiny_world(epochs=1, n_unlabeled=2, n_labeled=2, n_val=1)
    change_mask(world, 'labeled', with_value(255))
    train_script.main(['--config', world.config_path])


def test_a_mask_of_colours(tiny_world):
    world = tiny_world(epochs=1, n_unlabeled=4, n_labeled=2)
    place, name = change_mask(world, 'labeled', lambda mask: np.stack([mask] * 3, -1))
    train_refused(world, place, name, 'RGB', 'indices')


def test_a_mask_of_another_size_than_its_image(tiny_world):
    world = tiny_world(epochs=1, n_unlabeled=4, n_labeled=2)
    place, name = change_mask(world, 'labeled', lambda mask: mask[:-1, :-2])
    train_refused(world, place, name, '38x29', '40x30')


@pytest.mark.parametrize('part, key', [('labeled', 0), ('unlabeled', 0), ('labeled', 1)])
def test_a_file_that_is_no_image(tiny_world, part, key):
    world = tiny_world(epochs=1, n_unlabeled=2, n_labeled=1, batch_size=1)
    with open(getattr(world, part)) as file:
        name = file.readline().split()[key]
    with open(os.path.join(world.root, name), 'w') as file:
        file.write('text')
    train_refused(world, getattr(world, part) + ' line 1', name, 'image', max_bad_samples=0)


# ---- folders, config, weights

def test_a_run_folder_that_cannot_be_made(tiny_world, tmp_path):
    # Below a regular file: not even root can.
    (tmp_path / 'file').write_text('')
    path = str(tmp_path / 'file' / 'run')
    train_refused(tiny_world(), path, '--save-path', save_path=path)


def test_no_run_folder(tiny_world):
    train_refused(tiny_world(), '--save-path', save_path='')


def test_an_unknown_method(tiny_world):
    world = tiny_world()
    refused(train_script.main, ['--config', world.config_path, '--method', 'DSN'],
            ['DSN', "did you mean 'DSSN'?", 'supervised'])


def test_an_unknown_key(tiny_world):
    train_refused(tiny_world(), '--set crop=33', "'crop'", 'crop_size', crop=33)


def test_a_missing_config():
    refused(train_script.main, ['--config', 'no.yaml'], ['no.yaml', 'configs/'])


def test_missing_pretrained_weights(tiny_world, tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    train_refused(tiny_world(), os.path.join('pretrained', 'resnet50.pth'), 'https://',
                  'pretrained: false', pretrained='true', backbone='resnet50')


def test_a_missing_checkpoint_to_start_from(tiny_world):
    train_refused(tiny_world(), 'no/such.pth', 'no such', init_from='no/such.pth')


def test_a_checkpoint_of_another_architecture_to_start_from(saved):
    world, path = saved
    train_refused(world, path, 'another architecture', 'fuse.0.weight', 'decoder_channels',
                  init_from=path, decoder_channels=16)


def test_a_damaged_latest_file(tiny_world):
    world = tiny_world()
    os.makedirs(world.save_path)
    path = os.path.join(world.save_path, 'latest.pth')
    with open(path, 'w') as file:
        file.write('half')
    train_refused(world, path)


# ---- eval.py

def test_eval_of_a_missing_checkpoint():
    refused(eval_script.main, ['--checkpoint', 'no/such.pth'], ['no/such.pth', 'no such'])


def test_eval_of_a_checkpoint_without_config(tmp_path):
    path = str(tmp_path / 'public.pth')
    torch.save({'model': {'w': torch.ones(1)}}, path)
    refused(eval_script.main, ['--checkpoint', path], [path, '--config'])


def test_eval_of_another_architecture(saved):
    world, path = saved
    refused(eval_script.main, ['--checkpoint', path, '--set', 'backbone=resnet50'],
            [path, 'another architecture', 'missing', 'of another shape', 'backbone'])


def test_eval_with_another_class_count(saved):
    world, path = saved
    refused(eval_script.main, ['--checkpoint', path, '--set', 'nclass=4'],
            [path, 'classifier.weight', '(3, ', '(4, ', 'nclass'])


def test_eval_on_a_missing_list(saved):
    world, path = saved
    refused(eval_script.main, ['--checkpoint', path, '--id-path', 'no/such.txt'], ['no/such.txt'])


def test_eval_of_a_list_without_masks(saved):
    world, path = saved
    refused(eval_script.main, ['--checkpoint', path, '--id-path', world.unlabeled],
            [world.unlabeled + ' line 1', 'mask'])


@pytest.mark.parametrize('flag', ['--json', '--save-dir'])
def test_eval_into_a_place_that_cannot_be_written(saved, tmp_path, flag):
    world, path = saved
    (tmp_path / 'file').write_text('')
    target = str(tmp_path / 'file' / 'scores')
    refused(eval_script.main, ['--checkpoint', path, flag, target], [flag, target])


@pytest.mark.parametrize('value', [3, 254])
def test_eval_with_a_mask_value_that_is_no_class(saved, value):
    world, path = saved
    place, name = change_mask(world, 'val', with_value(value))
    refused(eval_script.main, ['--checkpoint', path], [place, name, str(value), 'nclass = 3'])


# ---- the program itself

def test_the_program_prints_one_line_and_fails(tiny_world):
    world = tiny_world(labeled_id_path='no/such.txt')
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, 'train.py'), '--config', world.config_path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
        env=dict(os.environ, PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1'), timeout=300)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    line, = done.stderr.splitlines()
    assert line.startswith('train.py: error: no/such.txt')


@pytest.mark.skipif(os.name != 'posix', reason='pipes')
@pytest.mark.parametrize('lines', [1, 100000])
def test_a_reader_that_ends_early_is_no_error(lines):
    """As with `| head`. The output of one line is only written at the end of the program."""
    program = 'import sys; from dssn.errors import exit_status; ' \
              f"sys.exit(exit_status('p', lambda: print('a line\\n' * {lines})))"
    process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b''
    assert process.wait() == 141


def test_another_broken_pipe_is_an_error():
    program = 'import os, sys; from dssn.errors import exit_status; r, w = os.pipe(); ' \
              "os.close(r); sys.exit(exit_status('p', lambda: os.write(w, b'x')))"
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1 and 'BrokenPipeError' in done.stderr
