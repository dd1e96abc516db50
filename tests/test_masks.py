"""`python -m dssn masks`: masks from the files of annotation tools, to the pixel.

The files are built from the public descriptions of the formats. Where a package that writes or
reads a format is installed, files of its making are read, too.
"""
import base64
import io
import json
import math
import os
import re
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from dssn import config
from dssn.__main__ import main
from dssn.data.files import image_header, open_mask
from dssn.data.lists import read_list
from dssn.tools.masks.label_studio import unpack_brush

HEIGHT, WIDTH = 24, 32
REST = 255


class Desk:
    """A folder with images, annotations and what is made of them."""

    def __init__(self, root):
        self.root = root
        self.images = root / 'photos'

    def photo(self, name='a.png', size=(WIDTH, HEIGHT), turn=1):
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.new('RGB', size, (9, 9, 9)).save(str(path), exif=exif if turn != 1 else b'')

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def masks(self, form, source, *more, images=True):
        """Run the command; returns its exit status."""
        options = ['--images', str(self.images)] if images else []
        return main(['masks', form, str(source), '--out', str(self.root / 'out'), *options,
                     *map(str, more)])

    def mask(self, name='a.png'):
        with Image.open(str(self.root / 'out' / 'masks' / name)) as image:
            assert image.mode == 'L' and image.format == 'PNG'
            return np.array(image)

    def classes(self):
        return yaml.safe_load((self.root / 'out' / 'classes.yaml').read_text())


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    made.photo()
    return made


def refusal(capsys, desk, *args, **options):
    """The error that `desk.masks(...)` ends with."""
    capsys.readouterr()
    assert desk.masks(*args, **options) == 1
    error = capsys.readouterr().err
    assert error.startswith('python -m dssn masks: error: ') and error.count('\n') == 1
    return error


def pixels_where(test):
    """The pixels whose centre satisfies test(x, y)."""
    return np.array([[test(column + 0.5, row + 0.5) for column in range(WIDTH)]
                     for row in range(HEIGHT)])


def mask_of(*regions, rest=REST):
    """A mask from (value, region) in the order in which they are rendered."""
    mask = np.full((HEIGHT, WIDTH), rest, np.uint8)
    for value, region in regions:
        mask[region] = value
    return mask


def box(left, top, right, bottom):
    return pixels_where(lambda x, y: left <= x < right and top <= y < bottom)


def runs_by_rows(bitmap):
    """The run lengths of a bitmap row by row, the first one outside."""
    runs, current = [0], False
    for pixel in bitmap.ravel().tolist():
        if pixel != current:
            runs.append(0)
            current = pixel
        runs[-1] += 1
    return runs


BITMAP = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)
PLACED = np.zeros((HEIGHT, WIDTH), bool)
PLACED[15:18, 20:24] = BITMAP

# ---- LabelMe


def labelme(*shapes, image='../photos/a.png', size=(HEIGHT, WIDTH), **more):
    return {'version': '5.5.0', 'flags': {}, 'shapes': [
        {'label': label, 'points': points, 'shape_type': kind, 'group_id': None, 'flags': {},
         **extra} for kind, label, points, extra in shapes], 'imagePath': image,
        'imageData': None, 'imageHeight': size[0], 'imageWidth': size[1], **more}


def png_text(bitmap):
    file = io.BytesIO()
    Image.fromarray(bitmap.astype(np.uint8)).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()


def test_labelme(desk, capsys):
    desk.write('labels/a.json', labelme(
        ('polygon', 'road', [[0, 12], [32, 12], [32, 24], [0, 24]], {}),
        ('rectangle', 'car', [[12, 20], [4, 10]], {}),  # of any two opposite corners
        ('circle', 'car', [[22, 8], [22, 12.5]], {}),
        ('linestrip', 'pole', [[2, 2], [2, 8], [9, 8]], {}),
        ('line', 'pole', [[14, 1], [30, 1]], {}),
        ('mask', 'pole', [[20, 15], [23, 17]], {'mask': png_text(BITMAP)}),
        ('oriented_rectangle', 'road', [[28, 14], [30, 16], [28, 18], [26, 16]], {}),
        ('point', 'car', [[1, 1]], {})))
    assert desk.masks('labelme', desk.root / 'labels', '--line-width', 3, images=False) == 0
    strip = pixels_where(lambda x, y: min(
        math.hypot(x - min(max(x, 2), 2), y - min(max(y, 2), 8)),
        math.hypot(x - min(max(x, 2), 9), y - 8),
        math.hypot(x - min(max(x, 14), 30), y - 1)) <= 1.5)
    assert (desk.mask() == mask_of(
        (2, box(0, 12, 32, 24)), (0, box(4, 10, 12, 20)),
        (0, pixels_where(lambda x, y: math.hypot(x - 22, y - 8) <= 4.5)), (1, strip), (1, PLACED),
        (2, pixels_where(lambda x, y: abs(x - 28) + abs(y - 16) <= 2)))).all()
    assert desk.classes()['classes'] == ['car', 'pole', 'road']
    out = capsys.readouterr().out
    assert 'left out, because they have no pixels: 1 shapes of type point' in out
    row, = [line.split() for line in out.split('\n') if ' pole ' in line]
    assert int(row[2]) == (desk.mask() == 1).sum() and row[4] == '1'


def test_labelme_in_subfolders_and_windows_paths(desk):
    for name in ('x/a.png', 'y/a.png'):
        desk.photo(name)
    desk.write('photos/x/a.json', labelme(('polygon', 'x', [[0, 0], [9, 0], [9, 9]], {}),
                                          image='a.png'))
    desk.write('labels/y/a.json', labelme(('polygon', 'y', [[0, 0], [9, 0], [9, 9]], {}),
                                          image='..\\..\\photos\\y\\a.png'))
    assert desk.masks('labelme', desk.root / 'photos') == 0
    assert [s[:2] for s in read_list(str(desk.root / 'out/labeled.txt'))] == [
        ('photos/x/a.png', 'out/masks/x/a.png')]
    assert desk.masks('labelme', desk.root / 'labels') == 0
    assert [s[:2] for s in read_list(str(desk.root / 'out/labeled.txt'))] == [
        ('photos/y/a.png', 'out/masks/y/a.png')]


# ---- CVAT

def cvat(shapes, name='a.png', labels=(), size=(WIDTH, HEIGHT)):
    listed = ''.join(f'<label><name>{label}</name><color>{colour}</color></label>'
                     for label, colour in labels)
    return ('<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
            f'<meta><task><labels>{listed}</labels></task></meta>'
            f'<image id="0" name="{name}" width="{size[0]}" height="{size[1]}">{shapes}</image>'
            '</annotations>')


def test_cvat(desk, capsys):
    runs = ', '.join(map(str, runs_by_rows(BITMAP)))
    desk.write('task/annotations.xml', cvat(
        # The z-order counts, then the order in the file.
        '<polygon label="road" points="0.00,0.00;16.00,0.00;16.00,24.00;0.00,24.00" z_order="1"/>'
        '<box label="car" xtl="2" ytl="2" xbr="10" ybr="6" z_order="0"/>'
        '<box label="car" xtl="10" ytl="10" xbr="22" ybr="14" rotation="90" z_order="1"/>'
        '<ellipse label="car" cx="24" cy="6" rx="6" ry="3" z_order="0"/>'
        '<ellipse label="road" cx="24" cy="6" rx="2" ry="1" rotation="90" z_order="0">'
        '<attribute name="a">b</attribute></ellipse>'
        f'<mask label="pole" rle="{runs}" left="20" top="15" width="4" height="3" z_order="0"/>'
        '<polyline label="pole" points="18,22;30,22" z_order="0"/>'
        '<points label="car" points="3,3"/><tag label="night"/>',
        labels=[('sky', '#112233'), ('road', '#804080'), ('car', '#00008e'), ('pole', '#999999')]))
    assert desk.masks('cvat', desk.root / 'task', '--line-width', 2) == 0
    assert (desk.mask() == mask_of(
        (2, pixels_where(lambda x, y: ((x - 24) / 6) ** 2 + ((y - 6) / 3) ** 2 <= 1)),
        (1, pixels_where(lambda x, y: (x - 24) ** 2 + ((y - 6) / 2) ** 2 <= 1)),
        (3, PLACED),
        (3, pixels_where(lambda x, y: math.hypot(x - min(max(x, 18), 30), y - 22) <= 1)),
        (1, box(0, 0, 16, 24)), (2, box(14, 6, 18, 18)))).all()
    assert desk.classes()['classes'] == ['sky', 'road', 'car', 'pole']
    assert desk.classes()['colours'] == [[17, 34, 51], [128, 64, 128], [0, 0, 142],
                                         [153, 153, 153]]
    out = capsys.readouterr().out
    assert '1 elements <points>' in out and '1 elements <tag>' in out


# ---- COCO

def coco(segmentations, categories=('things', 'car', 'road'), name='a.png', **more):
    """Annotations of (category id, segmentation), without gaps in the ids."""
    return {'images': [{'id': 7, 'file_name': name, 'width': WIDTH, 'height': HEIGHT}],
            'categories': [{'id': i, 'name': n} for i, n in enumerate(categories)],
            'annotations': [{'id': i, 'image_id': 7, 'category_id': category, 'iscrowd': 0,
                             'segmentation': segmentation}
                            for i, (category, segmentation) in enumerate(segmentations)], **more}


def test_coco(desk):
    columns = [int(run) for run in runs_by_rows(PLACED.T)]
    path = desk.write('instances.json', coco([
        (1, [[2, 2, 10, 2, 10, 6, 2, 6], [20, 2, 24, 2, 24, 4, 20, 4]]),  # of two parts
        (2, [[0, 0, 32, 0, 32, 24, 0, 24]]),  # larger, so below, though it comes later
        (2, [[3, 3, 5, 3, 5, 5, 3, 5]]),
        (1, {'size': [HEIGHT, WIDTH], 'counts': columns})]))
    assert desk.masks('coco', path) == 0
    # 'things' is the name of Roboflow's project: no shape has it.
    assert desk.classes()['classes'] == ['car', 'road']
    assert (desk.mask() == mask_of(
        (1, box(0, 0, 32, 24)), (0, box(2, 2, 10, 6)), (0, box(20, 2, 24, 4)), (0, PLACED),
        (1, box(3, 3, 5, 5)))).all()


def test_coco_of_pycocotools(desk):
    tools = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    blobs = [np.kron(rng.random((6, 8)) < 0.4, np.ones((4, 4))).astype(bool) for _ in range(3)]
    packed = []
    for blob in blobs:
        run = tools.encode(np.asfortranarray(blob.astype(np.uint8)))
        packed.append({'size': [int(n) for n in run['size']], 'counts': run['counts'].decode()})
    path = desk.write('instances.json', coco([(k % 2 + 1, run) for k, run in enumerate(packed)]))
    assert desk.masks('coco', path) == 0
    order = sorted(range(3), key=lambda k: -blobs[k].sum())
    assert (desk.mask() == mask_of(*[(k % 2, blobs[k]) for k in order])).all()


# ---- Label Studio

def bits_of(number, count):
    return format(number, f'0{count}b')


def brush(alpha):
    """An RGBA image whose alpha is given (H, W), packed as Label Studio does: a list of bytes."""
    values = np.zeros((*alpha.shape, 4), np.uint8)
    values[..., 3] = alpha
    values = values.ravel().tolist()
    text = bits_of(len(values), 32) + bits_of(7, 5) + ''.join(bits_of(n - 1, 4)
                                                              for n in (3, 4, 8, 16))
    at = 0
    while at < len(values):
        run = 1
        while at + run < len(values) and values[at + run] == values[at] and run < 65536:
            run += 1
        if run > 8:
            text += '1' + '11' + bits_of(run - 1, 16) + bits_of(values[at], 8)
        else:  # the same values one by one
            run = min(run, 8)
            text += '0' + '00' + bits_of(run - 1, 3) + ''.join(bits_of(value, 8)
                                                               for value in values[at:at + run])
        at += run
    text += '0' * (-len(text) % 8)
    return [int(text[i:i + 8], 2) for i in range(0, len(text), 8)]


def label_studio(*results, image='/data/upload/3/0a1b2c3d-a.png', **more):
    return {'id': 5, 'data': {'image': image}, 'annotations': [{'was_cancelled': False, 'result': [
        {'original_width': WIDTH, 'original_height': HEIGHT, 'image_rotation': 0, 'type': kind,
         'id': str(number), 'value': value, **extra}
        for number, (kind, value, extra) in enumerate(results)]}], 'predictions': [], **more}


def percent(*pairs):
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in pairs]


def test_label_studio(desk, capsys):
    task = label_studio(
        ('polygonlabels', {'points': percent((0, 12), (32, 12), (32, 24), (0, 24)), 'closed': True,
                           'polygonlabels': ['road']}, {}),
        # Turned by 90 degrees clockwise about its upper left corner.
        ('rectanglelabels', {'x': 25, 'y': 25, 'width': 25, 'height': 12.5, 'rotation': 90,
                             'rectanglelabels': ['car']}, {}),
        ('ellipselabels', {'x': 75, 'y': 25, 'radiusX': 12.5, 'radiusY': 12.5, 'rotation': 0,
                           'ellipselabels': ['car']}, {}),
        ('brushlabels', {'format': 'rle', 'rle': brush(PLACED * np.uint8(255)),
                         'brushlabels': ['pole']}, {}),
        # A region whose label is a result of its own, with the same id.
        ('rectangle', {'x': 0, 'y': 0, 'width': 12.5, 'height': 12.5, 'rotation': 0}, {'id': 'r'}),
        ('labels', {'labels': ['car']}, {'id': 'r'}),
        ('choices', {'choices': ['night']}, {}))
    empty = {'id': 6, 'data': {'image': '/data/local-files/?d=later/b.png'}, 'annotations': []}
    path = desk.write('project.json', [task, empty])
    assert desk.masks('labelstudio', path) == 0
    assert (desk.mask() == mask_of(
        (2, box(0, 12, 32, 24)), (0, box(5, 6, 8, 14)),
        (0, pixels_where(lambda x, y: ((x - 24) / 4) ** 2 + ((y - 6) / 3) ** 2 <= 1)), (1, PLACED),
        (0, box(0, 0, 4, 3)))).all()
    out = capsys.readouterr().out
    assert '1 results of type choices' in out and '1 images have no shape' in out
    assert '1 results of type labels' in out


@pytest.mark.parametrize('address', [
    '/data/upload/12/deadbeef-a.png', '/data/local-files/?d=x/a.png', 's3://bucket/x/a.png',
    'https://example.org/a.png?token=1', 'a.png', '/data/local-files/?d=x%2Fa.png'])
def test_label_studio_addresses(desk, address):
    desk.images.joinpath('x').mkdir()
    os.rename(str(desk.images / 'a.png'), str(desk.images / 'x' / 'a.png'))
    path = desk.write('project.json', [label_studio(
        ('rectanglelabels', {'x': 0, 'y': 0, 'width': 9, 'height': 9, 'rectanglelabels': ['car']},
         {}), image=address)])
    assert desk.masks('labelstudio', path) == 0
    assert (desk.root / 'out/masks/x/a.png').exists()


def test_brushes_of_label_studio_converter():
    encoder = pytest.importorskip('label_studio_converter.brush')
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mask = np.kron(rng.random((7, 9)) < 0.5, np.ones((1 + seed * 3, 2))) * 255
        packed = encoder.mask2rle(mask.astype(np.uint8))
        values = unpack_brush(packed, mask.size * 4).reshape(*mask.shape, 4)
        assert (values[..., 3] == mask).all()


# ---- colours

COLOURS = [(128, 64, 128), (0, 0, 142), (0, 0, 0)]


@pytest.mark.parametrize('mode', ['RGB', 'P', 'RGBA'])
def test_colours(desk, mode):
    index = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette([c for colour in COLOURS for c in colour])
    folder = desk.root / 'export' / 'SegmentationClass'
    folder.mkdir(parents=True)
    (picture if mode == 'P' else picture.convert(mode)).save(str(folder / 'a.png'))
    desk.write('export/labelmap.txt', '# label:color_rgb:parts:actions\nbackground:0,0,0::\n'
               'road:128,64,128::\ncar:0,0,142::\nunused:1,1,1::\n')
    assert desk.masks('colours', desk.root / 'export', '--map', 'background=ignore') == 0
    assert (desk.mask() == np.array([0, 1, 255], np.uint8)[index]).all()
    assert desk.classes() == {'data_root': str(desk.root), 'classes': ['road', 'car', 'unused'],
                              'colours': [[128, 64, 128], [0, 0, 142], [1, 1, 1]]}


# ---- rules for all formats

def square(label, left=0, top=0, side=4):
    return ('rectangle', label, [[left, top], [left + side, top + side]], {})


def test_rest_map_and_classes(desk, capsys):
    desk.write('labels/a.json', labelme(square('lorry'), square('dirt', 8), square('car', 16)))
    labels = desk.root / 'labels'
    error = refusal(capsys, desk, 'labelme', labels, '--classes', 'road,car')
    assert 'dirt (1 shapes), lorry (1 shapes)' in error and 'road, car' in error
    assert not (desk.root / 'out').exists()
    # The remedy of the message.
    assert desk.masks('labelme', labels, '--classes', 'road,car', '--map', 'dirt=ignore',
                      '--map', 'lorry=car') == 0
    expected = mask_of((1, box(0, 0, 4, 4)), (1, box(16, 0, 20, 4)))
    assert (desk.mask() == expected).all()
    names = desk.write('names.txt', 'road\ncar\n')
    assert desk.masks('labelme', labels, '--classes', names, '--map', 'dirt=ignore', 'lorry=car',
                      '--rest', 'road') == 0
    expected[expected == 255] = 0
    expected[:4, 8:12] = 255
    assert (desk.mask() == expected).all()
    # Without --classes the rest comes first, and two labels may become one class.
    assert desk.masks('labelme', labels, '--rest', 'ground', '--map', 'lorry=car') == 0
    assert desk.classes()['classes'] == ['ground', 'car', 'dirt']
    assert (desk.mask() == mask_of((1, box(0, 0, 4, 4)), (2, box(8, 0, 12, 4)),
                                   (1, box(16, 0, 20, 4)), rest=0)).all()


def test_images_without_a_shape(desk, capsys):
    desk.photo('b.png')
    desk.write('labels/a.json', labelme(square('car')))
    desk.write('labels/b.json', labelme(image='../photos/b.png'))
    assert desk.masks('labelme', desk.root / 'labels', '--rest', 'road') == 0
    assert '1 images have no shape' in capsys.readouterr().out
    assert not (desk.root / 'out/masks/b.png').exists()
    assert desk.masks('labelme', desk.root / 'labels', '--rest', 'road', '--keep-empty') == 0
    assert (desk.mask('b.png') == 0).all()


def test_shapes_outside_the_image(desk, capsys):
    desk.write('labels/a.json', labelme(
        square('car', -3, -3, 8), square('car', 30, 20, 90), square('car', 90, 3),
        ('polygon', 'car', [[9.1, 9.1], [9.3, 9.1], [9.3, 9.3]], {}),
        ('mask', 'car', [[29, 22], [32, 24]], {'mask': png_text(BITMAP)})))
    assert desk.masks('labelme', desk.root / 'labels') == 0
    cut = np.zeros((HEIGHT, WIDTH), bool)
    cut[22:, 29:] = BITMAP[:2, :3]
    assert (desk.mask() == mask_of((0, box(0, 0, 5, 5)), (0, box(30, 20, 32, 24)),
                                   (0, cut))).all()
    error = capsys.readouterr().err
    assert '2 shapes cover no pixel' in error and 'a.json shape 3 (car)' in error \
        and 'a.json shape 4 (car)' in error


@pytest.mark.parametrize('turn', range(2, 9))
@pytest.mark.parametrize('square_image', [False, True])
def test_orientation(desk, turn, square_image):
    """Training reads the mask as viewers show the image, on which the person has drawn."""
    stored = (24, 24) if square_image else (32, 24)
    desk.photo('a.jpg', stored, turn)
    shown = stored[::-1] if turn >= 5 else stored
    desk.write('labels/a.json', labelme(('polygon', 'car', [[0, 0], [10, 0], [0, 6]], {}),
                                        image='../photos/a.jpg', size=shown[::-1]))
    assert desk.masks('labelme', desk.root / 'labels') == 0
    sample, = read_list(str(desk.root / 'out/labeled.txt'))
    header = image_header(str(desk.root), sample)
    read = np.array(open_mask(str(desk.root), sample, 1, header.size, turn=header.turn))
    expected = np.full(shown[::-1], 255, np.uint8)
    for row in range(shown[1]):
        for column in range(shown[0]):
            if (column + 0.5) / 10 + (row + 0.5) / 6 < 1:
                expected[row, column] = 0
    assert (read == expected).all()


def test_annotations_of_the_stored_pixels(desk):
    """A tool that does not turn photographs is found by the size."""
    desk.photo('a.jpg', (32, 24), 6)
    desk.write('labels/a.json', labelme(square('car'), image='../photos/a.jpg'))
    assert desk.masks('labelme', desk.root / 'labels') == 0
    sample, = read_list(str(desk.root / 'out/labeled.txt'))
    read = np.array(open_mask(str(desk.root), sample, 1, (24, 32), turn=6))
    assert (np.argwhere(read == 0) == np.argwhere(np.rot90(box(0, 0, 4, 4), -1))).all()


def test_the_classes_are_a_part_of_a_config(desk):
    desk.write('labels/a.json', labelme(square('car'), square('a road', 9)))
    assert desk.masks('labelme', desk.root / 'labels') == 0
    with open(str(desk.root / 'out/classes.yaml')) as file:
        text = file.read()
    path = desk.write('mine.yaml', text + 'dataset: mine\nlabeled_id_path: a\n'
                      'unlabeled_id_path: a\nval_id_path: a\nsave_path: a\n')
    cfg = config.load(str(path))
    assert list(cfg.classes) == ['a road', 'car'] and cfg.nclass == 2
    assert cfg.data_root == str(desk.root) and len(cfg.colours) == 2


def test_images_with_one_name(desk, capsys):
    for name in ('x/b.png', 'y/b.png'):
        desk.photo(name)
    path = desk.write('annotations.xml', cvat('<box label="a" xtl="0" ytl="0" xbr="5" ybr="5"/>',
                                              'b.png'))
    assert 'images have the name b.png' in refusal(capsys, desk, 'cvat', path)
    path = desk.write('annotations.xml', cvat('<box label="a" xtl="0" ytl="0" xbr="5" ybr="5"/>',
                                              'y/b.png'))
    assert desk.masks('cvat', path) == 0
    assert (desk.root / 'out/masks/y/b.png').exists()
    # A second time: the masks of the first time are no images.
    assert desk.masks('cvat', path, '--images', desk.root, images=False) == 0
    desk.write('two/1.json', labelme(square('a')))
    desk.write('two/2.json', labelme(square('a')))
    assert '2.json' in refusal(capsys, desk, 'labelme', desk.root / 'two')
    desk.photo('a.jpg')
    desk.write('stems/1.json', labelme(square('a')))
    desk.write('stems/2.json', labelme(square('a'), image='../photos/a.jpg'))
    assert 'would both be' in refusal(capsys, desk, 'labelme', desk.root / 'stems')


# ---- wrong files

RECTANGLE = {'x': 0, 'y': 0, 'width': 9, 'height': 9, 'rectanglelabels': ['car']}
BOX = '<box label="car" xtl="0" ytl="0" xbr="5" ybr="5"/>'


@pytest.mark.parametrize('content, words', [
    ('{', ['a.json']), ('[1]', ['a.json']), ('{"shapes": []}', ['a.json', 'imagePath']),
    ('[' * 100000, ['a.json']),
    (labelme(('polygon', 'car', [[0, 0], [1, 1]], {})), ['a.json shape 1', '2 points']),
    (labelme(square('car'), ('polygon', 'car', [[0, 0], [1, 1], [1, float('nan')]], {})),
     ['a.json shape 2', 'no number below']),
    (labelme(('polygon', 'car', [[0, 0], [1], [1, 3]], {})), ['a.json shape 1']),
    (labelme(('polygon', 'car', [[0, 0], [1e300, 0], [1, 3]], {})), ['shape 1', 'below 1e+09']),
    (labelme(('cuboid', 'car', [[0, 0], [1, 1]], {})), ['shape 1', 'cuboid']),
    (labelme(('mask', 'car', [[0, 0], [1, 1]], {'mask': 'AAAA'})), ['shape 1', 'PNG']),
    (labelme(('mask', 'car', [[0, 0], [8, 8]], {'mask': png_text(BITMAP)})), ['shape 1', '4x3']),
    (labelme(('mask', 'car', [[0, 0], [1, 1]], {})), ['shape 1', "'mask'"]),
    (labelme(square('car'), size=(9, 9)), ['a.json', '9x9', '32x24']),
    (labelme(square('car'), image='none.png'), ['a.json', 'none.png', '--images']),
    (labelme(), ['no shape']),
])
def test_wrong_files_of_labelme(desk, capsys, content, words):
    desk.write('labels/a.json', content)
    error = refusal(capsys, desk, 'labelme', desk.root / 'labels')
    assert all(word in error for word in words), error


@pytest.mark.parametrize('content, words', [
    ('<annotations>', ['.xml', 'not valid XML']), ('', ['not valid XML']),
    ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', ['document type']),
    ('<annotations><track id="0"/></annotations>', ['tracks of a video']),
    (cvat('<polygon label="car" points="1,2;3,4"/>'), ['image a.png shape 1', '2 points']),
    (cvat(BOX + '<polygon label="car" points="1,2;3,4;x,y"/>'), ['image a.png shape 2']),
    (cvat('<box label="car" xtl="1"/>'), ['shape 1', "'ytl'"]),
    (cvat('<polygon points="1,2;3,4;5,6"/>'), ['shape 1', "'label'"]),
    (cvat('<blob label="car"/>'), ['shape 1', 'blob']),
    (cvat('<mask label="car" rle="1,2" left="0" top="0" width="9" height="9"/>'),
     ['shape 1', '3 pixels']),
    (cvat('<mask label="car" rle="1" left="0" top="0" width="99999" height="99999"/>'),
     ['shape 1', 'too large']),
    (cvat(BOX, size=(9, 9)), ['image a.png', '9x9']),
    (cvat(BOX, name='none.png'), ['none.png', '--images']),
])
def test_wrong_files_of_cvat(desk, capsys, content, words):
    error = refusal(capsys, desk, 'cvat', desk.write('annotations.xml', content))
    assert all(word in error for word in words), error


@pytest.mark.parametrize('content, words', [
    ({}, ["'categories'"]), ([], ['instances.json']),
    (coco([(1, [])]), ['annotation 0', 'only a box']),
    (coco([(1, [[1, 2, 3]])]), ['annotation 0', '3 numbers']),
    (coco([(1, [[1, 2, 3, 4]])]), ['annotation 0', '2 points']),
    (coco([(9, [[1, 2, 3, 4, 5, 6]])]), ['annotation 0', 'category 9']),
    (coco([(1, {'size': [2, 2], 'counts': [4]})]), ['annotation 0', 'size is [2, 2]']),
    (coco([(1, {'size': [HEIGHT, WIDTH], 'counts': '5'})]), ['annotation 0', 'cover 5']),
    (coco([(1, {'counts': [4]})]), ['annotation 0', "'size'"]),
    (coco([(1, [[1, 2, 3, 4, 5, 6]])], images=[]), ['annotation 0', 'image 7']),
])
def test_wrong_files_of_coco(desk, capsys, content, words):
    error = refusal(capsys, desk, 'coco', desk.write('instances.json', content))
    assert all(word in error for word in words), error


@pytest.mark.parametrize('content, words', [
    ({}, ['JSON']), ([{'image': 'a.png', 'id': 1, 'label': []}], ['JSON-MIN']),
    ([label_studio(('rectanglelabels', {**RECTANGLE, 'rectanglelabels': []}, {}))],
     ['task 5 result 1', 'no label']),
    ([label_studio(('rectanglelabels', {**RECTANGLE, 'rectanglelabels': ['a', 'b']}, {}))],
     ['task 5 result 1', '2 labels']),
    ([label_studio(('rectanglelabels', RECTANGLE, {'image_rotation': 90}))], ['90 degrees']),
    ([label_studio(('bitmasklabels', {'imageDataURL': 'x', 'bitmasklabels': ['a']}, {}))],
     ['task 5 result 1', 'bitmasklabels']),
    ([label_studio(('rectanglelabels', RECTANGLE, {'original_width': 5}))],
     ['task 5', '5x24', '32x24']),
    ([label_studio(('rectanglelabels', RECTANGLE, {}),
                   ('rectanglelabels', RECTANGLE, {'original_width': 5}))], ['task 5', '2 sizes']),
    ([label_studio(('brushlabels', {'rle': brush(np.zeros((2, 2))), 'brushlabels': ['a']}, {}))],
     ['task 5 result 1', '16 values']),
    ([label_studio(('brushlabels', {'rle': brush(PLACED)[:20], 'brushlabels': ['a']}, {}))],
     ['task 5 result 1', 'ends early']),
    ([label_studio(('brushlabels', {'rle': [], 'brushlabels': ['a']}, {}))],
     ['task 5 result 1', 'ends early']),
    ([{**label_studio(), 'annotations': [{'result': []}, {'result': []}]}],
     ['task 5', '2 annotations']),
])
def test_wrong_files_of_label_studio(desk, capsys, content, words):
    error = refusal(capsys, desk, 'labelstudio', desk.write('project.json', content))
    assert all(word in error for word in words), error


@pytest.mark.parametrize('table, words', [
    (None, ['labelmap.txt', '--table']), ('', ['has no line']),
    ('road 1,2,3', ['line 1', 'label:R,G,B']), ('road:1,2', ['line 1']),
    ('road:1,2,300', ['line 1']), ('a:0,0,0\nb:0,0,0', ['line 2', 'earlier']),
    ('a:1,2,3', ['a.png', '0,0,0 (768 pixels)']),
])
def test_wrong_files_of_colours(desk, capsys, table, words):
    (desk.root / 'colours').mkdir()
    Image.new('RGB', (WIDTH, HEIGHT)).save(str(desk.root / 'colours' / 'a.png'))
    if table is not None:
        desk.write('colours/labelmap.txt', table)
    error = refusal(capsys, desk, 'colours', desk.root / 'colours')
    assert all(word in error for word in words), error


@pytest.mark.parametrize('options, words', [
    (['--rest', 'road', '--classes', 'car'], ['--rest road', 'car']),
    (['--map', 'lorry=car'], ["'lorry'", 'car']), (['--map', 'car'], ['OLD=NEW']),
    (['--classes', 'car,car'], ['twice']), (['--classes', 'car,ignore'], ['ignore']),
    (['--map', 'car=ignore'], ['no shape']),
])
def test_wrong_options(desk, capsys, options, words):
    desk.write('labels/a.json', labelme(square('car')))
    error = refusal(capsys, desk, 'labelme', desk.root / 'labels', *options)
    assert all(word in error for word in words), error


@pytest.mark.parametrize('form', ['cvat', 'coco', 'labelstudio', 'labelme'])
def test_zip_files_and_missing_files(desk, capsys, form):
    path = desk.root / 'a.json'
    with zipfile.ZipFile(str(path), 'w') as file:
        file.writestr('annotations.xml', '<annotations/>')
    assert 'a.json: is a zip file; unpack it' in refusal(capsys, desk, form, path)
    assert 'none.json' in refusal(capsys, desk, form, desk.root / 'none.json')


JUNK = [None, True, -1, 1e300, 'x', '', [], {}, [[]], {'a': [1]}, float('nan'), [None], 2 ** 70]


def mutations(content, path=()):
    """The paths to all values in nested lists and mappings."""
    yield path
    items = content.items() if isinstance(content, dict) else \
        enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from mutations(value, (*path, key))


def mutated(content, path, value):
    """A copy in which the value at a path is another one."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = mutated(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize('form, content', [
    ('labelme', labelme(square('car'), ('circle', 'car', [[9, 9], [12, 9]], {}),
                        ('mask', 'pole', [[20, 15], [23, 17]], {'mask': png_text(BITMAP)}))),
    ('coco', coco([(1, [[1, 2, 9, 2, 9, 8]]),
                   (2, {'size': [HEIGHT, WIDTH], 'counts': [HEIGHT * WIDTH - 9, 9]})])),
    ('labelstudio', [label_studio(('rectanglelabels', RECTANGLE, {}), (
        'ellipselabels', {'x': 75, 'y': 25, 'radiusX': 12.5, 'radiusY': 12.5, 'rotation': 0,
                          'ellipselabels': ['car']}, {}))])])
def test_any_junk_in_a_file_is_one_line(desk, capsys, form, content):
    rng = np.random.default_rng(0)
    paths = list(mutations(content))
    for path in paths:
        for value in rng.permutation(len(JUNK))[:3]:
            file = desk.write('labels/a.json', mutated(content, path, JUNK[value]))
            capsys.readouterr()
            status = desk.masks(form, file)
            error = capsys.readouterr().err
            assert status == 0 or (status == 1 and error.count('\n') == 1
                                   and 'a.json' in error), (path, JUNK[value], error)


def test_any_junk_in_xml_is_one_line(desk, capsys):
    content = cvat(BOX + '<polygon label="road" points="1,2;3,4;9,9" z_order="1"/>'
                   '<mask label="car" rle="1,2,1" left="0" top="0" width="2" height="2"/>'
                   '<ellipse label="car" cx="9" cy="9" rx="3" ry="2" rotation="20"/>',
                   labels=[('car', '#000001')])
    for place in re.finditer('"([^"]*)"', content):
        for junk in ('', 'x', '1e999', '&#0;', '999999999999999999999'):
            file = desk.write('annotations.xml', content[:place.start() + 1] + junk
                              + content[place.end() - 1:])
            capsys.readouterr()
            status = desk.masks('cvat', file)
            error = capsys.readouterr().err
            assert status == 0 or (status == 1 and error.count('\n') == 1
                                   and 'annotations.xml' in error), (place, junk, error)


# ---- files that other programs write

def test_files_of_datumaro(desk):
    """The CVAT, COCO and Segmentation mask formats, as datumaro writes them."""
    datumaro = pytest.importorskip('datumaro')
    bitmap = np.zeros((HEIGHT, WIDTH), bool)
    bitmap[15:18, 20:24] = BITMAP
    shapes = [datumaro.Polygon([0, 0, 16, 0, 16, 24, 0, 24], label=0, z_order=0),
              datumaro.Polygon([4, 6, 12, 6, 12, 16, 4, 16], label=1, z_order=1),
              datumaro.Mask(bitmap, label=2, z_order=2)]
    photo = datumaro.Image.from_numpy(data=np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    dataset = datumaro.Dataset.from_iterable(
        [datumaro.DatasetItem(id='a', media=photo, annotations=shapes,
                              attributes={'frame': 0})], categories=['road', 'car', 'pole'])
    expected = mask_of((0, box(0, 0, 16, 24)), (1, box(4, 6, 12, 16)), (2, bitmap))
    colours = {'background': (0, 0, 0), 'road': (128, 64, 128), 'car': (0, 0, 142),
               'pole': (9, 9, 9)}
    for form in ('cvat', 'coco_instances', 'voc_segmentation'):
        more = {'label_map': {name: [colour, [], []] for name, colour in colours.items()}} \
            if form == 'voc_segmentation' else {}
        dataset.export(str(desk.root / form), form, save_media=True, image_ext='.png', **more)
    assert desk.masks('cvat', next((desk.root / 'cvat').glob('*.xml'))) == 0
    assert (desk.mask() == expected).all()
    source = next((desk.root / 'coco_instances' / 'annotations').glob('*.json'))
    assert desk.masks('coco', source, '--classes', 'road,car,pole') == 0
    assert (desk.mask() == expected).all()
    # The format that CVAT calls 'Segmentation mask 1.1'.
    source = desk.root / 'voc_segmentation'
    assert desk.masks('colours', source, '--classes', 'road,car,pole', '--map',
                      'background=ignore') == 0
    assert (desk.mask()[bitmap] == 2).all()


def test_files_of_labelme(desk):
    """A file that LabelMe itself writes, and the pixels that LabelMe gives its shapes."""
    label_file = pytest.importorskip('labelme._label_file')
    (desk.root / 'labels').mkdir()
    content = labelme(('polygon', 'road', [[1, 12], [30, 12], [30, 22], [1, 22]], {}),
                      ('circle', 'car', [[22, 8], [22, 12.5]], {}),
                      ('mask', 'pole', [[20, 15], [23, 17]], {'mask': png_text(BITMAP)}))
    label_file.write_label_file(
        str(desk.root / 'labels/a.json'), shapes=content['shapes'], image_path='../photos/a.png',
        image_height=HEIGHT, image_width=WIDTH)
    assert desk.masks('labelme', desk.root / 'labels') == 0
    from labelme.utils import shapes_to_label
    shapes = label_file.LabelFile(str(desk.root / 'labels/a.json')).shapes
    theirs, _ = shapes_to_label((HEIGHT, WIDTH, 3), shapes, {'car': 1, 'pole': 2, 'road': 3})
    # LabelMe also fills the pixels that an outline runs through: it adds pixels at the border.
    ours = desk.mask()
    assert (theirs[ours != 255] == ours[ours != 255] + 1).mean() > 0.97
    assert ((theirs > 0) & (ours == 255)).sum() < 100
