"""Pictures: colours, the panel, and the files of an evaluation."""
import os

import numpy as np
import torch
from PIL import Image

from dssn.data.lists import Sample, read_list
from dssn.distributed import World
from dssn.evaluation import evaluate
from dssn.pictures import PictureWriter, colour, side_by_side

COLOURS = [(1, 2, 3), (40, 50, 60), (7, 8, 9)]


def test_each_class_has_its_colour_and_ignored_pixels_have_none_of_them():
    got = colour(torch.tensor([[0, 2], [1, 255]]), COLOURS)
    assert got.dtype == np.uint8
    assert got[:, :, :][0].tolist() == [[1, 2, 3], [7, 8, 9]]
    assert got[1, 0].tolist() == [40, 50, 60]
    assert tuple(got[1, 1]) == (255, 255, 255)


def test_panel_is_image_truth_prediction():
    image = torch.randint(256, (3, 5, 4), dtype=torch.uint8)
    label, prediction = torch.zeros(5, 4).long(), torch.full((5, 4), 2)
    panel = np.array(side_by_side(image, label, prediction, COLOURS, gap=3))
    assert panel.shape == (5, 3 * 4 + 2 * 3, 3)
    assert np.array_equal(panel[:, :4], image.permute(1, 2, 0).numpy())
    assert (panel[:, 7:11] == (1, 2, 3)).all() and (panel[:, 14:] == (7, 8, 9)).all()
    assert (panel[:, 4:7] == 255).all() and (panel[:, 11:14] == 255).all()


def test_an_evaluation_writes_a_picture_of_every_image(tiny_world, tmp_path):
    cfg = tiny_world(n_val=2).load()
    samples = read_list(cfg.val_id_path)
    folder = tmp_path / 'new' / 'pictures'

    class Second(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, *x.shape[2:])
    writer = PictureWriter(str(folder), cfg, samples)
    evaluate({'student': Second()}, cfg, samples, World(), writer)
    stems = [os.path.splitext(os.path.basename(sample.image))[0] for sample in samples]
    assert sorted(os.listdir(str(folder))) == ['{:05d}_{}.png'.format(i, stem)
                                               for i, stem in enumerate(stems)]
    panel = np.array(Image.open(str(folder / '00000_{}.png'.format(stems[0]))))
    image = np.array(Image.open(os.path.join(cfg.data_root, samples[0].image)).convert('RGB'))
    width = image.shape[1]
    assert np.array_equal(panel[:, :width], image)
    assert len(np.unique(panel[:, -width:].reshape(-1, 3), axis=0)) == 1


def test_images_of_one_name_in_two_folders_get_two_pictures(tiny_world, tmp_path):
    samples = [Sample('a/x.jpg', 'a/x.png', ''), Sample('b/x.jpg', 'b/x.png', '')]
    writer = PictureWriter(str(tmp_path / 'p'), tiny_world().load(), samples)
    for position in (0, 1):
        label = torch.zeros(2, 2).long()
        writer(position, torch.zeros(3, 2, 2, dtype=torch.uint8), label, {'student': label})
    assert len(os.listdir(str(tmp_path / 'p'))) == 2
