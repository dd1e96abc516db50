"""Making labeled, unlabeled and val lists, by the function and by the command."""
import argparse
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dssn.__main__ import main
from dssn.data.lists import Sample, read_list
from dssn.errors import UserError
from dssn.tools.arguments import count_or_fraction
from dssn.tools.data.split import choose


@pytest.fixture
def source(tmp_path):
    path = str(tmp_path / 'train.txt')
    with open(path, 'w') as file:
        file.writelines(f'images/{i}.jpg masks/{i}.png\n' for i in range(48))
    return path


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The working directory holds `my set/photos/0..19.jpg`, the first 12 with masks; every mask
    shows class 0 and ignored pixels, two of them (4 and 9) class 5 too."""
    monkeypatch.chdir(tmp_path)
    for folder in ('photos', 'masks'):
        (tmp_path / 'my set' / folder).mkdir(parents=True)
    for i in range(20):
        Image.new('RGB', (8, 6)).save(f'my set/photos/{i}.jpg')
        mask = np.zeros((6, 8), np.uint8)
        mask[0], mask[1, 1:4] = 255, 5 if i in (4, 9) else 0
        if i < 12:
            Image.fromarray(mask).save(f'my set/masks/{i}.png')


FOLDERS = ['split', '--images', 'my set/photos', '--masks', 'my set/masks', '--out', 'lists/a']


def images(path, masks=False):
    return [sample.image for sample in read_list(str(path), masks)]


def samples_of(n, masked=None):
    return [Sample(f'{i}.jpg', f'{i}.png' if masked is None or i < masked else None, '')
            for i in range(n)]


@pytest.mark.parametrize('text, value', [
    ('40', 40), ('1', 1), ('1/8', Fraction(1, 8)), ('1/16', Fraction(1, 16)),
    ('2/3', Fraction(2, 3)), ('3/24', Fraction(1, 8)), ('0.2', Fraction(1, 5)), ('1.0', 1)])
def test_counts_and_fractions(text, value):
    read = count_or_fraction(text)
    assert read == value and isinstance(read, Fraction) == ('/' in text or '.' in text)


@pytest.mark.parametrize('text', ['0', '-3', '', 'many', '1/0', '0/8', '-1/8', '9/8', '0.0', '1.2',
                                  '1/8/2', 'a/b', '1e2', '1_8', '1_0/16', '0.1_2'])
def test_refused_counts_and_fractions(text):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        count_or_fraction(text)
    for word in (f"'{text}'", '40', '1/8'):
        assert word in str(caught.value)


@pytest.mark.parametrize('labeled_part, count', [
    (1, 1), (7, 7), (47, 47), (48, 48), (Fraction(1, 2), 24), (Fraction(1, 8), 6),
    (Fraction(1, 16), 3), (Fraction(1, 100), 1)])  # at least one
def test_labeled_and_unlabeled_are_all_samples_in_order(labeled_part, count):
    labeled, unlabeled, val = choose(samples_of(48), labeled_part, 0, 0, {})
    assert len(labeled) == count and val == []
    assert sorted(labeled + unlabeled) == list(range(48))
    assert labeled == sorted(labeled) and unlabeled == sorted(unlabeled)


def test_every_sample_has_the_same_probability():
    n, counts = 400, np.zeros((2, 24))
    for seed in range(n):
        labeled, _, val = choose(samples_of(24), 6, 4, seed, {})
        counts[0, labeled] += 1
        counts[1, val] += 1
    for row, p in zip(counts, (1 / 4, 1 / 6)):  # at most five standard deviations
        assert (abs(row - n * p) < 5 * (n * p * (1 - p)) ** 0.5).all()


def test_val_depends_on_the_seed_but_not_on_the_number_labeled():
    vals = [choose(samples_of(48), labeled, Fraction(1, 5), seed, {})[2]
            for labeled, seed in ((3, 0), (20, 0), (None, 0), (3, 1))]
    assert len(vals[0]) == 10  # a fifth, rounded up
    assert vals[0] == vals[1] == vals[2] != vals[3]


def test_a_smaller_labeled_list_is_part_of_a_larger_one_of_the_same_seed():
    few, many = (choose(samples_of(48), n, 5, 3, {})[0] for n in (4, 20))
    assert set(few) < set(many)


def test_samples_without_masks_are_unlabeled():
    labeled, unlabeled, val = choose(samples_of(20, masked=8), None, 3, 0, {})
    assert len(val) == 3 and sorted(labeled + val) == list(range(8))
    assert unlabeled == list(range(8, 20))
    # The fraction is of all training images, as in the published splits.
    assert len(choose(samples_of(20, masked=8), Fraction(1, 4), 0, 0, {})[0]) == 5


@pytest.mark.parametrize('labeled, val, message', [
    (9, 0, '--labeled 9: only 8 samples have masks and are not in val'),
    (6, 3, '--labeled 6: only 5 samples'), (None, 8, 'no labeled samples: only 0 samples'),
    (1, 9, '--val 9: only 8 samples have masks')])
def test_not_enough_samples_with_masks(labeled, val, message):
    with pytest.raises(UserError, match=message):
        choose(samples_of(20, masked=8), labeled, val, 0, {})


def test_stratified_has_every_class_in_labeled_and_then_in_val():
    # Class 9 is in one image, 8 in two, 7 in two others, 0 in all.
    classes = {i: {0} for i in range(30)}
    for i, value in ((17, 9), (3, 8), (22, 8), (4, 7), (29, 7)):
        classes[i].add(value)
    missed = 0
    for seed in range(20):
        labeled, unlabeled, val = choose(samples_of(30), 4, 6, seed, classes)
        present = [set().union(*(classes[i] for i in part)) for part in (labeled, val)]
        assert present == [{0, 7, 8, 9}, {0, 7, 8}]
        assert sorted(labeled + unlabeled + val) == list(range(30)) and len(labeled) == 4
        plain = choose(samples_of(30), 4, 6, seed, {})[0]
        missed += {0, 7, 8, 9} != set().union(*(classes[i] for i in plain))
    assert missed > 10  # a plain choice often lacks a class


def test_stratified_with_fewer_images_than_classes_takes_the_rarest():
    classes = {i: {i // 10} for i in range(24)}  # classes 0 and 1 ten times, 2 four times
    labeled, _, _ = choose(samples_of(24), 1, 0, 0, classes)
    assert classes[labeled[0]] == {2}


def test_the_command_splits_a_list(source, tmp_path, capsys):
    assert main(['split', source, '--labeled', '1/8', '--out', str(tmp_path / 'a')]) == 0
    printed = capsys.readouterr().out
    assert 'labeled.txt: 6 samples' in printed and 'unlabeled.txt: 42 samples' in printed
    main(['split', source, '--labeled', '6', '--seed', '0', '--out', str(tmp_path / 'b')])
    main(['split', source, '--labeled', '6', '--seed', '9', '--out', str(tmp_path / 'c')])
    a, b, c = (images(tmp_path / name / 'labeled.txt', True) for name in 'abc')
    assert a == b != c
    # Unlabeled images are trained on without masks: the list names none.
    rest = read_list(str(tmp_path / 'a' / 'unlabeled.txt'), False)
    assert len(rest) == 42 and all(sample.mask is None for sample in rest)
    assert not (tmp_path / 'val.txt').exists()


def test_the_command_on_folders(folders, capsys):
    assert main(FOLDERS + ['--val', '0.25', '--labeled', '5']) == 0
    printed = capsys.readouterr().out
    assert 'set data_root' in printed and 'relative to my set' in printed
    labeled, val = (read_list(path) for path in ('lists/a/labeled.txt', 'lists/val.txt'))
    unlabeled = images('lists/a/unlabeled.txt')
    assert (len(labeled), len(val), len(unlabeled)) == (5, 3, 12)
    everything = [sample.image for sample in labeled + val] + unlabeled
    assert sorted(everything) == sorted(f'photos/{i}.jpg' for i in range(20))
    for image, mask, _ in labeled + val:
        assert mask == image.replace('photos', 'masks').replace('jpg', 'png')


def test_all_that_have_masks_are_labeled_by_default(folders, capsys):
    assert main(FOLDERS) == 0
    assert len(images('lists/a/labeled.txt')) == 12 and len(images('lists/a/unlabeled.txt')) == 8


def test_if_all_samples_are_labeled_there_is_no_unlabeled_list(folders, capsys):
    main(FOLDERS + ['--labeled', '2'])
    for i in range(20):
        if not os.path.exists(f'my set/masks/{i}.png'):
            os.remove(f'my set/photos/{i}.jpg')
    capsys.readouterr()
    assert main(FOLDERS) == 0
    # The unlabeled list of the earlier split is removed: its images are labeled now.
    assert os.listdir('lists/a') == ['labeled.txt']
    assert 'unlabeled.txt: not written, because no sample is unlabeled' in capsys.readouterr().out


def test_a_hundred_thousand_samples_are_fast():
    samples = [Sample(f'{i:06d}.jpg', f'{i:06d}.png', '') for i in range(100000)]
    start = time.process_time()
    labeled, unlabeled, val = choose(samples, 30000, Fraction(1, 2), 0, {})
    assert (len(labeled), len(unlabeled), len(val)) == (30000, 20000, 50000)
    assert time.process_time() - start < 20  # looking up every index in a list would take minutes


def test_stratified_on_folders_opens_the_masks(folders, capsys):
    for seed in range(6):
        out = f'lists{seed}/a'
        assert main(FOLDERS[:-1] + [out, '--labeled', '2', '--stratified',
                                    '--seed', str(seed)]) == 0
        assert {'photos/4.jpg', 'photos/9.jpg'} & set(images(out + '/labeled.txt'))
    assert 'no labeled image' not in capsys.readouterr().out
    # One labeled image is not enough: the only image with class 6 lacks classes 0 and 5.
    mask = np.full((6, 8), 6, np.uint8)
    Image.fromarray(mask).save('my set/masks/0.png')
    main(FOLDERS[:-1] + ['lists/b', '--labeled', '1', '--stratified'])
    printed = capsys.readouterr().out
    assert images('lists/b/labeled.txt') == ['photos/0.jpg']
    assert 'no labeled image has mask value 0' in printed and 'mask value 5' in printed
    assert 'mask value 255' not in printed
    main(FOLDERS[:-1] + ['lists/c', '--labeled', '1', '--stratified', '--ignore-index', '6'])
    assert set(images('lists/c/labeled.txt')) <= {'photos/4.jpg', 'photos/9.jpg'}


def test_a_val_list_is_held_out_and_not_replaced(folders, capsys):
    main(FOLDERS + ['--val', '3'])
    held_out = Path('lists/val.txt').read_text()
    # For another split of the data, name the list, or use the same seed.
    for more in (['--val', 'lists/val.txt', '--seed', '8'], ['--val', '3']):
        assert main(FOLDERS[:-1] + ['lists/b', '--labeled', '2'] + more) == 0
        assert Path('lists/val.txt').read_text() == held_out
        assert not set(images('lists/val.txt')) & set(
            images('lists/b/labeled.txt') + images('lists/b/unlabeled.txt'))
    assert main(FOLDERS[:-1] + ['lists/c', '--labeled', '2', '--val', '3', '--seed', '8']) == 1
    assert 'val.txt exists and holds other samples' in capsys.readouterr().err
    assert Path('lists/val.txt').read_text() == held_out and not os.path.exists('lists/c')


def test_a_val_list_is_copied_to_the_folder_above_the_split(folders, capsys):
    with open('mine.txt', 'w') as file:
        file.write('photos/0.jpg\tmasks/0.png\n')
    assert main(FOLDERS + ['--val', 'mine.txt']) == 0
    assert images('lists/val.txt') == ['photos/0.jpg']
    assert len(images('lists/a/labeled.txt')) == 11


def test_val_images_in_folders_of_their_own(folders):
    for folder in ('photos', 'masks'):
        os.rename('my set/' + folder, 'my set/train ' + folder)
        os.makedirs('my set/val ' + folder)
    for i in range(3):
        os.rename(f'my set/train photos/{i}.jpg', f'my set/val photos/{i}.jpg')
        os.rename(f'my set/train masks/{i}.png', f'my set/val masks/{i}.png')

    def split(part, *more):
        return main(['split', '--images', f'my set/{part} photos', '--masks',
                     f'my set/{part} masks', '--data-root', 'my set', *more])
    assert split('val', '--out', 'lists/held_out') == 0
    assert split('train', '--val', 'lists/held_out/labeled.txt', '--out', 'lists/all') == 0
    assert images('lists/val.txt') == [f'val photos/{i}.jpg' for i in range(3)]
    assert all(name.startswith('train photos/') for name in images('lists/all/labeled.txt'))


def test_masks_without_an_image_are_reported(folders, capsys):
    os.remove('my set/photos/3.jpg')
    main(FOLDERS)
    assert '1 masks have no image, such as my set/masks/3.png' in capsys.readouterr().out


def test_bad_lists_and_a_folder_that_cannot_be_written(source, tmp_path, capsys):
    for arguments, message in [
            ([str(tmp_path / 'none.txt'), '--out', str(tmp_path / 'o')], 'no such id list'),
            ([source, '--val', 'none.txt', '--out', str(tmp_path / 'o')], 'none.txt: no such id'),
            # The folder is a file, so not even root can write there.
            ([source, '--out', source], 'train.txt: cannot be written')]:
        assert main(['split', '--labeled', '2'] + arguments) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()


@pytest.mark.parametrize('arguments', [
    [], ['--images', 'i'], ['list', '--images', 'i', '--masks', 'm'], ['list', '--masks', 'm'],
    ['list', '--stratified'], ['list', '--data-root', 'd'], ['list', '--labeled', '1/0'],
    ['list', '--seed', '-1'], ['list', '--mask-suffix', '_m']])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(['split', '--out', 'o'] + arguments)
    assert caught.value.code == 2 and 'usage' in capsys.readouterr().err


def test_the_command_prints_a_mistake_as_one_line(source):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, '-m', 'dssn', 'split', source, '--labeled', '99',
                           '--out', 'nowhere'], cwd=root, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1
    assert '--labeled 99' in done.stderr and 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize('arguments', [[], ['split'], ['split', 'list'], ['frobnicate']])
def test_missing_or_unknown_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and 'usage' in capsys.readouterr().err
