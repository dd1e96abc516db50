"""Cutting a list into a labeled and an unlabeled part, as a function and as a command."""
import os
import subprocess
import sys
from fractions import Fraction

import pytest

from dssn.data.__main__ import main
from dssn.data.lists import read_list
from dssn.data.split import parse_share, split
from dssn.errors import UserError


@pytest.fixture
def source(tmp_path):
    path = str(tmp_path / 'train.txt')
    with open(path, 'w') as file:
        file.writelines('images/%d.jpg masks/%d.png\n' % (i, i) for i in range(48))
    return path


def parts(out):
    return (read_list(os.path.join(str(out), 'labeled.txt')),
            read_list(os.path.join(str(out), 'unlabeled.txt'), masks=False))


@pytest.mark.parametrize('text, value', [
    ('40', 40), ('1', 1), ('1/8', Fraction(1, 8)), ('1/16', Fraction(1, 16)),
    ('2/3', Fraction(2, 3)), ('3/24', Fraction(1, 8))])
def test_shares_that_are_read(text, value):
    assert parse_share(text) == value and type(parse_share(text)) is type(value)


@pytest.mark.parametrize('text', ['0', '-3', '', 'many', '0.5', '1/0', '0/8', '-1/8', '9/8',
                                  '1/8/2', 'a/b', '1e2'])
def test_shares_that_are_refused(text):
    with pytest.raises(UserError) as caught:
        parse_share(text)
    for word in ('--labeled ' + text, '40', '1/8'):
        assert word in str(caught.value)


@pytest.mark.parametrize('share, count', [
    (1, 1), (7, 7), (47, 47), (Fraction(1, 2), 24), (Fraction(1, 8), 6), (Fraction(1, 16), 3),
    (Fraction(1, 100), 1)])  # at least one
def test_both_parts_together_are_the_list(source, tmp_path, share, count):
    assert split(source, share, 0, str(tmp_path / 'out')) == (count, 48 - count)
    labeled, unlabeled = parts(tmp_path / 'out')
    assert (len(labeled), len(unlabeled)) == (count, 48 - count)
    everything = {s.image: s.mask for s in read_list(source)}
    images = [s.image for s in labeled + unlabeled]
    assert sorted(images) == sorted(everything) and len(set(images)) == 48
    assert all(everything[s.image] == s.mask for s in labeled)
    # Unlabeled images are trained on without masks: the list does not name any.
    assert all(s.mask is None for s in unlabeled)
    for part in (labeled, unlabeled):
        numbers = [int(s.image[len('images/'):-len('.jpg')]) for s in part]
        assert numbers == sorted(numbers)


def chosen(source, out, seed, count=12):
    split(source, count, seed, str(out))
    return tuple(s.image for s in parts(out)[0])


def test_the_seed_decides_which(source, tmp_path):
    choices = [chosen(source, tmp_path / str(i), seed) for i, seed in enumerate([0, 0, 1, 2])]
    assert choices[0] == choices[1]
    assert len(set(choices)) == 3


def test_every_sample_has_the_same_chance(source, tmp_path):
    n = 200
    images = [image for seed in range(n) for image in chosen(source, tmp_path / 'o', seed)]
    counts = [images.count(s.image) for s in read_list(source)]
    # A quarter of the draws each, five deviations at most.
    assert all(abs(count - n / 4) < 5 * (n * 0.25 * 0.75) ** 0.5 for count in counts)


def test_paths_with_spaces_survive(tmp_path):
    path = str(tmp_path / 'list.txt')
    with open(path, 'w') as file:
        file.writelines('my images/%d.jpg\tmy masks/%d.png\n' % (i, i) for i in range(6))
    split(path, 2, 0, str(tmp_path / 'out'))
    labeled, unlabeled = parts(tmp_path / 'out')
    assert all(s.mask == s.image.replace('images', 'masks').replace('jpg', 'png') for s in labeled)
    assert all(s.image.startswith('my images/') and s.image.endswith('.jpg') for s in unlabeled)
    assert len(labeled) == 2 and len(unlabeled) == 4


def test_more_labeled_samples_than_there_are(source, tmp_path):
    with pytest.raises(UserError) as caught:
        split(source, 49, 0, str(tmp_path / 'out'))
    for word in ('--labeled 49', source, '48'):
        assert word in str(caught.value)
    assert not os.path.exists(str(tmp_path / 'out'))


def test_a_bad_list_and_a_folder_that_cannot_be_written(source, tmp_path):
    with pytest.raises(UserError, match='no such id list'):
        split(str(tmp_path / 'none.txt'), 2, 0, str(tmp_path / 'out'))
    # A file stands where the folder should be: not even root can write there.
    with pytest.raises(UserError, match='--out .*train.txt'):
        split(source, 2, 0, source)
    images_only = str(tmp_path / 'images.txt')
    with open(images_only, 'w') as file:
        file.write('a.jpg\nb.jpg\n')
    with pytest.raises(UserError, match='images.txt line 1.*no mask'):
        split(images_only, 1, 0, str(tmp_path / 'out'))


def test_the_command(source, tmp_path, capsys):
    main(['split', source, '--labeled', '1/8', '--out', str(tmp_path / 'a')])
    said = capsys.readouterr().out
    assert '6 labeled' in said and '42 unlabeled' in said and 'seed 0' in said
    main(['split', source, '--labeled', '6', '--seed', '0', '--out', str(tmp_path / 'b')])
    main(['split', source, '--labeled', '6', '--seed', '9', '--out', str(tmp_path / 'c')])
    a, b, c = ([s.image for s in parts(tmp_path / name)[0]] for name in 'abc')
    assert a == b != c


def test_the_command_prints_a_mistake_as_one_line(source):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, '-m', 'dssn.data', 'split', source, '--labeled', '99',
                           '--out', 'nowhere'], cwd=root, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1
    assert '--labeled 99' in done.stderr and 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize('arguments', [[], ['split'], ['split', 'list'], ['frobnicate']])
def test_arguments_that_are_missing_or_unknown(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and 'usage' in capsys.readouterr().err
