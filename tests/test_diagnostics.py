"""Diagnostics: counts and fractions against loops over pixels, warnings, no device waits."""
import random

import pytest
import torch

from dssn.batch import Unlabeled
from dssn.data.lists import Sample
from dssn.methods import Terms
from dssn.pseudo_labels import PseudoLabels
from dssn.run import diagnostics
from dssn.run.diagnostics import (
    Watch,
    count,
    ground_truth_scalars,
    missing_text,
    selection_scalars,
)

NAMES = ['sky', 'road', 'car', 'sign']


def labels(b, height, width, seed=0, classes=(0, 1, 3)):
    """Labels of some classes, a part of them selected, a part of the pixels padding."""
    torch.manual_seed(seed)
    label = torch.tensor(classes)[torch.randint(len(classes), (b, height, width))]
    return PseudoLabels(label, torch.rand(label.shape) < 0.4, torch.rand(label.shape) < 0.8)


def pixels(*parts):
    """The values of all parts at each pixel."""
    return zip(*[part.flatten().tolist() for part in parts])


def slow_count(part):
    counts = [[0] * len(NAMES), [0] * len(NAMES)]
    for label, selected, valid in pixels(*part):
        if valid:
            counts[int(selected)][label] += 1
    return counts


EDGES = {
    'all padding': lambda part: part._replace(valid=torch.zeros_like(part.valid)),
    'no padding': lambda part: part._replace(valid=torch.ones_like(part.valid)),
    'nothing selected': lambda part: part._replace(selected=torch.zeros_like(part.selected)),
    'all selected': lambda part: part._replace(selected=torch.ones_like(part.selected)),
    'as sampled': lambda part: part,
}


@pytest.mark.parametrize('edge', EDGES)
@pytest.mark.parametrize('b, height, width', [(1, 7, 5), (3, 6, 9), (1, 1, 1)])
def test_counts_against_a_loop(b, height, width, edge):
    part = EDGES[edge](labels(b, height, width))
    found = count(part, len(NAMES))
    assert found.dtype == torch.int64 and found.tolist() == slow_count(part)


def slow_selection(part):
    found = {}
    known = [(label, selected) for label, selected, valid in pixels(*part) if valid]
    for c, name in enumerate(NAMES):
        own = [selected for label, selected in known if label == c]
        if known:
            found['pseudo/image/predicted/' + name] = len(own) / len(known)
        if own:
            found['pseudo/image/selected/' + name] = sum(own) / len(own)
    return found


@pytest.mark.parametrize('edge', EDGES)
def test_fractions_of_a_class_against_a_loop(edge):
    part = EDGES[edge](labels(2, 6, 9))
    found = selection_scalars('image', count(part, len(NAMES)).tolist(), NAMES)
    assert found == pytest.approx(slow_selection(part))
    assert 'pseudo/image/selected/car' not in found  # a class never predicted has no fraction


def unlabeled(b, height, width):
    images = torch.zeros(b, 3, height, width)
    box1 = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [2, 0, 4, 1]])[:b]
    box2 = torch.tensor([[0, 0, 0, 0], [0, 0, height, width], [1, 1, 1, 1]])[:b]
    return Unlabeled(images, images, images, torch.ones(b, height, width, dtype=torch.bool), box1,
                     box2, torch.arange(b))


def slow_correct(parts, u, truth, partner):
    """{tag: fraction}: correct labels of those with ground truth, per level."""
    tallies = {}
    for branch, (label, selected, valid) in parts.items():
        name = branch[:5] if branch.startswith('image') else branch
        boxes = {'image1': u.box1, 'image2': u.box2}.get(branch)
        for i in range(len(label)):
            for row in range(label.shape[1]):
                for column in range(label.shape[2]):
                    source = truth
                    if boxes is not None:
                        top, left, tall, wide = boxes[i].tolist()
                        if top <= row < top + tall and left <= column < left + wide:
                            source = partner
                    true, place = int(source[i, row, column]), (i, row, column)
                    if true == 255 or not valid[place]:
                        continue
                    tags = ['correct_all']
                    if selected[place]:
                        tags += ['correct_selected', 'correct/' + NAMES[int(label[place])]]
                    for tag in tags:
                        tally = tallies.setdefault(f'pseudo/{name}/{tag}', [0, 0])
                        tally[0] += true == int(label[place])
                        tally[1] += 1
    return {tag: right / every for tag, (right, every) in tallies.items()}


@pytest.mark.parametrize('b', [1, 3])
@pytest.mark.parametrize('edge', EDGES)
def test_agreement_with_ground_truth_against_a_loop(b, edge):
    parts = {branch: EDGES[edge](labels(b, 7, 8, seed))
             for seed, branch in enumerate(('feature', 'image1', 'image2'))}
    u = unlabeled(b, 7, 8)
    torch.manual_seed(9)
    truth, partner = [torch.randint(len(NAMES), (b, 7, 8)) for _ in range(2)]
    truth[torch.rand(truth.shape) < 0.3], partner[-1] = 255, 255  # the last partner has no mask
    found = ground_truth_scalars(parts, u, truth, partner, NAMES)
    assert found == pytest.approx(slow_correct(parts, u, truth, partner))
    nothing = torch.full_like(truth, 255)
    assert ground_truth_scalars(parts, u, nothing, nothing, NAMES) == {}


# ---- classes without labels

@pytest.mark.parametrize('counts, before, missing, words', [
    (([1, 1, 1, 1], [1, 1, 1, 1]), [], [], None),
    (([0, 1, 1, 1], [0, 1, 1, 1]), [], ['sky'], ['1 of 4', 'never predicted: sky;']),
    (([9, 1, 1, 0], [0, 1, 0, 0]), ['car'], ['sign', 'sky', 'car'],
     ['3 of 4', 'never predicted: sign;', 'predicted, but never selected: sky, car']),
    (([0, 1, 1, 1], [0, 1, 1, 1]), ['sky'], ['sky'], None),
    (([1, 1, 1, 1], [0, 1, 1, 1]), ['sky'], ['sky'], None),
    (([1, 1, 1, 1], [1, 1, 1, 1]), ['sky'], [], ['every class']),
])
def test_the_line_on_missing_classes(counts, before, missing, words):
    text, found = missing_text(3, [list(part) for part in counts], NAMES, before)
    assert found == missing
    if words is None:
        assert text is None
    else:
        assert 'epoch 3: ' in text and '\n' not in text
        assert all(word in text for word in words)
        assert text.startswith('warning: ') == bool(missing)
        assert ('labeled images' in text) == (not before)  # the advice comes once


def test_a_long_line_on_missing_classes_is_cut():
    names = [f'class {i}' for i in range(80)]
    text, found = missing_text(1, [[0] * 80, [0] * 80], names, [])
    assert found == names and 'and 68 more' in text and len(text) < 350


# ---- the watch itself

class Book:
    """A logbook that only remembers."""

    def __init__(self, total=100):
        self.lines, self.shown, self.pictures, self.total = [], [], [], total

    def is_due(self, step, every):
        return bool(every) and (step + 1) % every == 0

    def write(self, text):
        self.lines.append(text)

    def scalars(self, values, step):
        self.shown.append((step, values))

    def picture(self, tag, array, step):
        self.pictures.append((step, tag, array.shape))


def watch(tiny_world, unlabeled=(), **keys):
    from dssn.distributed import World
    cfg = tiny_world(nclass=4, classes=NAMES, **keys).load()
    book = Book()
    return Watch(cfg, World(), book, list(unlabeled)), book


def test_counts_are_of_the_steps_since_the_last_line(tiny_world):
    watched, book = watch(tiny_world, log_every=2, panel_every=0)
    parts = [labels(2, 5, 6, seed) for seed in range(8)]
    for step in range(4):
        terms = Terms({}, labels={'image1': parts[2 * step], 'image2': parts[2 * step + 1]})
        watched.step(0, step, terms, None)
    assert [step for step, _ in book.shown] == [1, 3]
    for i, (_, values) in enumerate(book.shown):
        four = PseudoLabels(*[torch.cat(part) for part in zip(*parts[4 * i:4 * i + 4])])
        assert values == pytest.approx(slow_selection(four))


def test_an_epochs_counts_do_not_reach_into_the_next(tiny_world):
    watched, book = watch(tiny_world, log_every=3, panel_every=0)

    def epoch(number, classes):
        part = EDGES['all selected'](labels(1, 9, 9, classes=classes))
        watched.step(number - 1, number, Terms({}, labels={'image1': part}), None)
        watched.end_epoch(number)
    epoch(1, [0, 1, 2, 3])
    assert book.lines == []
    epoch(2, [0, 2])
    epoch(3, [0, 2])
    assert len(book.lines) == 1 and 'epoch 2: 2 of 4' in book.lines[0]
    assert 'road, sign' in book.lines[0]
    epoch(4, [0, 1, 2, 3])
    assert len(book.lines) == 2 and 'every class' in book.lines[1]


def test_without_labels_of_the_image_level_nothing_is_logged(tiny_world):
    watched, book = watch(tiny_world)
    watched.end_epoch(1)
    watched.step(1, 5, Terms({}, labels={'feature': labels(1, 4, 4)}), None)
    watched.end_epoch(2)
    watched.step(2, 9, Terms({}), None)
    watched.end_epoch(3)
    assert book.lines == []


def test_an_ordinary_step_reads_nothing_from_the_device(tiny_world, monkeypatch):
    watched, book = watch(tiny_world, log_every=3, panel_every=7)
    part = labels(2, 5, 6)
    reads = []
    for name in ('item', 'tolist', 'cpu', 'numpy', 'to', 'nonzero', '__bool__', '__int__',
                 '__float__', '__index__', '__array__', 'bincount', 'unique'):
        real = getattr(torch.Tensor, name)

        def read(self, *args, name=name, real=real, **kwargs):
            reads.append(name)
            return real(self, *args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, read)
    for step in (0, 1, 3, 4):
        watched.step(0, step, Terms({}, labels={'feature': part, 'image1': part, 'image2': part}),
                     None)
    assert reads == [] and book.shown == []
    watched.step(0, 5, Terms({}, labels={'feature': part}), None)
    assert set(reads) == {'tolist'} and len(book.shown) == 2


def test_other_ranks_look_at_nothing(tiny_world):
    watched, book = watch(tiny_world, log_every=1, panel_every=1)
    watched.world.rank = 1
    assert not watched.has_panels(0)
    watched.step(0, 0, Terms({}, labels={'image1': labels(1, 4, 4)}), None)
    assert book.shown == book.pictures == []


def test_no_more_than_a_few_bad_masks_are_named(tiny_world, monkeypatch):
    from dssn.errors import UserError
    samples = [Sample(f'i{i}.png', 'm.png', f'list line {i}') for i in range(20)]
    watched, book = watch(tiny_world, samples, watch_truth=True)

    def weak_ground_truth(cfg, samples, index, number, role, palettes):
        raise UserError(f'{samples[index].place}: damaged')
    monkeypatch.setattr(diagnostics, 'weak_ground_truth', weak_ground_truth)
    order = random.Random(0)
    for epoch in range(10):
        u = unlabeled(3, 4, 4)._replace(index=torch.tensor(order.sample(range(20), 3)))
        assert bool((watched.ground_truth(u, epoch, 10) == 255).all())
    assert len(book.lines) == len({line.split(': damaged')[0] for line in book.lines}) == 5
    assert ['not named' in line for line in book.lines] == [False] * 4 + [True]


@pytest.mark.parametrize('views, tag', [
    (['weak', 'strong1', 'strong2'], 'panels/unlabeled'), (['strong1'], 'panels/unlabeled'),
    (['weak'], 'panels/unlabeled'), (['labeled'], 'panels/labeled')])
def test_panels_of_methods_that_predict_some_of_the_views(tiny_world, views, tag):
    from dssn.batch import to
    from dssn.tools.bench.step import random_batch
    watched, book = watch(tiny_world, panel_every=1, log_every=100)
    batch = to(random_batch(watched.cfg, True), 'cpu')
    side = watched.cfg.crop_size
    terms = Terms({}, predictions={view: labels(2, side, side).label for view in views})
    watched.step(0, 0, terms, batch)
    assert [found[:2] for found in book.pictures] == [(0, tag)]
