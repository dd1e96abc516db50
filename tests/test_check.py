"""The check of a data set: each kind of bad data, by file, line and remedy; and before training."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import train as train_script
from dssn.__main__ import main
from dssn.data import parallel
from dssn.data.check import inspection, quick
from dssn.data.check.findings import KINDS
from dssn.data.classes import voc_colour
from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.engine import start
from dssn.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NCLASS = 3


def checked(world, *arguments):
    """The command on a world: (exit status, report as JSON)."""
    path = os.path.join(os.path.dirname(world.config_path), 'report.json')
    status = main(['check', '--config', world.config_path, '--json', path] + list(arguments))
    with open(path) as file:
        report = json.load(file)
    assert report['status'] == status
    return status, report


def lines(world, part):
    with open(getattr(world, part)) as file:
        return file.read().splitlines()


def write(world, part, content):
    with open(getattr(world, part), 'w') as file:
        file.writelines(line + '\n' for line in content)


def names(world, part, line):
    """The files on a line of a list, counted from 1: [image] or [image, mask]."""
    return lines(world, part)[line - 1].split()


def path_of(world, part, line, mask):
    return os.path.join(world.root, names(world, part, line)[int(mask)])


def change_mask(world, part, line, change, **options):
    """Replace a mask by `change(mask)`: array (H, W) -> array or image; returns the mask's name."""
    path = path_of(world, part, line, True)
    new = change(np.array(Image.open(path)))
    (new if isinstance(new, Image.Image) else Image.fromarray(new)).save(
        path, **dict({'format': 'PNG'}, **options))
    return names(world, part, line)[1]


def overwrite(world, part, line, mask, content):
    with open(path_of(world, part, line, mask), 'wb') as file:
        file.write(content)
    return names(world, part, line)[int(mask)]


def truncate(world, part, line, mask):
    with open(path_of(world, part, line, mask), 'rb') as file:
        content = file.read()
    return overwrite(world, part, line, mask, content[:len(content) * 2 // 3])


def turn(world, part, line, orientation):
    """Set the EXIF orientation of an image, without changing its pixels; returns its name."""
    path = path_of(world, part, line, False)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif, quality='keep')
    return names(world, part, line)[0]


# Bad data: each function damages a world, and returns the expected problem:
# (kind, list, line, file, words of the message).
# Training does not find the problems of FULL_CHECK_ONLY: it decodes no image before it starts.

DAMAGES, FULL_CHECK_ONLY = {}, set()


def damage(function):
    DAMAGES[function.__name__] = function
    return function


def full_check_only(function):
    FULL_CHECK_ONLY.add(function.__name__)
    return damage(function)


# ---- files

@damage
def missing_image(world):
    name = names(world, 'labeled', 2)[0]
    os.remove(path_of(world, 'labeled', 2, False))
    return 'missing', 'labeled', 2, name, ['no file ' + name, 'data_root=' + world.root, 'correct']


@damage
def folder_for_an_image(world):
    path = path_of(world, 'labeled', 2, False)
    os.remove(path)
    os.mkdir(path)
    name = names(world, 'labeled', 2)[0]
    return 'missing', 'labeled', 2, name, ['no file ' + name, 'that is a folder: name a file in it']


@damage
def missing_mask(world):
    name = names(world, 'val', 3)[1]
    os.remove(path_of(world, 'val', 3, True))
    return 'missing', 'val', 3, name, ['no file ' + name, 'correct the line or data_root']


@damage
def missing_unlabeled_image(world):
    name = names(world, 'unlabeled', 9)[0]
    os.remove(path_of(world, 'unlabeled', 9, False))
    return 'missing', 'unlabeled', 9, name, ['no file ' + name]


@damage
def suffix_in_other_letters(world):
    path = path_of(world, 'labeled', 1, False)
    os.rename(path, path[:-4] + '.JPG')
    return 'missing', 'labeled', 1, 'images/labeled0.jpg', ['the folder has labeled0.JPG', 'rename']


@damage
def path_with_backslashes(world):
    content = lines(world, 'unlabeled')
    content[0] = 'images\\unlabeled0.jpg'
    write(world, 'unlabeled', content)
    return 'missing', 'unlabeled', 1, 'images\\unlabeled0.jpg', ['write / between']


@damage
def text_instead_of_an_image(world):
    name = overwrite(world, 'labeled', 1, False, b'not a picture\n')
    return 'unreadable', 'labeled', 1, name, ['not an image', 'convert it to PNG']


@damage
def empty_file(world):
    name = overwrite(world, 'val', 1, True, b'')
    return 'unreadable', 'val', 1, name, ['not an image', 'empty', 'copy or download it again']


@damage
def pointer_of_git_lfs(world):
    name = overwrite(world, 'labeled', 2, True, b'version https://git-lfs.github.com/spec/v1\n')
    return 'unreadable', 'labeled', 2, name, ['git lfs pull']


@damage
def web_page(world):
    name = overwrite(world, 'labeled', 3, False, b'\n<!DOCTYPE html><html>404</html>')
    return 'unreadable', 'labeled', 3, name, ['web page', 'download it again']


@full_check_only
def unlabeled_file_that_is_no_image(world):
    name = overwrite(world, 'unlabeled', 4, False, b'not a picture\n')
    return 'unreadable', 'unlabeled', 4, name, ['not an image']


@full_check_only
def truncated_image(world):
    name = truncate(world, 'unlabeled', 5, False)
    return 'truncated', 'unlabeled', 5, name, ['truncated', 'copy or download it again']


@damage
def truncated_mask(world):
    noise = np.random.default_rng(0).integers(0, NCLASS, (30, 40)).astype(np.uint8)
    change_mask(world, 'labeled', 3, lambda mask: noise)
    name = truncate(world, 'labeled', 3, True)
    return 'truncated', 'labeled', 3, name, ['truncated', 'copy or download it again']


@damage
def image_of_16_bits(world):
    path = path_of(world, 'val', 1, False)
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(path, format='PNG')
    return 'image_depth', 'val', 1, 'images/val0.jpg', ['8 bits per channel (16)', 'data.md']


# ---- masks

@damage
def mask_of_another_size(world):
    name = change_mask(world, 'labeled', 1, lambda mask: mask[:-1, :-2])
    return ('size_mismatch', 'labeled', 1, name,
            ['38x29', '40x30', 'images/labeled0.jpg', 'one size'])


@damage
def mask_of_half_the_size(world):
    name = change_mask(world, 'val', 1, lambda mask: mask[::2, ::2])
    return 'size_mismatch', 'val', 1, name, ['20x15', '40x30', 'NEAREST']


@damage
def turned_mask(world):
    name = change_mask(world, 'labeled', 1, np.rot90)
    return 'size_mismatch', 'labeled', 1, name, ['30x40', 'width and height are swapped']


@damage
def half_turned_image(world):
    name = turn(world, 'labeled', 1, 3)
    return 'orientation', 'labeled', 1, name, ['EXIF orientation 3', 'exif_transpose', "exif=b''"]


@damage
def gray_mask_saved_as_rgb(world):
    name = change_mask(world, 'labeled', 1, lambda mask: np.stack([mask] * 3, -1))
    return 'mask_colour', 'labeled', 1, name, ['RGB', 'three channels are equal', '[..., 0]']


@damage
def mask_in_colours(world):
    colours = np.array([voc_colour(i) for i in range(NCLASS)], np.uint8)
    name = change_mask(world, 'val', 2, lambda mask: colours[mask])
    return 'mask_colour', 'val', 2, name, ['RGB', '3 colours', 'Pascal VOC', 'to the index']


@damage
def mask_with_alpha(world):
    name = change_mask(world, 'labeled', 5, lambda mask: Image.fromarray(mask).convert('LA'))
    return 'mask_colour', 'labeled', 5, name, ['LA', 'alpha', '[..., 0]']


@damage
def image_and_mask_swapped(world):
    content = lines(world, 'labeled')
    content[1] = ' '.join(reversed(content[1].split()))
    write(world, 'labeled', content)
    return 'mask_format', 'labeled', 2, 'images/labeled1.jpg', ['JPEG', 'swapped on the line']


@damage
def mask_of_16_bits(world):
    name = change_mask(world, 'labeled', 2, lambda mask: mask.astype(np.uint16))
    return 'mask_depth', 'labeled', 2, name, ['8-bit', '0..2, which fit into 8', 'uint8']


@damage
def mask_of_1_bit(world):
    name = change_mask(world, 'labeled', 2, lambda mask: mask > 0)
    return 'mask_depth', 'labeled', 2, name, ['8-bit', '1 bit', 'np.uint8(values)']


@damage
def classes_counted_from_one(world):
    name = change_mask(world, 'labeled', 2, lambda mask: mask + 1)
    return 'wrong_values', 'labeled', 2, name, ['value 3 on', 'shifted by one', 'subtract 1']


@damage
def void_is_a_separate_value(world):
    def change(mask):
        mask[:2, :5] = 3
        return mask
    name = change_mask(world, 'val', 2, change)
    return 'wrong_values', 'val', 2, name, ['value 3 on 10 pixels', '3: 10', 'ignore_index: 3']


@damage
def mask_multiplied(world):
    name = change_mask(world, 'labeled', 1, lambda mask: mask * 100)
    return 'wrong_values', 'labeled', 1, name, ['value 100 on', '0, 100, 200', 'multiplied by']


@damage
def mask_saved_as_jpeg(world):
    name = change_mask(world, 'labeled', 1, lambda mask: mask, format='JPEG', quality=30)
    return 'mask_format', 'labeled', 1, name, ['JPEG', 'class indices', 'as 8-bit PNG']


@damage
def mask_of_pages(world):
    from test_stored import PAGES
    name = overwrite(world, 'val', 2, True, PAGES)
    return 'mask_pages', 'val', 2, name, ['holds 3 pages', 'np.argmax']


@damage
def mask_with_0_as_white(world):
    from test_stored import tiff
    mask = np.array(Image.open(path_of(world, 'val', 2, True)))
    name = overwrite(world, 'val', 2, True, tiff(255 - mask, photometric=0))
    return 'mask_scaled', 'val', 2, name, ['0 as white', '(255 - values)']


@damage
def masks_with_two_palettes(world):
    for line, colours in ((1, [0] * 6 + [128, 0, 0]), (3, [0] * 6 + [0, 128, 0])):
        def change(mask, colours=colours):
            image = Image.fromarray(mask)
            image.putpalette(colours)
            return image
        name = change_mask(world, 'val', line, change)
    return ('mask_palettes', 'val', 3, name,
            ['(0, 128, 0) for index 2, but', path_of(world, 'val', 1, True), '(128, 0, 0)',
             'palette: ignore'])


@damage
def labeled_masks_of_one_class(world):
    for line in range(1, 6):
        change_mask(world, 'labeled', line, lambda mask: mask * 0)
    return 'one_class', 'labeled', None, None, ['all 5 masks', 'only class 0', 'export the masks']


@damage
def all_masks_are_0_and_255(world):
    for line in range(1, 6):
        change_mask(world, 'labeled', line,
                    lambda mask: np.where(mask > 0, 255, 0).astype(np.uint8))
    return 'list_0_and_255', 'labeled', None, None, ['all 5 masks', '0 and', '255', 'divide']


@damage
def all_masks_are_ignored(world):
    for line in range(1, 4):
        change_mask(world, 'val', line, lambda mask: mask * 0 + 255)
    return 'list_ignored', 'val', None, None, ['all 3 masks', 'ignored', 'ignore_index']


# ---- lists

@damage
def labeled_image_in_val(world):
    write(world, 'val', lines(world, 'val') + ['images/../images/labeled3.jpg masks/labeled3.png'])
    return ('train_and_val', 'val', 4, 'images/../images/labeled3.jpg',
            [world.labeled + ' line 4', 'remove it from one'])


@damage
def unlabeled_image_in_val(world):
    write(world, 'unlabeled', lines(world, 'unlabeled') + ['', 'images/val1.jpg'])
    return ('train_and_val', 'val', 2, 'images/val1.jpg',
            [world.unlabeled + ' line 11', 'remove it from one'])


@damage
def image_twice_in_val(world):
    write(world, 'val', lines(world, 'val') + lines(world, 'val')[:1])
    return ('repeated_in_val', 'val', 4, 'images/val0.jpg',
            [world.val + ' line 1 too', 'twice', 'remove one'])


@damage
def image_with_two_masks(world):
    write(world, 'labeled', lines(world, 'labeled') + ['images/labeled0.jpg masks/labeled2.png'])
    return ('two_masks', 'labeled', 6, 'images/labeled0.jpg',
            [world.labeled + ' line 1 too', 'masks/labeled0.png', 'keep the correct line'])


@full_check_only
def labeled_image_in_val_under_another_name(world):
    source = Image.open(path_of(world, 'val', 2, False))
    # The files differ, but the pixels are equal.
    source.save(path_of(world, 'labeled', 2, False), format='PNG')
    shutil.copy(path_of(world, 'val', 2, True), path_of(world, 'labeled', 2, True))
    return ('same_pixels_as_val', 'val', 2, 'images/val1.jpg',
            ['images/labeled1.jpg', world.labeled + ' line 2', 'remove it from one'])


def found(report, kind):
    return [problem for problem in report['problems'] if problem['kind'] == kind]


def assert_names(problem, world, part, line, file, words):
    assert (problem['role'], problem['line'], problem['file']) == (part, line, file)
    message = problem['message']
    place = getattr(world, part) + (': ' if line is None else f' line {line}: ')
    assert message.startswith(place) and '\n' not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize('name', sorted(DAMAGES))
def test_bad_data_is_reported_by_file_and_line(tiny_world, capsys, name):
    world = tiny_world()
    kind, part, line, file, words = DAMAGES[name](world)
    status, report = checked(world)
    problem, = found(report, kind)
    assert_names(problem, world, part, line, file, words)
    assert status == 1 and problem['severity'] == 'error'
    out = capsys.readouterr().out
    assert problem['message'] in out and KINDS[kind][1] in out
    assert ('docs/data.md has the script' in out) == ('`values = ' in problem['message'])
    errors = [p for p in report['problems'] if p['severity'] == 'error']
    assert errors == [problem] and report['errors'] == 1 and 'errors: 1, ' in out


def training(world, **overrides):
    """Run train.py up to its first step."""
    run = start(world.load(**overrides), World())
    run.log.close()


@pytest.mark.parametrize('name', sorted(set(DAMAGES) - FULL_CHECK_ONLY))
def test_training_raises_the_same_message(tiny_world, name):
    world = tiny_world()
    kind, part, line, file, words = DAMAGES[name](world)
    with pytest.raises(UserError) as caught:
        training(world)
    message = str(caught.value)
    reported = found(checked(world)[1], kind)[0]['message']
    assert message.startswith(reported)
    assert '--skip-check' in message and 'dssn check' in message and '\n' not in message
    training(world, skip_check=True)


@pytest.mark.parametrize('name', sorted(FULL_CHECK_ONLY))
def test_training_does_not_decode_images_before_it_starts(tiny_world, name):
    world = tiny_world()
    DAMAGES[name](world)
    training(world)


# Warnings. The exit status is 0.

def one_mask_of_0_and_255(world):
    name = change_mask(world, 'labeled', 2,
                       lambda mask: np.where(mask > 0, 255, 0).astype(np.uint8))
    return 'mask_0_and_255', 'labeled', 2, name, ['only 0', '255', 'divide']


def one_mask_ignored(world):
    name = change_mask(world, 'val', 2, lambda mask: mask * 0 + 255)
    return 'mask_ignored', 'val', 2, name, ['ignored everywhere']


def image_twice_in_labeled(world):
    write(world, 'labeled', lines(world, 'labeled') + ['images//labeled4.jpg masks/labeled4.png'])
    return 'repeated', 'labeled', 6, 'images//labeled4.jpg', [world.labeled + ' line 5', 'remove']


def image_twice_in_unlabeled(world):
    # The masks of an unlabeled list are ignored.
    write(world, 'unlabeled', lines(world, 'unlabeled') + ['images/unlabeled4.jpg masks/x.png'])
    return 'repeated', 'unlabeled', 10, 'images/unlabeled4.jpg', [world.unlabeled + ' line 5']


def mask_of_two_images(world):
    content = lines(world, 'labeled')
    content[2] = 'images/labeled2.jpg masks/labeled0.png'
    write(world, 'labeled', content)
    return ('shared_mask', 'labeled', 3, 'masks/labeled0.png',
            ['images/labeled0.jpg', world.labeled + ' line 1', 'correct the wrong line'])


def image_labeled_and_unlabeled(world):
    write(world, 'unlabeled',
          lines(world, 'unlabeled') + ['images/labeled1.jpg masks/labeled1.png'])
    return ('labeled_and_unlabeled', 'unlabeled', 10, 'images/labeled1.jpg',
            [world.labeled + ' line 2', 'remove it from the unlabeled list'])


def copy_within_a_list(world):
    shutil.copy(path_of(world, 'unlabeled', 2, False), path_of(world, 'unlabeled', 6, False))
    return ('same_pixels', 'unlabeled', 6, 'images/unlabeled5.jpg',
            ['images/unlabeled1.jpg', world.unlabeled + ' line 2', 'remove one'])


def copy_among_labeled_and_unlabeled(world):
    shutil.copy(path_of(world, 'labeled', 2, False), path_of(world, 'unlabeled', 2, False))
    return ('same_pixels', 'unlabeled', 2, 'images/unlabeled1.jpg',
            ['images/labeled1.jpg', world.labeled + ' line 2', 'remove one'])


def copy_within_val(world):
    shutil.copy(path_of(world, 'val', 1, False), path_of(world, 'val', 3, False))
    return 'same_pixels', 'val', 3, 'images/val2.jpg', ['images/val0.jpg', world.val + ' line 1']


def class_absent_from_labeled(world):
    for line in range(1, 6):
        change_mask(world, 'labeled', line,
                    lambda mask: np.where(mask == 1, 0, mask).astype('uint8'))
    return ('absent_class', 'labeled', None, None,
            ['1 of 3 classes', 'class 1', 'cannot be learned', '--stratified'])


def class_absent_from_val(world):
    for line in range(1, 4):
        change_mask(world, 'val', line, lambda mask: np.where(mask == 2, 255, mask).astype('uint8'))
    return 'absent_class', 'val', None, None, ['1 of 3 classes', 'class 2', 'IoU']


@pytest.mark.parametrize('damage_world', [
    one_mask_of_0_and_255, one_mask_ignored, image_twice_in_labeled, image_twice_in_unlabeled,
    mask_of_two_images, image_labeled_and_unlabeled, copy_within_a_list,
    copy_among_labeled_and_unlabeled, copy_within_val, class_absent_from_labeled,
    class_absent_from_val], ids=lambda function: function.__name__)
def test_a_warning_does_not_change_the_exit_status(tiny_world, capsys, damage_world):
    world = tiny_world()
    kind, part, line, file, words = damage_world(world)
    status, report = checked(world)
    problem, = report['problems']
    assert problem['kind'] == kind
    assert_names(problem, world, part, line, file, words)
    assert status == 0 and problem['severity'] == 'warning'
    out = capsys.readouterr().out
    assert problem['message'] in out and 'errors: 0, warnings: 1' in out
    training(world)


# ---- several problems, causes over a whole list

def test_all_problems_of_a_sample_are_reported(tiny_world):
    world = tiny_world()
    image_twice_in_labeled(world)
    name = change_mask(world, 'labeled', 1, lambda mask: mask[:-1] + 5)
    overwrite(world, 'val', 2, False, b'')
    other = change_mask(world, 'val', 2, lambda mask: mask + 4)
    status, report = checked(world)
    assert status == 1 and report['errors'] == 4
    # In the order of the lists and their lines.
    assert [(p['kind'], p['role'], p['line'], p['file']) for p in report['problems']] == [
        ('size_mismatch', 'labeled', 1, name), ('wrong_values', 'labeled', 1, name),
        ('repeated', 'labeled', 6, 'images//labeled4.jpg'),
        ('unreadable', 'val', 2, 'images/val1.jpg'), ('wrong_values', 'val', 2, other)]


def test_lines_that_cannot_be_read_are_reported_beside_the_rest(tiny_world, capsys):
    world = tiny_world()
    write(world, 'labeled', lines(world, 'labeled') + ['', 'images/val0.jpg', 'a b c'])
    os.remove(path_of(world, 'labeled', 2, False))
    status, report = checked(world)
    assert status == 1
    first, second = found(report, 'bad_line')
    assert_names(first, world, 'labeled', 7, None, ['names no mask'])
    assert_names(second, world, 'labeled', 8, None, ['3 parts', 'tab'])
    assert found(report, 'missing')[0]['line'] == 2
    assert report['lists']['labeled']['identity'] is None
    assert report['lists']['labeled']['samples'] == 5
    assert 'lines that cannot be read' in capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        training(world)
    assert str(caught.value).startswith(first['message'])


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_an_image_that_is_too_large_to_decode(tiny_world, monkeypatch):
    world = tiny_world()
    Image.new('RGB', (200, 200)).save(path_of(world, 'val', 1, False))
    monkeypatch.setenv('DSSN_MAX_PIXELS', '30000')
    status, report = checked(world)
    assert status == 1
    problem, = found(report, 'too_large')
    assert_names(problem, world, 'val', 1, 'images/val0.jpg', ['30000 pixels'])
    with pytest.raises(UserError, match='val.txt line 1.*30000 pixels'):
        training(world)


def test_label_ids_of_cityscapes(tiny_world):
    world = tiny_world()
    ids = np.array([7, 21, 26], np.uint8)
    for line in range(1, 6):
        name = change_mask(world, 'labeled', line, lambda mask: ids[mask])
    problems = found(checked(world, '--set', 'nclass=19')[1], 'wrong_values')
    assert len(problems) == 5
    assert_names(problems[4], world, 'labeled', 5, name,
                 ['value 21 on', 'labelIds', 'labelTrainIds'])


def test_colours_of_pascal_converted_to_gray(tiny_world):
    world = tiny_world()

    def change(mask):
        image = Image.fromarray(mask * 7)
        image.putpalette([channel for i in range(21) for channel in voc_colour(i)])
        return image.convert('L')
    name = change_mask(world, 'val', 3, change)
    problem, = found(checked(world, '--set', 'nclass=21')[1], 'wrong_values')
    assert_names(problem, world, 'val', 3, name, ['colours of Pascal VOC', 'converted to gray'])


def test_histogram_of_wrong_values(tiny_world, capsys):
    world = tiny_world()
    expected = np.zeros(256, int)
    for line in range(2, 6):  # the first mask is correct, and has class 0
        change_mask(world, 'labeled', line, lambda mask: mask + 1)
        mask = np.array(Image.open(path_of(world, 'labeled', line, True)))
        for value in mask.ravel():
            expected[value] += 1
    report = checked(world)[1]
    problem = found(report, 'wrong_values')[3]  # of the last mask
    assert {int(v): n for v, n in problem['values'].items()} == {
        v: int((mask == v).sum()) for v in (1, 2, 3)}
    for value in (1, 2, 3):
        assert f'{value}: {(mask == value).sum()}' in problem['message']
    entry = report['lists']['labeled']
    assert entry['wrong_values'] == {'3': expected[3]}
    # A single mask does not prove a shift, but all of them do.
    doubt = 'this mask does not show class 0'
    assert doubt in problem['message'] and doubt not in entry['likely_cause']
    assert 'shifted by one' in entry['likely_cause']
    assert entry['likely_cause'] in capsys.readouterr().out
    assert report['lists']['val']['wrong_values'] == {}
    assert report['lists']['val']['likely_cause'] is None


# ---- correct data

def slow_table(world, part, nclass, ignore=255):
    """[(pixels, masks, fraction)] of the classes and of ignored pixels, by a loop."""
    pixels, masks = [0] * 256, [0] * 256
    for line in lines(world, part):
        held = set()
        name = line.split('\t')[1] if '\t' in line else line.split()[1]
        for value in np.array(Image.open(os.path.join(world.root, name))).ravel().tolist():
            value = 255 if value == ignore else value
            pixels[value] += 1
            held.add(value)
        for value in held:
            masks[value] += 1
    valid = sum(pixels[:nclass])
    rows = [(pixels[i], masks[i], pixels[i] / valid) for i in range(nclass)]
    return rows + [(pixels[255], masks[255], pixels[255] / sum(pixels))]


def assert_table(world, report, nclass, **kwargs):
    for part in ('labeled', 'val'):
        entries = [row[part] for row in report['classes']] + [report['lists'][part]['ignored']]
        got = [(e['pixels'], e['masks'], pytest.approx(e['fraction'])) for e in entries]
        assert slow_table(world, part, nclass, **kwargs) == got


def test_correct_data(tiny_world, capsys):
    world = tiny_world(classes=['ground', 'tree', 'road'])
    change_mask(world, 'labeled', 2, lambda mask: np.where(mask == 2, 255, mask).astype(np.uint8))

    def one_pixel(mask):
        mask[4, 7] = 255
        return mask
    change_mask(world, 'val', 1, one_pixel)
    status, report = checked(world)
    assert status == 0 and report['problems'] == [] and report['errors'] == report['warnings'] == 0
    assert set(report) == {'status', 'errors', 'warnings', 'data_root', 'nclass', 'ignore_index',
                           'lists', 'problems', 'classes'}
    assert (report['data_root'], report['nclass'], report['ignore_index']) == (world.root, 3, 255)
    assert {role: (entry['path'], entry['samples']) for role, entry in report['lists'].items()} == {
        'labeled': (world.labeled, 5), 'unlabeled': (world.unlabeled, 9), 'val': (world.val, 3)}
    assert report['lists']['labeled']['masks_read'] == 5
    assert [(row['index'], row['name']) for row in report['classes']] == [
        (0, 'ground'), (1, 'tree'), (2, 'road')]
    assert_table(world, report, 3)
    out = capsys.readouterr().out
    assert 'errors: 0, warnings: 0' in out
    for row in report['classes']:
        line, = [line for line in out.splitlines() if row['name'] in line]
        assert line.split() == [str(row['index']), row['name'],
                                '{:.2f}'.format(100 * row['labeled']['fraction']),
                                str(row['labeled']['masks']),
                                '{:.2f}'.format(100 * row['val']['fraction']),
                                str(row['val']['masks'])]
    for role in ('labeled', 'unlabeled', 'val'):
        assert report['lists'][role]['identity']['text'] in out


def test_another_ignore_index(tiny_world):
    world = tiny_world()
    for part, count in (('labeled', 5), ('val', 3)):
        for line in range(1, count + 1):
            def change(mask):
                mask[:3, :4], mask[5, 5] = 3, 255
                return mask
            change_mask(world, part, line, change)
    assert checked(world)[0] == 1
    status, report = checked(world, '--set', 'ignore_index=3')
    assert (status, report['problems'], report['ignore_index']) == (0, [], 3)
    assert_table(world, report, 3, ignore=3)


def test_palette_masks_count_their_indices(tiny_world):
    world = tiny_world()
    for line in range(1, 6):
        def change(mask):
            image = Image.fromarray(mask)
            image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
            return image
        change_mask(world, 'labeled', line, change)
    status, report = checked(world)
    assert status == 0 and report['problems'] == []
    assert_table(world, report, 3)
    training(world)


def test_paths_with_spaces(tiny_world):
    world = tiny_world()
    os.rename(os.path.join(world.root, 'images'), os.path.join(world.root, 'my images'))
    for part in ('labeled', 'unlabeled', 'val'):
        end = '\t' if part == 'unlabeled' else ''
        write(world, part, ['my ' + '\t'.join(line.split()) + end for line in lines(world, part)])
    status, report = checked(world)
    assert status == 0 and report['problems'] == []
    assert_table(world, report, 3)
    training(world)
    os.remove(os.path.join(world.root, 'my images', 'val1.jpg'))
    status, report = checked(world)
    assert_names(report['problems'][0], world, 'val', 2, 'my images/val1.jpg',
                 ['no file my images/'])


def test_one_image(tiny_world):
    world = tiny_world(n_labeled=1, n_unlabeled=1, n_val=1)
    status, report = checked(world)
    assert status == 0 and report['problems'] == []
    assert {role: entry['samples'] for role, entry in report['lists'].items()} == {
        'labeled': 1, 'unlabeled': 1, 'val': 1}


def test_a_list_whose_masks_are_all_ignored_has_no_fractions(tiny_world, capsys):
    world = tiny_world(n_val=1, labeled_id_path='', unlabeled_id_path='')
    change_mask(world, 'val', 1, lambda mask: mask * 0 + 255)
    status, report = checked(world)
    assert status == 1 and list(report['lists']) == ['val']
    assert {row['val']['fraction'] for row in report['classes']} == {None}
    assert report['lists']['val']['ignored']['fraction'] == 1
    assert {p['kind'] for p in report['problems']} == {
        'mask_ignored', 'list_ignored', 'absent_class'}


def test_no_file_can_be_read(tiny_world):
    world = tiny_world(n_labeled=1)
    for mask in (False, True):
        os.remove(path_of(world, 'labeled', 1, mask))
    status, report = checked(world)
    assert status == 1 and {p['kind'] for p in report['problems']} == {'missing'}
    assert len(report['problems']) == 2


# ---- the command line

def test_show_limits_the_printed_problems_of_a_kind(tiny_world, capsys):
    world = tiny_world()
    for line in range(1, 9):
        os.remove(path_of(world, 'unlabeled', line, False))
    status, report = checked(world, '--show', '3')
    assert report['errors'] == len(found(report, 'missing')) == 8
    out = capsys.readouterr().out
    assert 'missing files: 8' in out and 'and 5 more' in out
    assert [p['message'] in out for p in report['problems']] == [True] * 3 + [False] * 5
    checked(world)
    assert 'and 3 more' in capsys.readouterr().out


def test_lists_as_arguments(tiny_world, tmp_path):
    world, empty = tiny_world(), tiny_world(labeled_id_path='', unlabeled_id_path='', data_root='')
    arguments = ['--data-root', world.root, '--labeled', world.val, '--val', world.labeled]
    status, report = checked(empty, *arguments)
    assert status == 0
    assert {role: entry['path'] for role, entry in report['lists'].items()} == {
        'labeled': world.val, 'val': world.labeled}
    # The folder of a split holds labeled.txt and unlabeled.txt. The second may be missing.
    folder = os.path.dirname(world.labeled)
    status, report = checked(world, '--split', folder)
    assert status == 0 and list(report['lists']) == ['labeled', 'unlabeled', 'val']
    os.rename(world.unlabeled, world.unlabeled + '.away')
    status, report = checked(world, '--split', folder)
    assert status == 0 and list(report['lists']) == ['labeled', 'val']


@pytest.mark.parametrize('arguments', [
    [], ['--config'], ['--config', 'x', '--split', 'a', '--labeled', 'b'],
    ['--config', 'x', '--split', 'a', '--unlabeled', 'b'], ['--config', 'x', '--workers', '-1'],
    ['--config', 'x', '--show', '0'], ['--config', 'x', 'more']])
def test_a_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(['check'] + arguments)
    assert caught.value.code == 2 and 'usage:' in capsys.readouterr().err


def test_help_lists_errors_and_warnings(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['check', '--help'])
    assert caught.value.code == 0
    errors, warnings = ' '.join(capsys.readouterr().out.split()).split('Warnings, exit status 0')
    for severity, heading in KINDS.values():
        assert heading in (errors if severity == 'error' else warnings)


def test_missing_lists_and_folders(tiny_world, tmp_path, capsys):
    world = tiny_world()
    missing = str(tmp_path / 'nowhere')
    (tmp_path / 'empty.txt').write_text('\n')
    for arguments, words in (
            (['--val', missing], [missing, 'no such id list']),
            (['--split', missing], [missing, 'labeled.txt', 'no such id list']),
            (['--labeled', str(tmp_path / 'empty.txt')], ['empty.txt', 'is empty']),
            (['--data-root', missing], ['data_root', missing, 'no such folder']),
            (['--json', str(tmp_path)], ['--json', str(tmp_path), 'cannot be written'])):
        assert main(['check', '--config', world.config_path] + arguments) == 1
        error = capsys.readouterr().err
        assert all(word in error for word in words) and error.count('\n') == 1


def test_the_report_does_not_depend_on_the_number_of_processes(tiny_world, monkeypatch):
    world = tiny_world()
    for name in ('classes_counted_from_one', 'missing_mask', 'truncated_image'):
        DAMAGES[name](world)
    monkeypatch.setattr(inspection, 'SAMPLES_PER_PROCESS', 4)
    monkeypatch.setattr(parallel, 'CHUNK', 2)
    one_process = checked(world, '--workers', '1')
    assert checked(world, '--workers', '2') == one_process
    assert one_process[1]['errors'] == 3


def test_a_killed_process_is_reported(tiny_world, tmp_path, monkeypatch, capsys):
    # A separate module, which the new process imports.
    (tmp_path / 'killed.py').write_text('import os\n\ndef die(*args):\n    os._exit(1)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    from killed import die
    monkeypatch.setattr(inspection, 'SAMPLES_PER_PROCESS', 4)
    monkeypatch.setattr(inspection, 'inspect_task', die)
    assert main(['check', '--config', tiny_world().config_path, '--workers', '2']) == 1
    assert '--workers' in capsys.readouterr().err


# ---- before training

def test_training_checks_some_masks_of_long_lists(tiny_world, monkeypatch):
    world = tiny_world()
    for part in ('labeled', 'val'):
        write(world, part, lines(world, part) * 40)
    places = []
    real = quick.inspect_quickly
    monkeypatch.setattr(quick, 'inspect_quickly',
                        lambda *args: places.append(args[-1].place) or real(*args))
    cfg = world.load()
    samples = read_list(world.labeled), None, read_list(world.val)
    with pytest.raises(UserError, match='line 4: image images/val0.jpg is on .* line 1 too'):
        quick.quick_check(cfg, *samples, first=False)
    first = sorted(places)
    assert [sum(place.startswith(getattr(world, part)) for place in first)
            for part in ('labeled', 'val')] == [32, 32]
    assert len(set(first)) == 64
    del places[:]
    with pytest.raises(UserError):
        quick.quick_check(cfg, *samples, first=False)
    assert sorted(places) == first
    del places[:]
    with pytest.raises(UserError):
        quick.quick_check(world.load(seed=1), *samples, first=False)
    assert sorted(places) != first


@pytest.mark.parametrize('file', ['images/labeled4.jpg', 'masks/labeled4.png'])
def test_all_labeled_files_are_decoded_before_the_first_step(tiny_world, monkeypatch, file):
    """The end of a file is missing, so its header is right. A run that resumes decodes a part."""
    monkeypatch.setattr(quick, 'MASKS_PER_LIST', 1)
    world = tiny_world(seed=0)
    path = os.path.join(world.root, file)
    with open(path, 'rb') as opened:
        data = opened.read()
    with open(path, 'wb') as opened:
        opened.write(data[:len(data) // 2])
    cfg = world.load()
    samples = read_list(world.labeled), None, read_list(world.val)
    with pytest.raises(UserError, match=f'labeled.txt line 5: .*{file}'):
        quick.quick_check(cfg, *samples)
    assert np.random.default_rng(0).permutation(5)[0] != 4
    assert quick.quick_check(cfg, *samples, first=False) == []


def test_labeled_masks_are_read_until_two_classes_are_seen(tiny_world, monkeypatch):
    world = tiny_world(n_labeled=3)
    for line in (1, 2, 3):
        change_mask(world, 'labeled', line, lambda mask: mask * 0)
    one, two = lines(world, 'labeled')[:2]
    change_mask(world, 'labeled', 2, lambda mask: mask * 0 + np.eye(*mask.shape, dtype='uint8'))
    places = []
    real = quick.inspect_quickly
    monkeypatch.setattr(quick, 'inspect_quickly',
                        lambda *args: places.append(args[-1].place) or real(*args))
    # Only the mask that is read last has class 1.
    cfg = world.load()
    last = np.random.default_rng(cfg.seed).permutation(100)[-1]
    write(world, 'labeled', [two if i == last else one for i in range(100)])
    assert quick.file_problems(cfg, 'labeled', read_list(world.labeled), False)[0].kind \
        == 'absent_class'
    assert len(set(places)) == 100
    write(world, 'labeled', [one] * 100)
    problem, _ = quick.file_problems(cfg, 'labeled', read_list(world.labeled), False)
    assert problem.kind == 'one_class' and 'all 100 masks read hold only class 0' in problem.message
    del places[:]
    write(world, 'labeled', [two] * 100)
    assert quick.file_problems(cfg, 'labeled', read_list(world.labeled), False) == []
    assert len(places) == 32  # too few to say that a class is absent


def test_training_warns_of_an_absent_class_like_check(tiny_world):
    world = tiny_world()
    class_absent_from_labeled(world)
    samples = read_list(world.labeled), None, read_list(world.val)
    message = found(checked(world)[1], 'absent_class')[0]['message']
    assert quick.quick_check(world.load(), *samples) == ['warning: ' + message]


def test_further_errors_of_the_kind_are_counted(tiny_world):
    world = tiny_world()
    for line in (2, 3, 5):
        change_mask(world, 'labeled', line, lambda mask: mask + 1)
    with pytest.raises(UserError, match=r'line 2: mask.*\(masks with values that .*: 3 found'):
        training(world)
    os.remove(path_of(world, 'val', 1, True))
    os.remove(path_of(world, 'val', 3, False))
    with pytest.raises(UserError, match=r'val.txt line 1: no file .*\(missing files: 2 found\)'):
        training(world)


def test_training_logs_warnings(tiny_world, capsys):
    world = tiny_world()
    samples = read_list(world.labeled), None, read_list(world.val)
    assert quick.quick_check(world.load(), *samples) == []
    write(world, 'unlabeled', lines(world, 'unlabeled') + lines(world, 'labeled')[:3])
    training(world)
    line, = [line for line in capsys.readouterr().out.splitlines() if 'warning' in line]
    for word in (world.unlabeled + ' line 10', 'images/labeled0.jpg', world.labeled + ' line 1',
                 'images both labeled and unlabeled: 3 found'):
        assert word in line
    with open(os.path.join(world.save_path, 'train.log')) as file:
        assert line in file.read()


@pytest.mark.parametrize('part, use', [('labeled', 'trained on'), ('unlabeled', 'trained on'),
                                       ('val', 'reported')])
def test_images_of_select_on_must_not_be_in_another_list(tiny_world, part, use):
    world = tiny_world()
    with Image.open(os.path.join(world.root, 'images', 'val0.jpg')) as image:
        Image.fromarray(255 - np.array(image)).save(os.path.join(world.root, 'images', 'own.png'))
    path = os.path.join(os.path.dirname(world.val), 'select.txt')
    with open(path, 'w') as file:
        file.write('images/own.png masks/val0.png\n')
    training(world, select_on=path)
    assert checked(world, '--set', 'select_on=' + path)[0] == 0
    name = names(world, part, 2)[0]
    with open(path, 'a') as file:
        file.write(f'{name} masks/val1.png\n')
    words = f'select.txt line 2: image {name} is {part} too .*{use}; remove'
    with pytest.raises(UserError, match=words):
        training(world, select_on=path)
    status, report = checked(world, '--set', 'select_on=' + path)
    problem, = found(report, 'in_select_on')
    assert status == 1 and (problem['role'], problem['line']) == ('select_on', 2)


def test_select_on_is_checked_like_val(tiny_world):
    world = tiny_world()
    path = os.path.join(os.path.dirname(world.val), 'select.txt')
    with open(path, 'w') as file:
        file.write('images/nowhere.jpg masks/val0.png\n')
    with pytest.raises(UserError, match='select.txt line 1: no file images/nowhere.jpg'):
        training(world, select_on=path)
    # The pixels of a val image under another name. Only the full check decodes images.
    shutil.copy(os.path.join(world.root, 'images', 'val0.jpg'),
                os.path.join(world.root, 'images', 'nowhere.jpg'))
    training(world, select_on=path)
    problem, = found(checked(world, '--set', 'select_on=' + path)[1], 'in_select_on')
    assert 'same pixels as images/val0.jpg' in problem['message']
    with open(path, 'a') as file:
        file.write('images/nowhere.jpg masks/val0.png\n')
    with pytest.raises(UserError, match='select.txt line 2: .*count twice'):
        training(world, select_on=path)
    with open(path, 'w') as file:
        file.write('images/nowhere.jpg\n')
    with pytest.raises(UserError, match='select.txt line 1: .*names no mask'):
        training(world, select_on=path)


def test_training_uses_the_ignore_index_too(tiny_world):
    world = tiny_world(ignore_index=3)
    void_is_a_separate_value(world)
    training(world)


CHECK_AS_TWO = """
import sys
sys.path.insert(0, {root!r})
from dssn import config, distributed
from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.run.setup import check_data
cfg = config.load({config!r})
with distributed.start('cpu') as world:
    lists = [read_list({labeled!r}), None, read_list({val!r})]
    try:
        print(check_data(cfg, world, *lists))
    except UserError as error:
        print(error)
distributed.exit()
"""


def test_other_processes_end_with_rank_0(tiny_world, tmp_path, port):
    world = tiny_world()
    labeled_image_in_val(world)
    program = tmp_path / 'program.py'
    program.write_text(CHECK_AS_TWO.format(root=ROOT, config=world.config_path,
                                           labeled=world.labeled, val=world.val))
    processes = [subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, universal_newlines=True,
        env=dict(os.environ, RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank),
                 MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1'))
        for rank in (0, 1)]
    # Only rank 0 checks the data and reports the problem.
    first, other = [process.communicate(timeout=300)[0] for process in processes]
    assert 'val.txt line 4' in first
    assert other.startswith('process 0 failed') and other.count('\n') == 1


def test_skip_check(tiny_world):
    from dssn.run.setup import check_data
    world = tiny_world()
    labeled_image_in_val(world)
    broken = read_list(world.labeled), None, read_list(world.val)
    assert check_data(world.load(skip_check=True), World(), *broken) == []
    with pytest.raises(UserError, match='val.txt line 4'):
        check_data(world.load(), World(), *broken)


def test_the_skip_check_option_of_train(tiny_world):
    world = tiny_world(epochs=1, n_unlabeled=2, n_labeled=2, n_val=1, eval_every=1)
    write(world, 'val', lines(world, 'val') + lines(world, 'labeled')[:1])
    with pytest.raises(UserError, match='labeled too'):
        train_script.main(['--config', world.config_path])
    assert not os.path.exists(os.path.join(world.save_path, 'latest.pth'))
    train_script.main(['--config', world.config_path, '--skip-check'])
    assert os.path.exists(os.path.join(world.save_path, 'latest.pth'))


# ---- real images

def test_camvid(tmp_path, capsys):
    root = os.environ.get('DSSN_CAMVID')
    if not root:
        pytest.skip('DSSN_CAMVID names no folder of CamVid')
    report = str(tmp_path / 'report.json')
    arguments = ['check', '--config', os.path.join(ROOT, 'configs', 'camvid.yaml'),
                 '--data-root', root, '--labeled', os.path.join(root, 'train.txt'),
                 '--val', os.path.join(root, 'val.txt')]
    assert main(arguments + ['--json', report]) == 0
    with open(report) as file:
        report = json.load(file)
    assert [report['lists'][role]['masks_read'] for role in ('labeled', 'val')] == [367, 101]
    percentages = [round(100 * row['labeled']['fraction'], 1) for row in report['classes']]
    # As published with the data set.
    assert percentages == [17.5, 24.2, 1.0, 33.0, 4.7, 10.1, 1.2, 1.2, 6.1, 0.7, 0.3]
    assert report['problems'] == []
