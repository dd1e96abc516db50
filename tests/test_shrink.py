"""Shrinking a data set: pixels (compared with a slow mean), names, lists and errors."""
import os

import numpy as np
import pytest
from PIL import Image

from dssn.__main__ import main
from dssn.data.lists import read_list

SIZE = (12, 8)  # width, height


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory holds set/ with five images, four with masks, and two lists."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    for folder in ('set/images/a', 'set/masks'):
        os.makedirs(folder)
    lines = {'train': [], 'val': []}
    for i in range(5):
        name = f'images/a/{i}.' + ('jpg' if i == 1 else 'PNG')
        Image.fromarray(rng.integers(0, 256, SIZE[::-1] + (3,), np.uint8)).save('set/' + name)
        mask = Image.fromarray(rng.integers(0, 5, SIZE[::-1], np.uint8))
        if i == 2:
            mask.putpalette([0, 0, 0, 255, 0, 0] + [7] * 9)
        if i < 4:
            mask.save(f'set/masks/{i}.png')
        lines['val' if i > 2 else 'train'].append(name + (f' masks/{i}.png' if i < 4 else ''))
    for name, of_list in lines.items():
        with open(f'set/{name}.txt', 'w') as file:
            file.write('\n'.join(of_list) + '\n')


def shrink(*more, by=4, lists=('set/train.txt', 'set/val.txt')):
    return main(['shrink', *lists, '--data-root', 'set', '--by', str(by), '--out', 'small',
                 '--workers', '1', *more])


def array(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize('by', [1, 2, 4])
def test_a_pixel_is_the_mean_of_the_pixels_that_it_covers(here, by):
    assert shrink(by=by) == 0
    for name in ('set/train.txt', 'set/val.txt'):
        samples = read_list(name, masks=False)
        assert [sample[:2] for sample in samples] == [
            sample[:2] for sample in read_list(name.replace('set', 'small'), masks=False)]
        for image, mask, _ in samples:
            large, small = array('set/' + image).astype(float), array('small/' + image)
            assert small.shape == (SIZE[1] // by, SIZE[0] // by, 3)
            for row in range(small.shape[0]):
                for column in range(small.shape[1]):
                    block = large[row * by:row * by + by, column * by:column * by + by]
                    # JPEG is lossy.
                    within = 30 if image.endswith('jpg') else 1
                    assert np.abs(block.mean((0, 1)) - small[row, column]).max() <= within
                    if mask:
                        block = array('set/' + mask)[row * by:row * by + by,
                                                     column * by:column * by + by]
                        assert array('small/' + mask)[row, column] in block
    with Image.open('small/images/a/1.jpg') as image:
        assert image.format == 'JPEG'
    with Image.open('small/masks/2.png') as mask:
        assert mask.mode == 'P' and mask.getpalette()[3:6] == [255, 0, 0]


@pytest.mark.parametrize('by, size', [(5, (2, 1)), (7, (1, 1)), (100, (1, 1))])
def test_sides_that_are_not_a_multiple(here, by, size):
    assert shrink(by=by) == 0
    for name in ('images/a/0.PNG', 'masks/0.png', 'images/a/4.PNG'):
        with Image.open('small/' + name) as image:
            assert image.size == size


def test_existing_files_are_kept(here, capsys):
    os.makedirs('small/images/a')
    with open('small/images/a/0.PNG', 'w') as file:
        file.write('mine')
    assert shrink() == 0
    with open('small/images/a/0.PNG') as file:
        assert file.read() == 'mine'
    assert 'small: 8 images and masks written, at 1/4; lists: train.txt, val.txt' in \
        capsys.readouterr().out
    assert shrink() == 0 and 'small: 0 images' in capsys.readouterr().out
    assert not [name for _, _, names in os.walk('small') for name in names if '.part' in name]


def test_several_processes_write_the_same(here):
    assert shrink() == 0
    os.rename('small', 'one')
    assert shrink('--workers', '2') == 0
    for folder, _, names in os.walk('one'):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, 'rb') as one, open(path.replace('one', 'small', 1), 'rb') as two:
                assert one.read() == two.read()


def test_errors_are_reported_before_anything_is_written(here, capsys):
    def refusal(**keys):
        assert shrink(**keys) == 1 and not os.path.exists('small')
        return capsys.readouterr().err
    os.mkdir('other')
    with open('set/train.txt') as file, open('other/train.txt', 'w') as copy:
        copy.write(file.read())
    assert 'same name (set/train.txt, other/train.txt)' in refusal(
        lists=('set/train.txt', 'other/train.txt'))
    assert main(['shrink', 'set/val.txt', '--data-root', 'set', '--by', '2', '--out', './set']) == 1
    assert 'is --data-root' in capsys.readouterr().err
    with open('other/val.txt', 'w') as file:
        file.write('images/a/0.tif\n')
    assert 'other/val.txt line 1: image images/a/0.tif: only .jpg, .png, .jpeg are written' in \
        refusal(lists=('other/val.txt',))
    with open('other/val.txt', 'w') as file:
        file.write('images/a/0.PNG masks/0.jpg\n')
    assert 'mask masks/0.jpg: only .png are written' in refusal(lists=('other/val.txt',))
    with open('other/val.txt', 'w') as file:
        file.write('images/a/9.png\n')
    assert 'no file images/a/9.png' in refusal(lists=('other/val.txt',))
    with pytest.raises(SystemExit) as caught:
        shrink(by=0)
    assert caught.value.code == 2 and 'at least 1' in capsys.readouterr().err


def test_a_mask_of_another_size_is_reported(here, capsys):
    Image.new('L', (8, 12)).save('set/masks/0.png')
    assert shrink() == 1
    assert 'masks/0.png is 8x12' in capsys.readouterr().err
    assert not os.path.exists('small/train.txt')
