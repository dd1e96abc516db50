"""Making labeled, unlabeled and val lists, by the function and by the command."""
import argparse
import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
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


def test_what_has_no_partner_is_counted_and_named(folders, capsys):
    os.remove('my set/photos/3.jpg')
    assert main(FOLDERS) == 0
    printed = capsys.readouterr()
    assert ('8 of 19 images have no mask: photos/12.jpg, photos/13.jpg, photos/14.jpg, ...\n'
            in printed.out)
    assert 'warning: 1 masks have no image' in printed.err
    assert printed.err.endswith('not used: my set/masks/3.png\n')


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
    ['list', '--seed', '-1'], ['list', '--mask-suffix', '_m'], ['list', '--group', 'folder'],
    ['list', '--labeled', '1', '--group', '(']])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(['split', '--out', 'o'] + arguments)
    assert caught.value.code == 2 and 'usage' in capsys.readouterr().err


def world_of_groups(rng):
    """(samples, groups, classes) of up to 16 samples in up to 6 groups; some have no mask."""
    n = rng.randint(2, 16)
    groups = [f'g{rng.randint(0, rng.choice([1, 5]))}' for _ in range(n)]
    samples = [Sample(f'{i}.jpg', f'{i}.png' if rng.random() < 0.8 else None, '')
               for i in range(n)]
    classes = {i: {0, rng.randint(1, 4)} for i, sample in enumerate(samples) if sample.mask}
    return samples, groups, classes


def test_groups_are_whole_val_is_closest_and_labeled_is_spread():
    rng, counted = random.Random(0), Counter()
    for seed in range(600):
        samples, groups, _ = world_of_groups(rng)
        sizes = Counter(group for sample, group in zip(samples, groups) if sample.mask)
        total = sum(sizes.values())
        wanted = rng.randint(1, max(total - 1, 1))
        # The independent reference: all sets of groups, but not of all groups.
        sums = [sum(part) for k in range(1, len(sizes))
                for part in itertools.combinations(sizes.values(), k)]
        if not sums:
            with pytest.raises(UserError):
                choose(samples, None, wanted, seed, {}, groups)
            counted['one group'] += 1
            continue
        labeled, unlabeled, val = choose(samples, None, wanted, seed, {}, groups)
        assert len(val) == min(sums, key=lambda s: (abs(s - wanted), s))
        in_val = {groups[i] for i in val}
        assert not in_val & {groups[i] for i in labeled + unlabeled}
        assert len(val) == sum(sizes[group] for group in in_val)
        left_out = set(range(len(samples))) - {*labeled, *unlabeled, *val}
        assert left_out == {i for i, sample in enumerate(samples)
                            if not sample.mask and groups[i] in in_val}
        counted['not met'] += len(val) != wanted
        counted['left out'] += bool(left_out)
        few = rng.randint(1, len(labeled))
        some, rest, again = choose(samples, few, wanted, seed, {}, groups)
        assert again == val and set(some) <= set(labeled) and len(some) == few
        assert sorted(some + rest) == sorted(labeled + unlabeled)
        taken = Counter(groups[i] for i in some)
        for group in {groups[i] for i in labeled}:  # none is behind, unless it has no more
            assert taken[group] >= max(taken.values()) - 1 or taken[group] == sizes[group]
    assert min(counted.values()) > 30 and len(counted) == 3


def test_stratified_groups_show_every_class_in_labeled_and_keep_groups_whole():
    rng, done = random.Random(1), 0
    for seed in range(400):
        samples, groups, classes = world_of_groups(rng)
        try:
            labeled, unlabeled, val = choose(samples, None, 2, seed, classes, groups)
        except UserError:
            continue
        everything = set().union(*classes.values())
        assert set().union(*(classes[i] for i in labeled)) == everything
        assert not {groups[i] for i in val} & {groups[i] for i in labeled + unlabeled}
        few = choose(samples, min(5, len(labeled)), 2, seed, classes, groups)[0]
        if len(few) == 5:  # enough for 5 classes
            assert set().union(*(classes[i] for i in few)) == everything
            done += 1
    assert done > 50


def test_a_group_of_each_image_changes_nothing():
    rng = random.Random(2)
    for seed in range(100):
        samples, _, classes = world_of_groups(rng)
        names = [sample.image for sample in samples]
        for present in ({}, classes):
            found = []
            for groups in (None, names):
                try:
                    found.append(choose(samples, Fraction(1, 3), 2, seed, present, groups))
                except UserError as error:
                    found.append(str(error))
            assert found[0] == found[1]


def test_the_seed_decides_which_groups_are_held_out():
    groups = [f'{i // 3}' for i in range(30)]
    vals = {tuple(choose(samples_of(30), None, 6, seed, {}, groups)[2]) for seed in range(20)}
    assert len(vals) > 10 and all(len(val) == 6 for val in vals)


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """The working directory holds `set/photos` with frames of the videos a (10), b (6) and c (4);
    the last frame of each has no mask. `set/list.txt` names them all."""
    monkeypatch.chdir(tmp_path)
    for folder in ('photos', 'masks'):
        (tmp_path / 'set' / folder).mkdir(parents=True)
    lines = []
    for video, count in (('a', 10), ('b', 6), ('c', 4)):
        for i in range(count):
            Image.new('RGB', (4, 4)).save(f'set/photos/{video}_{i:03d}.jpg')
            if i < count - 1:
                Image.new('L', (4, 4)).save(f'set/masks/{video}_{i:03d}.png')
            lines.append(f'photos/{video}_{i:03d}.jpg' + f' masks/{video}_{i:03d}.png' * (
                i < count - 1) + '\n')
    Path('set/list.txt').write_text(''.join(lines))


VIDEOS = ['split', '--images', 'set/photos', '--masks', 'set/masks', '--out', 'lists/a']


def test_the_command_with_groups(videos, capsys):
    assert main(VIDEOS + ['--val', '0.25', '--labeled', '4', '--group', '([a-z])_']) == 0
    # 17 masks: a quarter is 5, as many as video b has. Its frame without a mask is in no list.
    assert images('lists/val.txt') == [f'photos/b_{i:03d}.jpg' for i in range(5)]
    assert Counter(name[7] for name in images('lists/a/labeled.txt')) == {'a': 2, 'c': 2}
    assert len(images('lists/a/unlabeled.txt')) == 10
    printed = capsys.readouterr()
    assert printed.err == ''
    for text in ('labeled.txt: 4 samples of 2 groups', 'unlabeled.txt: 10 samples of 2 groups',
                 'val.txt: 5 samples of 1 group\n', 'groups in val: b\n',
                 '1 images of groups in val are in no list: photos/b_005.jpg',
                 '--val 0.25: 5 of 17 samples with masks (29.4%)'):
        assert text in printed.out
    # The same from the id list, and with the val list in place of the fraction.
    for more in (['set/list.txt', '--val', '0.25'], ['set/list.txt', '--val', 'lists/val.txt'],
                 VIDEOS[1:5] + ['--val', 'lists/val.txt']):
        assert main(['split', *more, '--labeled', '4', '--group', '([a-z])_',
                     '--out', 'lists/b']) == 0
        train = [sorted(images(f'lists/{out}/labeled.txt') + images(f'lists/{out}/unlabeled.txt'))
                 for out in 'ab']
        assert train[0] == train[1]
    assert 'lists/val.txt: names 5 of the 20 images to split' in capsys.readouterr().out


def test_a_random_val_of_sequences_is_warned_of(videos, capsys):
    def warned(*arguments):
        assert main(['split', 'set/list.txt', '--out', 'lists/a', *arguments]) == 0
        return 'warning: the images look like 3 sequences' in capsys.readouterr().err
    assert warned('--val', '4')
    os.remove('lists/val.txt')
    assert not warned('--labeled', '4')
    assert not warned('--val', '4', '--group', r'(.*?)\d+\D*$')  # the advice of the warning
    assert not warned('--val', 'lists/val.txt')


@pytest.mark.parametrize('arguments, message', [
    (['--val', '4', '--group', 'folder'],
     'all 17 samples with masks are in one group, photos; write a --group'),
    (['--val', '17', '--group', '[a-z]_'], 'only 0 samples have masks and are not in val'),
    (['--val', '18', '--group', '[a-z]_'], '--val 18: only 17 samples have masks; hold out fewer'),
    (['--labeled', '4', '--group', '[ab]_'], "'[ab]_': names no group in 'photos/c_000'"),
    (['--val', 'val.txt', '--group', 'folder'], 'all 20 images are held out, or in a group with'),
    (['--val', 'other.txt'], 'other.txt line 1: no file photos/z.jpg')])
def test_groups_that_cannot_be_kept(videos, capsys, arguments, message):
    Path('val.txt').write_text('photos/a_000.jpg masks/a_000.png\n')
    Path('other.txt').write_text('photos/z.jpg masks/a_000.png\n')
    assert main(VIDEOS + arguments) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not os.path.exists('lists')


def test_an_image_that_is_listed_twice_is_on_one_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('twice.txt').write_text(''.join(
        f'{dot}i/{n}.jpg m/{n}.png\n' for n in range(10) for dot in ('', './')))
    for seed in range(5):
        assert main(['split', 'twice.txt', '--val', '6', '--seed', str(seed),
                     '--out', f'{seed}/a']) == 0
        val, labeled = ({os.path.normpath(name) for name in images(f'{seed}/{name}')}
                        for name in ('val.txt', 'a/labeled.txt'))
        assert len(val) == 3 and len(labeled) == 7 and not val & labeled


def test_a_val_list_holds_out_the_same_image_in_another_spelling(source, tmp_path):
    (tmp_path / 'val.txt').write_text('./images//3.jpg masks/3.png\n')
    assert main(['split', source, '--val', str(tmp_path / 'val.txt'),
                 '--out', str(tmp_path / 'x' / 'a')]) == 0
    assert 'images/3.jpg' not in images(tmp_path / 'x' / 'a' / 'labeled.txt')


def test_val_of_camvid_has_no_neighbour_in_training(tmp_path):
    root = os.environ.get('DSSN_CAMVID')
    if not root:
        pytest.skip('DSSN_CAMVID names no folder of CamVid')

    def neighbours(out, *more):
        """The val images with a frame within a second (30 frames) in training."""
        main(['split', '--images', root + '/images', '--masks', root + '/masks', '--labeled', '40',
              '--val', '0.2', '--out', str(tmp_path / out / 'a'), *more])
        parts = []
        for name in ('val.txt', 'a/labeled.txt', 'a/unlabeled.txt'):
            parts.append([re.fullmatch(r'images/(\w+_)f?(\d+).jpg', image).groups()
                          for image in images(tmp_path / out / name)])
        train = {(video, int(number)) for video, number in parts[1] + parts[2]}
        return len(parts[0]), sum(any((video, int(number) + k) in train for k in range(-30, 31))
                                  for video, number in parts[0])
    assert neighbours('random') == (94, 90)
    assert neighbours('whole', '--group', '[^/]+_') == (101, 0)


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


# ---- split LIST --add SPLIT

@pytest.fixture
def streets(tmp_path):
    """splits/12 with two labeled and three unlabeled images, and a val image; returns splits/."""
    (tmp_path / 'splits' / '12').mkdir(parents=True)
    (tmp_path / 'splits/12/labeled.txt').write_text('i/a.jpg m/a.png\ni/b.jpg m/b.png\n')
    (tmp_path / 'splits/12/unlabeled.txt').write_text('i/c.jpg\n./i/d.jpg\ni/e x.jpg\t\n')
    (tmp_path / 'splits/val.txt').write_text('i/v.jpg m/v.png\n')
    return tmp_path / 'splits'


def add(streets, text, *more, out='15'):
    (streets / 'new.txt').write_text(text)
    return main(['split', str(streets / 'new.txt'), '--add', str(streets / '12'), '--out',
                 str(streets / out), *more])


def test_add(streets, capsys):
    assert add(streets, 'i/d.jpg new/d.png\ni/e x.jpg\tnew/e x.png\ni/b.jpg new/b.png\n'
                        'i/z.jpg new/z.png\n') == 0
    assert [s[:2] for s in read_list(str(streets / '15/labeled.txt'))] == [
        ('i/a.jpg', 'm/a.png'), ('i/b.jpg', 'new/b.png'), ('i/d.jpg', 'new/d.png'),
        ('i/e x.jpg', 'new/e x.png'), ('i/z.jpg', 'new/z.png')]
    assert images(streets / '15/unlabeled.txt') == ['i/c.jpg']
    out = capsys.readouterr().out
    assert '4 samples: 2 were unlabeled, 1 were labeled (1 with another mask), 1 were in ' in out
    # The old lists and val stay as they are.
    assert images(streets / '12/unlabeled.txt') == ['i/c.jpg', './i/d.jpg', 'i/e x.jpg']
    assert images(streets / 'val.txt') == ['i/v.jpg']


def test_add_to_the_same_split_and_to_another_place(streets):
    assert add(streets, 'i/c.jpg m/c.png\n', out='12') == 0
    assert add(streets, 'i/c.jpg m/c.png\n', out='12') == 0
    assert images(streets / '12/labeled.txt') == ['i/a.jpg', 'i/b.jpg', 'i/c.jpg']
    assert add(streets, 'i/d.jpg m/d.png\ni/e x.jpg\tm/e x.png\n', out='far/17') == 0
    assert images(streets / 'far/val.txt') == ['i/v.jpg']
    assert not (streets / 'far/17/unlabeled.txt').exists()  # none is left


@pytest.mark.parametrize('text, words', [
    ('i/v.jpg m/v.png\n', ['new.txt line 1', 'val.txt line 1', 'in val']),
    ('i/c.jpg m/c.png\n./i/c.jpg m/d.png\n', ['new.txt line 2', 'new.txt line 1']),
    ('photos/i/c.jpg m/c.png\n', ['none of its 1 images', '--data-root']),
    ('i/c.jpg\n', ['new.txt line 1', 'names no mask'])])
def test_what_cannot_be_added(streets, capsys, text, words):
    assert add(streets, text) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in words) and not (streets / '15').exists()


def test_add_takes_no_options_that_choose(streets):
    for more in (['--labeled', '3'], ['--val', '1'], ['--stratified'], ['--images', 'x']):
        with pytest.raises(SystemExit):
            add(streets, 'i/c.jpg m/c.png\n', *more)
    with pytest.raises(SystemExit):
        main(['split', '--add', str(streets / '12'), '--out', str(streets / '15')])
