"""Pictures: palettes, overlays, error maps, panels, and the files and rows of an evaluation."""
import os
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from dssn.data.lists import Sample, read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.inference import pictures
from dssn.inference.evaluation import evaluate
from dssn.inference.pictures import PictureWriter, file_stem, gather, index_picture, side_by_side

COLOURS = [(1, 2, 3), (40, 50, 60), (7, 8, 9)]
WHITE = (255, 255, 255)


def random_image(height=5, width=4, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width)).astype(np.uint8))


# ---- one picture

def test_an_index_picture_keeps_indices_and_shows_colours(tmp_path):
    index = torch.tensor([[0, 2, 1], [1, 255, 3]])
    path = str(tmp_path / 'p.png')
    index_picture(index, COLOURS).save(path)
    with Image.open(path) as picture:
        assert picture.mode == 'P'
        assert np.array_equal(np.asarray(picture), index.numpy())
        shown = np.asarray(picture.convert('RGB'))
    expected = [COLOURS[0], COLOURS[2], COLOURS[1], COLOURS[1], WHITE, WHITE]
    assert [tuple(pixel) for pixel in shown.reshape(-1, 3).tolist()] == expected


def test_an_index_picture_of_as_many_classes_as_there_can_be():
    colours = [(i, 255 - i, i // 2) for i in range(255)]
    shown = np.asarray(index_picture(np.arange(255)[None], colours).convert('RGB'))
    assert [tuple(pixel) for pixel in shown[0].tolist()] == colours


def test_an_overlay_is_half_image_half_colour():
    image = Image.fromarray(random_image().permute(1, 2, 0).numpy())
    index = np.random.default_rng(1).integers(0, 3, (5, 4))
    got = np.asarray(pictures.overlay(image, index_picture(index, COLOURS))).astype(float)
    expected = (np.asarray(image).astype(float) + np.array(COLOURS)[index]) / 2
    assert np.abs(got - expected).max() <= 1


def test_an_error_picture_pixel_by_pixel():
    label, prediction = np.array([[0, 1, 255], [2, 255, 2]]), np.array([[0, 2, 0], [2, 1, 0]])
    picture = pictures.error_picture(label, prediction)
    assert np.asarray(picture).tolist() == [[0, 1, 255], [0, 255, 1]]
    shown = np.asarray(picture.convert('RGB'))
    assert tuple(shown[0, 2]) == WHITE
    assert len({tuple(pixel) for pixel in shown.reshape(-1, 3).tolist()}) == 3


def test_side_by_side_of_different_modes():
    image = Image.fromarray(random_image().permute(1, 2, 0).numpy())
    row = side_by_side([image, index_picture(np.full((5, 2), 2), COLOURS)], gap=3)
    got = np.asarray(row)
    assert got.shape == (5, 4 + 3 + 2, 3)
    assert np.array_equal(got[:, :4], np.asarray(image))
    assert (got[:, 4:7] == 255).all() and (got[:, 7:] == COLOURS[2]).all()


@pytest.mark.parametrize('size, small', [
    ((40, 30), (40, 30)), ((240, 180), (240, 180)), ((480, 360), (240, 180)),
    ((300, 900), (60, 180)), ((9000, 3), (240, 1)), ((1, 1), (1, 1))])
def test_thumbnails_fit_and_are_never_enlarged(size, small):
    assert pictures.thumbnail(Image.new('P', size)).size == small


@pytest.mark.parametrize('path, stem', [
    ('images/a_1-b.c.jpg', '00007_a_1-b.c'), ('a b/c d#?%.png', '00007_c_d_'),
    ('..', '00007_..'), ('x/Ünï 写.webp', '00007_Ünï_写'), ('a/\udce9.jpg', '00007__')])
def test_file_stems_are_plain(path, stem):
    assert file_stem(7, path) == stem


def test_file_stems_are_not_too_long_for_a_file_system():
    name = file_stem(123456, 'é' * 200 + '.jpg')
    assert len((name + '.json').encode()) <= 255 and name.startswith('123456_éé')


# ---- the pictures of an evaluation

class Second(torch.nn.Module):
    """Predicts class 1 in the upper half and class 0 in the lower."""

    def forward(self, x):
        logits = torch.zeros(len(x), 3, *x.shape[2:])
        logits[:, 1, :x.shape[2] // 2] = 1
        return logits


def written(world, folder, change=None):
    """(config, samples) after an evaluation with pictures into `folder`; masks by `change`."""
    cfg = world.load()
    samples = read_list(cfg.val_id_path)
    for i, sample in enumerate(samples):
        if change:
            path = os.path.join(cfg.data_root, sample.mask)
            mask = np.array(Image.open(path))
            change(i, mask)
            Image.fromarray(mask).save(path)
    writer = PictureWriter(str(folder), cfg, samples)
    result = evaluate({'student': Second()}, cfg, samples, World(), writer)
    writer.finish(World(), 'Title', ['fact'], result['student'])
    return cfg, samples, writer


def test_an_evaluation_writes_pictures_of_every_image(tiny_world, tmp_path):
    folder = tmp_path / 'new' / 'pictures'

    def change(i, mask):
        mask[:6, :8] = 255
    cfg, samples, _ = written(tiny_world(n_val=2), folder, change)
    stems = [f'{i:05d}_{os.path.splitext(os.path.basename(sample.image))[0]}'
             for i, sample in enumerate(samples)]
    endings = {'panel': '.png', 'prediction': '.png', 'error': '.png', 'overlay': '.jpg',
               'thumbnail': '.jpg'}
    for kind, ending in endings.items():
        assert sorted(os.listdir(str(folder / kind))) == [stem + ending for stem in stems]
    assert sorted(os.listdir(str(folder))) == sorted(list(endings) + ['index.html'])
    for sample, stem in zip(samples, stems):
        image = np.array(Image.open(os.path.join(cfg.data_root, sample.image)).convert('RGB'))
        mask = np.array(Image.open(os.path.join(cfg.data_root, sample.mask)))
        height, width = mask.shape
        prediction = np.array(Image.open(str(folder / 'prediction' / stem) + '.png'))
        assert (prediction[:height // 2] == 1).all() and (prediction[height // 2:] == 0).all()
        error = np.array(Image.open(str(folder / 'error' / stem) + '.png'))
        assert np.array_equal(error == 1, (mask != 255) & (mask != prediction))
        assert np.array_equal(error == 255, mask == 255)
        panel = np.array(Image.open(str(folder / 'panel' / stem) + '.png'))
        assert panel.shape == (height, 3 * width + 8, 3)
        assert np.array_equal(panel[:, :width], image)
        shown = panel[:, width + 4:2 * width + 4]
        assert (shown[:6, :8] == 255).all()
        assert len(np.unique(shown.reshape(-1, 3), axis=0)) == len(np.unique(mask))
        assert len(np.unique(panel[:, -width:].reshape(-1, 3), axis=0)) == 2
        with Image.open(str(folder / 'overlay' / stem) + '.jpg') as overlay:
            assert (overlay.size, overlay.mode) == ((width, height), 'RGB')


def slow_iou(mask, prediction, nclass):
    values = []
    for c in range(nclass):
        valid = mask != 255
        hit = ((mask == c) & (prediction == c) & valid).sum()
        union = (((mask == c) | (prediction == c)) & valid).sum()
        if union:
            values.append(100 * hit / union)
    return np.mean(values) if values else None


def test_the_gallery_has_the_iou_of_each_image(tiny_world, tmp_path):
    def change(i, mask):
        mask[:, :3] = 255
        if i == 1:
            mask[:] = 255
        if i == 2:
            mask[mask == 2] = 0  # a class in neither ground truth nor prediction
    cfg, samples, writer = written(tiny_world(n_val=3), tmp_path, change)
    expected, accuracy = [], []
    for i, sample in enumerate(samples):
        mask = np.array(Image.open(os.path.join(cfg.data_root, sample.mask)))
        prediction = np.zeros_like(mask)
        prediction[:len(mask) // 2] = 1
        expected.append(slow_iou(mask, prediction, 3))
        accuracy.append(100 * (mask == prediction)[mask != 255].mean() if i != 1 else None)
    assert [row['iou'] for row in writer.rows] == pytest.approx(expected)
    assert [row['accuracy'] for row in writer.rows] == pytest.approx(accuracy)
    page = (tmp_path / 'index.html').read_text(encoding='utf-8')
    shown = [float(text) for text in re.findall(r'data-iou="([0-9.]+)"', page)]
    assert shown == pytest.approx([expected[0], expected[2]], abs=1e-5)


def test_images_of_one_name_in_two_folders_get_two_pictures(tiny_world, tmp_path):
    samples = [Sample('a/x.jpg', None, ''), Sample('b/x.jpg', None, '')]
    writer = PictureWriter(str(tmp_path), tiny_world().load(), samples)
    for position in (0, 1):
        writer(position, random_image(), None, {'student': torch.zeros(5, 4)})
    assert sorted(os.listdir(str(tmp_path / 'prediction'))) == ['00000_x.png', '00001_x.png']


def test_without_ground_truth_there_are_no_errors_and_panels(tiny_world, tmp_path):
    writer = PictureWriter(str(tmp_path / 'p'), tiny_world().load(), [Sample('x.jpg', None, '')])
    writer(0, random_image(), None, {'student': torch.ones(5, 4, dtype=torch.uint8)})
    assert writer.finish(World(), 'Title', []) == []
    assert sorted(os.listdir(str(tmp_path / 'p'))) == ['index.html', 'overlay', 'prediction',
                                                       'thumbnail']
    assert 'IoU' not in (tmp_path / 'p' / 'index.html').read_text(encoding='utf-8').split(
        '<script>')[0]


def test_pictures_of_an_earlier_run_are_reported(tiny_world, tmp_path, capsys):
    cfg = tiny_world().load()
    for names, count in ((['b.jpg'], 0), (['b.jpg'], 0), (['a.jpg', 'b.jpg'], 3)):
        writer = PictureWriter(str(tmp_path), cfg, [Sample(name, None, '') for name in names])
        for position in range(len(names)):
            writer(position, random_image(), None, {'student': torch.zeros(5, 4)})
        (tmp_path / 'prediction' / '.DS_Store').write_text('no picture')
        writer.finish(World(), 'Title', [])
        printed = capsys.readouterr().err
        assert (f'{count} pictures of an earlier run' in printed
                and 'overlay/00000_b.jpg' in printed if count else printed == '')


def test_an_overlay_too_large_for_jpeg_is_a_png(tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, 'JPEG_SIDE', 8)
    writer = PictureWriter(str(tmp_path), tiny_world().load(), [Sample('x.jpg', None, '')])
    writer(0, random_image(2, 9), None, {'student': torch.zeros(2, 9)})
    assert os.listdir(str(tmp_path / 'overlay')) == ['00000_x.png']
    assert writer.rows[0]['files']['overlay'] == 'overlay/00000_x.png'


def test_a_picture_that_cannot_be_written_is_a_user_error(tiny_world, tmp_path):
    (tmp_path / 'overlay').write_text('in the way')
    writer = PictureWriter(str(tmp_path), tiny_world().load(), [Sample('x.jpg', None, '')])
    with pytest.raises(UserError, match='--save-dir .*overlay/00000_x.jpg cannot be written'):
        writer(0, random_image(), None, {'student': torch.zeros(5, 4)})


# ---- several ranks

class Thread(World):
    """One of several ranks in one process, summing over a shared table."""

    def __init__(self, rank, size, barrier, table):
        super().__init__(rank, rank, size)
        self.barrier, self.table = barrier, table

    def sum(self, tensor):
        self.table[self.rank] = tensor.clone()
        self.barrier.wait(30)
        total = sum(self.table[rank] for rank in range(self.size))
        self.barrier.wait(30)
        return total


def on_ranks(size, task):
    """[task(world)] of ranks that run at once."""
    barrier, table, results = threading.Barrier(size), {}, [None] * size

    def run(rank):
        results[rank] = task(Thread(rank, size, barrier, table))
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize('size', [1, 2, 3])
def test_gather_gives_every_rank_all_items_in_order(size):
    # Lists of different lengths, one empty, with text beyond ASCII.
    items = [[{'name': 'é写' * rank, 'iou': 1 / 3, 'none': None}] * rank for rank in range(size)]
    got = on_ranks(size, lambda world: gather(items[world.rank], world))
    assert got == [[item for own in items for item in own]] * size


def test_rank_0_writes_the_gallery_of_all_ranks(tiny_world, tmp_path):
    cfg = tiny_world().load()
    samples = [Sample(f'{i}.jpg', None, '') for i in range(5)]

    def task(world):
        writer = PictureWriter(str(tmp_path), cfg, samples)
        for position in range(world.rank, 5, 2):
            writer(position, random_image(), None, {'student': torch.zeros(5, 4)})
        return writer.finish(world, 'Title', [], None, [f'problem of {world.rank}'])
    assert on_ranks(2, task) == [['problem of 0', 'problem of 1']] * 2
    page = (tmp_path / 'index.html').read_text(encoding='utf-8')
    assert re.findall('data-name="(.*?)"', page) == [f'{i}.jpg' for i in range(5)]
    assert 'problem of 0' in page and 'problem of 1' in page
    assert len(os.listdir(str(tmp_path / 'prediction'))) == 5
