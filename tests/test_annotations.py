"""Predictions as files of annotation tools, and back to masks."""
import dataclasses
import json
import os
import shutil
import types

import numpy as np
import pytest
import torch
from PIL import Image

from dssn.__main__ import main
from dssn.data.lists import Sample
from dssn.data.regions import inside
from dssn.data.video import Frame
from dssn.errors import UserError
from dssn.inference.annotations import FORMATS, AnnotationWriter, ExportOptions
from dssn.models import build_model
from eval import main as main_eval
from tests.test_outlines import blobs

NAMES = ['road', 'a "car" & <more>', 'sky']
COLOURS = [(128, 64, 128), (0, 0, 142), (70, 130, 180)]
CFG = types.SimpleNamespace(classes=NAMES, colours=COLOURS)
FILES = {'labelme': 'labelme', 'cvat': 'cvat/annotations.xml', 'coco': 'coco/instances.json'}


def large_blobs(seed):
    """A mask of three classes and 255, at least 20 x 20."""
    mask = np.kron(blobs(seed), np.ones((4, 4), np.uint8))
    mask = np.tile(mask, (-(-20 // mask.shape[0]), -(-20 // mask.shape[1])))[:200, :200]
    return np.where(mask == 3, np.uint8(255), mask)


def photos(root, names, sizes):
    for name, (height, width) in zip(names, sizes):
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new('RGB', (width, height)).save(path)
    return [Sample(name, None, '--images') for name in names]


def export(tmp_path, form, masks, names, tolerance=0.35, min_area=0, min_confidence=0.0,
           confidence=None):
    """Write the masks as shapes; returns the writer."""
    samples = photos(str(tmp_path / 'photos'), names, [mask.shape for mask in masks])
    writer = AnnotationWriter(str(tmp_path / 'found'), str(tmp_path / 'photos'), samples, CFG,
                              ExportOptions(form, tolerance, min_area, min_confidence))
    for position, mask in enumerate(masks):
        writer(position, mask, confidence)
    writer.finish(range(len(masks)))
    return writer


def back(tmp_path, form, names):
    """The masks that `python -m dssn masks` makes of the files."""
    classes = tmp_path / 'classes.txt'
    classes.write_text('\n'.join(NAMES))
    assert main(['masks', form, str(tmp_path / 'found' / FILES[form]), '--out',
                 str(tmp_path / 'out'), '--images', str(tmp_path / 'photos'), '--keep-empty',
                 '--classes', str(classes)]) == 0
    return [np.array(Image.open(str(tmp_path / 'out/masks' / (os.path.splitext(name)[0] + '.png'))))
            for name in names]


@pytest.mark.parametrize('form', FORMATS)
def test_round_trip(tmp_path, form):
    masks = [large_blobs(seed) for seed in range(6)]
    names = [f'day {k % 2}/image {k} & more.png' for k in range(6)]
    export(tmp_path, form, masks, names)
    for mask, found in zip(masks, back(tmp_path, form, names)):
        assert (mask == found).all()


@pytest.mark.parametrize('form', FORMATS)
def test_only_confident_pixels(tmp_path, form):
    mask = large_blobs(3)
    confidence = np.random.default_rng(0).random((5, 5))
    confidence = np.kron(confidence, np.ones((40, 40)))[:mask.shape[0], :mask.shape[1]]
    confidence = np.uint16(confidence * 65535)
    export(tmp_path, form, [mask], ['a.png'], min_confidence=0.6, confidence=confidence)
    found, = back(tmp_path, form, ['a.png'])
    assert (found == np.where(confidence >= 0.6 * 65535, mask, 255)).all()


def test_tolerance_and_min_area(tmp_path):
    mask = np.zeros((60, 60), np.uint8)
    rows, columns = np.mgrid[:60, :60]
    mask[(rows - 30) ** 2 + (columns - 30) ** 2 < 400] = 1
    mask[3:5, 3:6] = 2
    counts = {}
    for tolerance, min_area in ((0.35, 6), (0.35, 7), (2, 7)):
        writer = export(tmp_path, 'labelme', [mask], ['a.png'], tolerance, min_area)
        with open(writer.path(0)) as file:
            shapes = json.load(file)['shapes']
        counts[tolerance, min_area] = [(s['label'], len(s['points'])) for s in shapes]
    assert [label for label, _ in counts[0.35, 6]] == [NAMES[0], NAMES[1], NAMES[2]] \
        or [label for label, _ in counts[0.35, 6]] == [NAMES[0], NAMES[2], NAMES[1]]
    assert [label for label, _ in counts[0.35, 7]] == NAMES[:2]
    assert counts[2, 7][1][1] < counts[0.35, 7][1][1] / 2


def test_what_is_done_is_known(tmp_path):
    mask = large_blobs(1)
    writer = export(tmp_path, 'cvat', [mask, mask], ['a.png', 'b.png'])
    assert writer.is_done(0) and writer.is_done(1)
    os.remove(writer.path(1))
    assert not writer.is_done(1)
    with open(writer.path(0), 'w') as file:
        file.write('{')
    assert not writer.is_done(0)
    writer(0, mask)
    other = AnnotationWriter(writer.folder, writer.root, writer.samples, CFG,
                             writer.options._replace(tolerance=3.0))
    assert writer.is_done(0) and not other.is_done(0)


def test_a_corrected_file_is_kept(tmp_path, capsys):
    writer = export(tmp_path, 'labelme', [large_blobs(1)] * 2, ['a.png', 'b.png'])
    with open(writer.path(0)) as file:
        content = json.load(file)
    content['shapes'][0]['points'][0][0] += 1
    text = json.dumps(content)
    with open(writer.path(0), 'w') as file:
        file.write(text)
    writer = AnnotationWriter(writer.folder, writer.root, writer.samples, CFG,
                              writer.options._replace(tolerance=3.0))
    assert writer.is_done(0) and not writer.is_done(1)
    for position in (0, 1):
        writer(position, large_blobs(1)[::-1])
    with open(writer.path(0)) as file:
        assert file.read() == text
    back(tmp_path, 'labelme', ['a.png'])
    assert 'warning: 1 files are predictions as they were exported, without a change, such as ' \
        f'{writer.path(1)}' in capsys.readouterr().err
    assert writer.is_done(1) and not writer.is_kept(1)


def test_images_with_one_file(tmp_path):
    samples = photos(str(tmp_path), ['a.png', 'a.bmp'], [(2, 2), (2, 2)])
    with pytest.raises(UserError, match='a.png and a.bmp would both be .*a.json'):
        AnnotationWriter(str(tmp_path), str(tmp_path), samples, CFG,
                         ExportOptions('labelme', 1, 0, 0))
    AnnotationWriter(str(tmp_path), str(tmp_path), samples, CFG, ExportOptions('coco', 1, 0, 0))


def test_a_video_is_refused(tmp_path):
    frame = Frame('a frame 1.mp4', None, '--images', 'a.mp4', 1)
    with pytest.raises(UserError, match='a.mp4 is a video'):
        AnnotationWriter(str(tmp_path), '', [frame], CFG, ExportOptions('coco', 1, 0, 0))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'found').write_text('a file')
    with pytest.raises(UserError, match='cannot be written'):
        export(tmp_path, 'coco', [large_blobs(0)], ['a.png'])


# ---- other programs read the files

def test_pycocotools_reads_the_file(tmp_path):
    coco = pytest.importorskip('pycocotools.coco')
    mask = large_blobs(4)
    export(tmp_path, 'coco', [mask], ['a.png'])
    file = coco.COCO(str(tmp_path / 'found/coco/instances.json'))
    found = np.full(mask.shape, 255, np.uint8)
    for item in sorted(file.loadAnns(file.getAnnIds()), key=lambda item: -item['area']):
        found[file.annToMask(item) > 0] = item['category_id'] - 1
    assert [item['name'] for item in file.loadCats(file.getCatIds())] == NAMES
    assert (found == mask).mean() > 0.97  # it has another rule for the pixels at a border


def test_datumaro_reads_the_file(tmp_path):
    datumaro = pytest.importorskip('datumaro')
    mask = large_blobs(4)
    export(tmp_path, 'cvat', [mask], ['a.png'])
    shutil.copytree(str(tmp_path / 'photos'), str(tmp_path / 'found/cvat/images'))
    dataset = datumaro.Dataset.import_from(str(tmp_path / 'found/cvat/annotations.xml'), 'cvat')
    item, = dataset
    found = np.full(mask.shape, 255, np.uint8)
    for shape in sorted(item.annotations, key=lambda shape: shape.z_order):
        found[inside(shape.points, mask.shape)] = shape.label
    assert (found == mask).all()
    assert [label.name for label in dataset.categories()[datumaro.AnnotationType.label]] == NAMES


def test_labelme_reads_the_file(tmp_path):
    label_file = pytest.importorskip('labelme._label_file')
    mask = large_blobs(4)
    writer = export(tmp_path, 'labelme', [mask], ['x/a.png'])
    file = label_file.LabelFile(writer.path(0))
    from labelme.utils import shapes_to_label
    values = {name: value for value, name in enumerate(NAMES, 1)}
    found, _ = shapes_to_label(mask.shape, file.shapes, values)
    assert (found == np.where(mask == 255, 0, mask + 1)).mean() > 0.9


# ---- the command

@pytest.fixture
def trained(tiny_world):
    """(checkpoint, a world) of a network whose weights are random."""
    world = tiny_world(n_labeled=2, n_unlabeled=4, n_val=1, classes=['a', 'b', 'c'], nclass=3)
    path = os.path.join(world.root, 'net.pth')
    torch.manual_seed(0)
    cfg = world.load()
    torch.save({'model': build_model(cfg).state_dict(), 'config': dataclasses.asdict(cfg)}, path)
    return path, world


def predict(trained, tmp_path, *more):
    checkpoint, world = trained
    return main_eval(['--checkpoint', checkpoint, '--images',
                      os.path.join(world.root, 'images', 'unlabeled*'), '--save-dir',
                      str(tmp_path / 'found'), *more])


@pytest.mark.parametrize('form', FORMATS)
def test_eval_exports_what_it_predicts(trained, tmp_path, capsys, form):
    assert predict(trained, tmp_path, '--export', form, '--tolerance', '0.3', '--min-area', '0',
                   '--confidence', 'uint16', '--min-confidence', '0.4') == 0
    assert f'for {form}: ' in capsys.readouterr().out
    assert main(['masks', form, str(tmp_path / 'found' / FILES[form]), '--images',
                 os.path.join(trained[1].root, 'images'), '--out', str(tmp_path / 'out'),
                 '--classes', 'a,b,c', '--keep-empty']) == 0
    for number in range(4):
        name = f'0000{number}_unlabeled{number}.png'
        expected = np.array(Image.open(str(tmp_path / 'found/prediction' / name)))
        confidence = np.array(Image.open(str(tmp_path / 'found/confidence' / name)))
        expected[confidence < 0.4 * 65535] = 255
        assert 0 < (expected == 255).mean() < 1
        found = np.array(Image.open(str(tmp_path / f'out/masks/unlabeled{number}.png')))
        assert (found == expected).all()


def test_a_second_call_exports_what_is_missing(trained, tmp_path, capsys):
    assert predict(trained, tmp_path) == 0
    assert predict(trained, tmp_path, '--export', 'coco') == 0
    assert '4 of 4 images predicted;' in capsys.readouterr().out.split('\n')[-3]
    os.remove(str(tmp_path / 'found/coco/parts/unlabeled2.jpg.json'))
    assert predict(trained, tmp_path, '--export', 'coco', '--min-confidence', '0') == 0
    assert '3 of them in an earlier call' in capsys.readouterr().out
    with open(str(tmp_path / 'found/coco/instances.json')) as file:
        assert len(json.load(file)['images']) == 4


@pytest.mark.parametrize('options', [
    ['--export', 'yolo'], ['--tolerance', '1'], ['--min-area', '3'], ['--min-confidence', '0.5'],
    ['--export', 'coco', '--tolerance', '-1'], ['--export', 'coco', '--min-confidence', '1.5'],
    ['--export', 'coco', '--min-area', '0.5'], ['--export', 'coco', '--tolerance', 'nan']])
def test_wrong_options(trained, tmp_path, options):
    with pytest.raises(SystemExit) as caught:
        predict(trained, tmp_path, *options)
    assert caught.value.code == 2
    with pytest.raises(SystemExit):  # without --images
        main_eval(['--checkpoint', trained[0], '--export', 'coco'])
