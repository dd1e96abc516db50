"""Groups of images: their names, the choice of whole groups, and the warning of sequences."""
import argparse
import itertools
import os
import random
import re
import shlex

import pytest

from dssn.data.lists import Sample, read_list
from dssn.errors import UserError
from dssn.tools.data.groups import closest_groups, group_of, group_rule, sequence_warning


def samples_of(names):
    return [Sample(name, None, f'train.txt line {i}') for i, name in enumerate(names, 1)]


@pytest.mark.parametrize('rule, image, name', [
    ('folder', 'images/a/1.jpg', 'images/a'), ('folder', './images//a/1.jpg', 'images/a'),
    ('folder', '1.jpg', '.'),
    ('[^/]+_', 'images/0001TP_006690.jpg', '0001TP_'),               # the whole match
    ('([^/]+)_', 'images/0001TP_006690.jpg', '0001TP'),              # the first group
    ('(p[0-9]+)/.*(left|right)', 'x/p12/left_3.png', 'p12'),
    ('jpg|7', 'a/7.jpg', '7')])                                      # without the ending
def test_names_of_groups(rule, image, name):
    assert group_of(Sample(image, None, ''), group_rule(rule)) == name


@pytest.mark.parametrize('rule', ['jpg', '[0-9]*', '(x)?images', '^0001'])
def test_an_image_without_a_group_is_named(rule):
    with pytest.raises(UserError) as caught:
        group_of(Sample('images/7a.jpg', None, 'train.txt line 9'), group_rule(rule))
    for text in (f"--group '{rule}'", "'images/7a'", 'train.txt line 9', 'every image'):
        assert text in str(caught.value)


def test_what_is_no_expression_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match=r"'\(a' is not a regular.*'folder'"):
        group_rule('(a')


def test_the_sum_of_groups_is_the_closest_of_all_subsets():
    rng, missed = random.Random(0), 0
    for _ in range(400):
        sizes = {f'g{i}': rng.choice([1, 2, 3, 7, 20]) for i in range(rng.randint(1, 7))}
        limit = rng.randint(1, sum(sizes.values()))
        wanted = rng.randint(1, limit)
        sums = [sum(part) for n in range(1, len(sizes) + 1)
                for part in itertools.combinations(sizes.values(), n) if sum(part) <= limit]
        chosen = closest_groups(list(sizes), sizes, wanted, limit)
        assert len(set(chosen)) == len(chosen)
        found = sum(sizes[name] for name in chosen)
        assert found == min(sums, key=lambda s: (abs(s - wanted), s), default=0)
        missed += found != wanted
    assert 50 < missed < 350


def test_groups_of_one_are_taken_in_their_order():
    names = list('hgfedcba')
    assert closest_groups(names, dict.fromkeys(names, 1), 3, 7) == names[:3]


def numbered(pattern, numbers):
    return [pattern.format(n) for n in numbers]


SPARSE = sorted(random.Random(0).sample(range(1, 4000), 2000))  # half of the numbers, as VOC has
LOOSE = sorted(random.Random(1).sample(range(1, 10 ** 6), 60))
SEQUENCES = {
    'three videos': [name for video in ('0001TP_', '0006R0_f', 'x/0016E5_')
                     for name in numbered(video + '{:06d}.jpg', range(30, 900, 30))],
    'slices of two patients': (numbered('p1_{}.png', range(1, 40))
                               + numbered('p2_{}.png', range(1, 20))),
    'tiles of scenes': [f'scene{s}_{x}_{y}.png' for s in 'ab' for x in range(5) for y in range(5)],
    'a number in the common end': [name for v in 'ab' for name in numbered(
        f'{v}_{{:06d}}_leftImg8bit.png', range(19, 1000, 20))],
    'one video, each 25th frame': numbered('v/{:05d}.jpg', range(0, 2500, 25)),
    'drives in folders': [f'train/{n % 9}/{n}.jpg' for n in LOOSE],
}
PHOTOS = {
    'one series of photos': numbered('{:04d}.jpg', range(1, 300)),
    'photos with gaps': numbered('IMG_{}.jpg', [n for n in range(1, 300) if n % 8]),
    'Pascal VOC': [name for year in (2008, 2009, 2010)
                   for name in numbered(f'JPEGImages/{year}_{{:06d}}.jpg', SPARSE)],
    'COCO': [name for part in ('train2017', 'val2017')
             for name in numbered(part + '/{:012d}.jpg', LOOSE)],
    'parts in folders': [name for part in ('train', 'val', 'test')
                         for name in numbered(part + '/images/{}.png', range(1, 50))],
    'parts in names': [name for part in ('train', 'val')
                       for name in numbered(f'A_{part}_{{:04d}}.jpg', range(1, 50))],
    'no numbers': [f'{a}{b}.jpg' for a in 'abcdef' for b in 'abcdef'],
    'hashes': [f'{hash((n, 1)) % 16 ** 8:08x}.jpg' for n in LOOSE],
    'one folder an image': [f'{n}/rgb.png' for n in LOOSE],
    'two images': ['a_1.jpg', 'a_3.jpg'], 'one image': ['a_1.jpg'],
}


@pytest.mark.parametrize('names', SEQUENCES.values(), ids=SEQUENCES)
def test_sequences_are_recognised_and_the_advice_keeps_them_whole(names):
    text = sequence_warning(samples_of(names))
    assert os.path.splitext(names[0])[0] in text and 'val is chosen at random' in text
    if names == SEQUENCES['one video, each 25th frame']:
        assert 'one sequence' in text and 'by an id list: --val LIST' in text
        return
    advice = shlex.split(re.search(r'--group (.*) keeps', text).group(1))[0]
    groups = {group_of(sample, group_rule(advice)) for sample in samples_of(names)}
    assert 1 < len(groups) < len(names) / 2


@pytest.mark.parametrize('names', PHOTOS.values(), ids=PHOTOS)
def test_photos_are_not_taken_for_sequences(names):
    assert sequence_warning(samples_of(names)) is None


@pytest.mark.parametrize('variable, what', [
    ('DSSN_CAMVID', '3 sequences'), ('DSSN_IDD_LITE', 'sequences in'), ('DSSN_CCP', None)])
def test_the_names_of_real_data(variable, what):
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f'{variable} names no folder')
    names = [os.path.relpath(os.path.join(place, name), folder)
             for place, _, found in os.walk(os.path.join(folder, 'images')) for name in found]
    text = sequence_warning(samples_of(names))
    assert what in text if what else text is None


@pytest.mark.parametrize('name, what', [
    ('pascal/train_aug.txt', None), ('pascal/val.txt', None), ('pascal/1_4/labeled.txt', None),
    ('cityscapes/1_2/labeled.txt', 'sequences in 18 folders')])
def test_the_names_of_published_lists(name, what):
    folder = os.environ.get('DSSN_PUBLISHED_SPLITS')
    if not folder:
        pytest.skip('DSSN_PUBLISHED_SPLITS names no folder')
    text = sequence_warning(read_list(os.path.join(folder, name)))
    assert what in text if what else text is None
