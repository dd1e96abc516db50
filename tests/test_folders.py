"""Pairing a user's images and masks by stem."""
import os

import pytest

from dssn.data.folders import pair_files
from dssn.errors import UserError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that makes empty files below a new working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'')
    return make


def pairs(*args, **keys):
    samples, root, unpaired = pair_files(*args, **keys)
    return [sample[:2] for sample in samples], root, unpaired


def test_folders_are_paired_by_stem_and_images_without_mask_are_kept(tree):
    tree('set/photos/b.jpg', 'set/photos/a.PNG', 'set/photos/c.jpeg', 'set/masks/a.png',
         'set/masks/c.png', 'set/masks/gone.png', 'set/photos/notes.txt', 'set/photos/.hidden.jpg')
    assert pairs('set/photos', 'set/masks') == (
        [('photos/a.PNG', 'masks/a.png'), ('photos/b.jpg', None),
         ('photos/c.jpeg', 'masks/c.png')], 'set', [os.path.join('set', 'masks', 'gone.png')])


def test_paths_with_spaces_and_an_absolute_folder(tree, tmp_path):
    tree('my set/in put/a b.jpg', 'my set/masks/a b.png')
    samples, root, unpaired = pairs(str(tmp_path / 'my set' / 'in put'), 'my set/masks')
    assert samples == [('in put/a b.jpg', 'masks/a b.png')] and unpaired == []
    assert os.path.abspath(root) == str(tmp_path / 'my set')


def test_several_mask_suffixes_the_longest_first(tree):
    tree('i/1.jpg', 'i/2.jpg', 'i/3.jpg', 'm/1_mask.png', 'm/2_gt_mask.png', 'm/3.png')
    found, _, unpaired = pairs('i', 'm', ['_mask', '_gt_mask', ''])
    assert found == [('i/1.jpg', 'm/1_mask.png'), ('i/2.jpg', 'm/2_gt_mask.png'),
                     ('i/3.jpg', 'm/3.png')] and unpaired == []
    found, _, unpaired = pairs('i', 'm', ['_mask'])
    # Only a file with the suffix is a mask: 3.png is not, and 2_gt has no image.
    assert found == [('i/1.jpg', 'm/1_mask.png'), ('i/2.jpg', None), ('i/3.jpg', None)]
    assert unpaired == [os.path.join('m', '2_gt_mask.png')]


def test_the_layout_of_cityscapes(tree):
    for city in ('ulm', 'bonn'):
        tree(f'c/leftImg8bit/train/{city}/{city}_1_leftImg8bit.png',
             f'c/gtFine/train/{city}/{city}_1_gtFine_labelTrainIds.png',
             f'c/gtFine/train/{city}/{city}_1_gtFine_color.png')
    found, root, unpaired = pairs('c/leftImg8bit', 'c/gtFine', ['_gtFine_labelTrainIds'],
                               '_leftImg8bit')
    assert root == 'c' and unpaired == [] and found == [
        (f'leftImg8bit/train/{city}/{city}_1_leftImg8bit.png',
         f'gtFine/train/{city}/{city}_1_gtFine_labelTrainIds.png') for city in ('bonn', 'ulm')]


def test_equal_stems_are_matched_by_their_folders(tree):
    tree('i/day/1.jpg', 'i/night/1.jpg', 'm/day/1.png', 'm/night/1.png')
    found, _, _ = pairs('i', 'm')
    assert found == [('i/day/1.jpg', 'm/day/1.png'), ('i/night/1.jpg', 'm/night/1.png')]


def test_equal_stems_that_cannot_be_matched(tree):
    tree('i/day/1.jpg', 'i/night/1.jpg', 'm/1.png')
    with pytest.raises(UserError, match=r"m.1.png: 2 images have its stem '1' \(i.day.1.jpg"):
        pair_files('i', 'm')


def test_globs(tree):
    tree('d/s1/rgb/a.jpg', 'd/s1/seg/a.png', 'd/s2/rgb/b.jpg', 'd/s2/seg/b.png', 'd/s2/rgb/b.txt')
    found, root, _ = pairs('d/*/rgb/*', 'd/*/seg/*.png')
    assert root == 'd'
    assert found == [('s1/rgb/a.jpg', 's1/seg/a.png'), ('s2/rgb/b.jpg', 's2/seg/b.png')]


def test_one_folder_for_both(tree):
    tree('d/a.png', 'd/a_mask.png', 'd/b.png')
    assert pairs('d', 'd', ['_mask'])[0] == [('a.png', 'a_mask.png'), ('b.png', None)]
    with pytest.raises(UserError, match='both find d.a.png; give a --mask-suffix'):
        pair_files('d', 'd')
    tree('e/a.jpg', 'e/a.png')
    assert pairs('e/*.jpg', 'e/*.png')[0] == [('a.jpg', 'a.png')]


def test_a_given_data_root_must_hold_all_files(tree):
    tree('x/set/i/a.jpg', 'x/set/m/a.png')
    assert pairs('x/set/i', 'x/set/m', data_root='x')[:2] == (
        [('set/i/a.jpg', 'set/m/a.png')], 'x')
    with pytest.raises(UserError, match='x.set.i.a.jpg: outside --data-root x.set.m'):
        pair_files('x/set/i', 'x/set/m', data_root='x/set/m')


@pytest.mark.parametrize('names, message', [
    (['m/a.png'], r'--images i: no such folder'),
    (['i/.hidden.jpg', 'm/a.png'], r'--images i: no file found with an ending of .jpg'),
    (['i/a.jpg', 'm/a.txt'], r'--masks m: no file found'),
    (['i/a.jpg', 'm/a.jpg'], r'm.a.jpg is a JPEG.*export the masks again as PNG'),
    (['i/a.jpg', 'm/b.png'], r'no mask matches an image by stem \(image i.a.jpg, mask m.b.png\)'),
    (['i/a.jpg', 'm/a.png', 'm/x/a.png'], r'image i.a.jpg: two masks match it, m.a.png and m.x.a'),
])
def test_refused_folders(tree, names, message):
    tree(*names)
    with pytest.raises(UserError, match=message):
        pair_files('i', 'm')


def test_links_to_folders_are_followed_but_not_in_circles(tree, tmp_path):
    tree('disk/a/1.jpg', 'disk/a/deep/2.jpg', 'set/i/0.jpg', 'set/m/a/1.png')
    (tmp_path / 'set' / 'i' / 'a').symlink_to(tmp_path / 'disk' / 'a')
    (tmp_path / 'set' / 'i' / 'b').symlink_to(tmp_path / 'disk' / 'a')   # the same again
    (tmp_path / 'disk' / 'a' / 'up').symlink_to(tmp_path / 'set' / 'i')  # a circle
    assert pairs('set/i', 'set/m')[0] == [
        ('i/0.jpg', None), ('i/a/1.jpg', 'm/a/1.png'), ('i/a/deep/2.jpg', None)]


def test_hidden_folders_are_left_out(tree):
    tree('i/1.jpg', 'i/.ipynb_checkpoints/1-checkpoint.jpg', 'm/1.png', 'm/.trash/1.png')
    assert pairs('i', 'm')[0] == [('i/1.jpg', 'm/1.png')]


def test_in_two_trees_the_subfolder_counts(tree):
    tree('i/a/000.jpg', 'i/b/000.jpg', 'i/b/001.jpg', 'm/b/000.png', 'm/c/001.png', 'm/c/000.png')
    found, _, unpaired = pairs('i', 'm')
    assert found == [('i/a/000.jpg', None), ('i/b/000.jpg', 'm/b/000.png'), ('i/b/001.jpg', None)]
    assert unpaired == [os.path.join('m', 'c', name) for name in ('000.png', '001.png')]


def test_no_mask_in_the_subfolder_of_its_image_and_the_remedies(tree):
    tree('i/rgb/s/0.jpg', 'm/seg/s/0.png')
    with pytest.raises(UserError, match=r"subfolder of its image \(image i.rgb.s.0.jpg, mask "
                                        r"m.seg.s.0.png\); give the folders.*'data/\*/seg/\*'"):
        pair_files('i', 'm')
    for images, masks in (('i/rgb', 'm/seg'), ('i/rgb/*/*', 'm/seg/*/*')):
        assert pairs(images, masks)[0] == [('i/rgb/s/0.jpg', 'm/seg/s/0.png')]


@pytest.mark.parametrize('images, masks, found', [
    # Only one of the two has subfolders: the stem is enough.
    (['i/a/1.jpg', 'i/b/2.jpg'], ['m/1.png', 'm/2.png'], ['m/1.png', 'm/2.png']),
    (['i/1.jpg', 'i/2.jpg'], ['m/a/1.png', 'm/b/2.png'], ['m/a/1.png', 'm/b/2.png']),
    # Two images have a stem, but no mask has it, or one lies beside the mask's folder.
    (['i/a/1.jpg', 'i/b/1.jpg', 'i/b/2.jpg'], ['m/2.png'], [None, None, 'm/2.png']),
    (['i/1.jpg', 'i/a/1.jpg'], ['m/1.png'], ['m/1.png', None]),
])
def test_one_tree_and_one_flat_folder(tree, images, masks, found):
    tree(*images, *masks)
    assert pairs('i', 'm')[0] == list(zip(images, found))


@pytest.mark.parametrize('images, masks, image, mask', [
    ('d/*/rgb/*', 'd/*/seg/*', 'd/s1/rgb/0.jpg', 'd/s1/seg/0.png'),
    ('d/*_rgb/*.jpg', 'd/*_seg/*.png', 'd/s1_rgb/0.jpg', 'd/s1_seg/0.png'),
    ('d/?/x/[ab]/*', 'e/?/[!x]/*', 'd/1/x/a/0.jpg', 'e/1/a/0.png'),
    ('./d/**/rgb/**/*.jpg', 'd/**/seg/**', 'd/s/t/rgb/u/0.jpg', 'd/s/t/seg/u/0.png'),
    ('d/*/*', 'm', 'd/s1/0.jpg', 'm/s1/0.png'),          # a glob and a folder
    ('d/*/rgb/*', 'm/*', 'd/s1/rgb/0.jpg', 'm/0.png'),   # one tree and one flat folder
])
def test_the_subfolder_of_a_glob_is_the_text_of_its_wildcards(tree, images, masks, image, mask):
    tree(image, mask, 'd/other/deep/rgb/seg/9.jpg', 'd/other/deep/rgb/seg/9.png')
    found = [pair for pair in pairs(images, masks, data_root='.')[0] if pair[1]]
    assert (image, mask) in found


def test_masks_of_another_folder_of_a_glob_are_not_taken(tree):
    tree('d/s1/rgb/0.jpg', 'd/s2/rgb/1.jpg', 'd/s2/seg/0.png', 'd/s2/seg/1.png')
    found, _, unpaired = pairs('d/*/rgb/*', 'd/*/seg/*')
    assert found == [('s1/rgb/0.jpg', None), ('s2/rgb/1.jpg', 's2/seg/1.png')]
    assert unpaired == [os.path.join('d', 's2', 'seg', '0.png')]
