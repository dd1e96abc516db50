"""Oracles and the control: whole steps against slow loops, files that are read, resumed runs.

B labeled and B unlabeled images, C = 4 classes, H x W pixels; steps in double precision.
"""
import copy
import itertools
import json
import os

import pytest
import torch
from commands import report
from PIL import Image
from test_datasets import Coloured
from test_engine import STEPS, assert_equal, assert_same_run, interrupted, read, train
from test_experiments import ROOT, here, planned, write  # noqa: F401, here is a fixture
from test_losses import slow_contrast, slow_masked_cross_entropy
from test_methods import (
    CE,
    CLASSES,
    Recorder,
    close,
    config as dssn_config,
    network,
    random_batch,
    slow_labeled_loss,
    slow_labels,
    slow_paste,
    slow_share,
    slow_student,
    slow_teacher,
)

from dssn import config, ema, methods
from dssn.batch import Batch, Unlabeled, UnlabeledWithMasks, to
from dssn.data.check import quick
from dssn.data.datasets import PARTNER, UNLABELED, RowIndices, TrainSet, weak_ground_truth
from dssn.data.loaders import Schedule, TrainLoader
from dssn.distributed import World
from dssn.engine import start
from dssn.errors import UserError
from dssn.keys import StrongViewsConfig
from dssn.methods.dssn import DSSN
from dssn.methods.fixmatch import FixMatch
from dssn.methods.unimatch import UniMatch
from dssn.tools.experiments import grid
from dssn.tools.experiments.oracles import (
    ORACLES,
    OracleLabels,
    OracleSelection,
    StrongSupervised,
    StrongSupervisedConfig,
)
from dssn.update import split

KINDS = {'labels': OracleLabels, 'selection': OracleSelection, 'both': OracleLabels,
         'correct': OracleSelection, 'control': StrongSupervised}


def make_config(kind, **changes):
    if kind == 'control':
        return StrongSupervisedConfig(nclass=CLASSES, backbone='resnet10', base_channels=4,
                                      decoder_channels=8, criterion=CE, **changes)
    every_pixel = kind in ('both', 'correct')
    return dssn_config(**(dict(changes, selection='none') if every_pixel else changes))


def batch_with_masks(b, height, width, n=None):
    """x, u and v of `random_batch`, with masks in which some pixels and all padding are 255.

    There are n labeled images, b where it is left out.
    """
    x, u, v = random_batch(b, height, width)
    x = x if n is None else random_batch(n, height, width)[0]

    def masked(part):
        label = torch.randint(CLASSES, part.valid.shape)
        label[torch.rand(label.shape) < 0.25] = 255
        label[~part.valid] = 255
        return UnlabeledWithMasks(*part, label)
    return x, masked(u), masked(v)


# ---- the slow step

def slow_corrected(kind, label, selected, mask):
    """(label, selected) of an oracle, pixel by pixel."""
    label, selected = label.clone(), selected.clone()
    for place in itertools.product(*map(range, mask.shape)):
        true, guess = mask[place].item(), label[place].item()
        if kind in ('selection', 'correct'):
            selected[place] = (kind == 'correct' or bool(selected[place])) and guess == true
        elif true == 255:
            selected[place] = False
        else:
            label[place] = true
            if kind in ('both', 'control'):
                selected[place] = True
    return label, selected


def slow_step(kind, student, teacher, x, u, v, cfg, warm_up):
    """(losses, fractions), floats."""
    b = len(x.image)
    torch.manual_seed(7)
    clean, fp1, fp2, s1, s2 = slow_student(student, x, u, v)
    weak, partner = (None, None) if warm_up else slow_teacher(teacher, u, v)
    # The control has no rule of selection: every pixel counts.
    rule = dssn_config(selection='none') if kind == 'control' else cfg
    label, selected = slow_labels(clean[b:], rule)
    label, selected = slow_corrected(kind, label, selected, u.label)
    losses = {'supervised': slow_labeled_loss(clean[:b], x.label, cfg),
              'contrast_image': slow_contrast(s1, s2),
              'contrast_feature': slow_contrast(fp1[b:], fp2[b:])}
    shares = {'selected_feature': slow_share(selected, u.valid)}
    for i, view in ((1, fp1), (2, fp2)):
        losses[f'feature{i}'] = slow_masked_cross_entropy(view[b:], label, selected, u.valid)
    if not warm_up:
        for i, strong, boxes in ((1, s1, u.box1), (2, s2, u.box2)):
            label, selected = slow_labels(slow_paste(weak, partner, boxes), rule)
            mask, valid = slow_paste(u.label, v.label, boxes), slow_paste(u.valid, v.valid, boxes)
            label, selected = slow_corrected(kind, label, selected, mask)
            losses[f'image{i}'] = slow_masked_cross_entropy(strong, label, selected, valid)
            shares[f'selected_image{i}'] = slow_share(selected, valid)
        shares['agreement'] = slow_share(clean[b:].argmax(1) == weak.argmax(1), u.valid)
    return losses, shares


def slow_total(t, labeled_weight):
    pseudo = sum(t.get(name, 0.0) for name in ('image1', 'image2', 'feature1', 'feature2')) / 4
    contrast = (t['contrast_image'] + t['contrast_feature']) / 100
    return labeled_weight * t['supervised'] + (pseudo + contrast) / 2


@pytest.mark.parametrize('epoch, step, n, b, labeled_weight', [
    (0, 0, 2, 2, 0.5), (0, 3, 1, 1, 0.5), (2, 9, 3, 2, 1.0)])
@pytest.mark.parametrize('kind', KINDS)
def test_a_whole_step(kind, epoch, step, n, b, labeled_weight):
    cfg = make_config(kind, labeled_weight=labeled_weight)
    student, teacher = network(1), ema.make_teacher(network(2))
    x, u, v = batch_with_masks(b, 33, 41, n)
    slow = copy.deepcopy(student), copy.deepcopy(teacher)
    method = KINDS[kind](cfg)
    method.start_step(epoch, step, teacher)
    torch.manual_seed(7)
    terms = method(student, teacher, x, u, v)
    slow[1].train(epoch == 0)
    losses, shares = slow_step(kind, *slow, x, u, v, cfg, warm_up=step == 0)
    close(terms.losses, losses)
    close(terms.fractions, shares, rel=1e-6)
    assert method.total(terms.losses).item() == pytest.approx(
        slow_total(losses, labeled_weight), rel=1e-9)
    assert all(0.02 < value < 0.98 for value in shares.values()), shares
    # The running statistics are updated as in DSSN's step.
    for model, expected in zip((student, teacher), slow):
        if model is student or step:
            for one, two in zip(model.state_dict().values(), expected.state_dict().values()):
                assert (one - two).abs().max() <= 1e-9


def test_the_teachers_labels_of_the_feature_level_are_corrected_too():
    cfg = dssn_config(feature_labels='teacher')
    x, u, v = batch_with_masks(2, 7, 9)
    for kind in ('labels', 'selection'):
        student, teacher = Recorder(1), ema.make_teacher(Recorder(2))
        method = KINDS[kind](cfg)
        method.start_step(1, 9, teacher)
        found = method(student, teacher, x, u, v).labels['feature']
        label, selected = slow_corrected(kind, *slow_labels(teacher(u.weak), cfg), u.label)
        assert torch.equal(found.label, label) and torch.equal(found.selected, selected)


def test_the_control_of_fixmatch_is_its_loss_with_ground_truth():
    """L = 1/2 (L_x + L_s): one strong view, no perturbed features."""
    cfg = make_config('control', image_views=1, feature_views=0)
    student, teacher = Recorder(1), ema.make_teacher(Recorder(2))
    x, u, v = batch_with_masks(2, 7, 9)
    method = StrongSupervised(cfg)
    method.start_step(1, 9, teacher)
    terms = method(student, teacher, x, u, v)
    mask, valid = slow_paste(u.label, v.label, u.box1), slow_paste(u.valid, v.valid, u.box1)
    strong = Recorder(1)(slow_paste(u.strong1, v.strong1, u.box1))
    expected = {'supervised': slow_labeled_loss(Recorder(1)(x.image), x.label, cfg),
                'image1': slow_masked_cross_entropy(
                    strong, mask.masked_fill(mask == 255, 0), mask != 255, valid)}
    close(terms.losses, expected)
    assert method.total(terms.losses).item() == pytest.approx(
        (expected['supervised'] + expected['image1']) / 2, rel=1e-9)


@pytest.mark.parametrize('kind', KINDS)
def test_masks_that_are_255_everywhere_give_no_gradient(kind):
    x, u, v = batch_with_masks(2, 33, 33)
    u, v = [part._replace(label=torch.full_like(part.label, 255)) for part in (u, v)]
    student, teacher = network(1), ema.make_teacher(network(2))
    method = KINDS[kind](make_config(kind, contrast=False))
    method.start_step(1, 9, teacher)
    losses = method(student, teacher, x, u, v).losses
    pseudo = {name: value for name, value in losses.items() if name != 'supervised'}
    assert set(pseudo) == {'image1', 'image2', 'feature1', 'feature2'}
    assert all(value.item() == 0 for value in pseudo.values())
    sum(pseudo.values()).backward()
    assert all(bool((parameter.grad == 0).all()) for parameter in student.parameters())


# ---- the weight of the labeled loss

@pytest.mark.parametrize('method, terms', [
    (DSSN, ('supervised', 'image1', 'image2', 'feature1', 'feature2', 'contrast_image',
            'contrast_feature')),
    (FixMatch, ('supervised', 'image1')),
    (UniMatch, ('supervised', 'image1', 'image2', 'feature'))])
def test_labeled_weight_is_the_factor_of_the_labeled_loss_alone(method, terms):
    cls = StrongViewsConfig if method is not DSSN else dssn_config
    published, raised = [method(cls(nclass=CLASSES, criterion=CE, **keys))
                         for keys in ({}, {'labeled_weight': 1.0})]
    for name in terms:
        losses = {key: torch.tensor(float(key == name)) for key in terms}
        assert raised.total(losses).item() == (
            1.0 if name == 'supervised' else published.total(losses).item())
        assert name != 'supervised' or published.total(losses).item() == 0.5


# ---- files that are read

@pytest.fixture
def masked_world(tiny_world):
    """A tiny world with 5 labeled images and 9 unlabeled ones, all with masks."""
    def make(**keys):
        world = tiny_world(n_labeled=14, **keys)
        with open(world.labeled) as file:
            lines = file.readlines()
        for path, part in ((world.labeled, lines[:5]), (world.unlabeled, lines[5:])):
            with open(path, 'w') as file:
                file.writelines(part)
        return world
    return make


@pytest.mark.parametrize('crop', [33, 65])
def test_masks_are_cut_as_the_views_and_mixed_by_the_same_boxes(tiny_world, tmp_path, crop):
    world = Coloured(tmp_path, [(60, 44), (31, 80), (50, 50)], [True, True, True])
    cfg = tiny_world().load(data_root=str(tmp_path), crop_size=crop)
    data = TrainSet(cfg, world.samples, world.samples, with_masks=True)
    without = TrainSet(cfg, world.samples, world.samples)
    clear = boxes = 0
    for number, (index, partner) in itertools.product(range(6), [(0, 1), (1, 2), (2, 2)]):
        draw = RowIndices(0, 0, index, partner, number)
        x, u, v = data[draw]
        plain = without[draw]
        for part, other, position, role in ((u, plain.unlabeled, index, UNLABELED),
                                            (v, plain.partner, partner, PARTNER)):
            assert isinstance(part, UnlabeledWithMasks) and type(other) is Unlabeled
            assert all(torch.equal(one, two) for one, two in zip(part, other))
            label = weak_ground_truth(cfg, world.samples, position, number, role)
            assert torch.equal(part.label, label)
            assert part.label.dtype == torch.uint8
            assert torch.equal(part.label == 255, ~part.valid)
        for box in (u.box1, u.box2):
            # Pixels of a pure colour show which class the mixed image has there.
            image, label = [slow_paste(one[None], two[None], box[None])[0]
                            for one, two in ((u.weak, v.weak), (u.label, v.label))]
            pixels = image.permute(1, 2, 0).numpy()
            for c, colour in enumerate(world.colours):
                pure = torch.from_numpy((pixels == colour).all(2)) & (label != 255)
                assert bool((label[pure] == c).all())
                clear += int(pure.sum())
            boxes += int(box[2] > 0)
    assert clear > 0.5 * 36 * crop * crop * 0.5 and boxes > 5


def test_masks_are_moved_and_split_with_their_batch():
    pixels = torch.zeros(2, 3, 5, 6, dtype=torch.uint8)
    x, u, v = [part._replace(label=part.label.to(torch.uint8), **{name: pixels})
               for part, name in zip(batch_with_masks(2, 5, 6), ('image', 'weak', 'weak'))]
    moved = to(Batch(x, u, v), torch.device('cpu'))
    assert moved.unlabeled.label.dtype == torch.int64
    assert torch.equal(moved.unlabeled.label, u.label.long())
    halves = split(moved, 2)
    assert [torch.equal(half.partner.label, v.label[i:i + 1].long())
            for i, half in enumerate(halves)] == [True, True]


def test_a_list_without_masks_is_named_by_its_line(masked_world):
    world = masked_world(method='oracle_labels')
    with open(world.unlabeled) as file:
        lines = file.readlines()
    lines[3] = lines[3].split()[0] + '\n'
    with open(world.unlabeled, 'w') as file:
        file.writelines(lines)
    with pytest.raises(UserError) as error:
        start(world.load(), World())
    text = str(error.value)
    assert text.startswith(f'{world.unlabeled} line 4: ') and 'oracle_labels' in text
    assert 'names no mask' in text and 'write `image mask`' in text and '\n' not in text


@pytest.mark.parametrize('method, reads', [('oracle_labels', True), ('oracle_selection', True),
                                           ('DSSN', False), ('fixmatch', False)])
@pytest.mark.parametrize('fault', ['missing', 'wrong value'])
def test_masks_are_checked_before_training_if_they_are_read(masked_world, monkeypatch, method,
                                                                 reads, fault):
    world = masked_world(method=method)
    with open(world.unlabeled) as file:
        name = file.readlines()[2].split()[1]
    path = os.path.join(world.root, name)
    if fault == 'missing':
        monkeypatch.setattr(quick, 'MASKS_PER_LIST', 0)  # found without opening the files
        os.remove(path)
    else:
        with Image.open(path) as mask:
            mask.point([7] * 256).save(path)
    if not reads:
        start(world.load(), World()).folder.leave()
        return
    with pytest.raises(UserError, match=rf'line 3: .*{name}'):
        start(world.load(), World())


def test_an_image_whose_mask_is_bad_is_replaced(masked_world):
    world = masked_world(method='oracle_labels')
    cfg = world.load()
    from dssn.data.lists import read_list
    labeled, unlabeled = read_list(world.labeled), read_list(world.unlabeled)
    with open(os.path.join(world.root, unlabeled[2].mask), 'wb') as file:
        file.write(b'no image')
    found = TrainSet(cfg, labeled, unlabeled, True)[RowIndices(0, 0, 2, 4, 0)]
    assert found.row.unlabeled.index == 3 and unlabeled[2].image == found.files[0][0]
    assert torch.equal(found.row.unlabeled.label, weak_ground_truth(cfg, unlabeled, 3, 0))
    # A method that reads no mask keeps the image.
    assert TrainSet(cfg, labeled, unlabeled)[RowIndices(0, 0, 2, 4, 0)].unlabeled.index == 2


def spoil_masks(world):
    """Give every pixel of the unlabeled list's masks another class; returns their paths."""
    with open(world.unlabeled) as file:
        paths = [os.path.join(world.root, line.split()[1]) for line in file]
    for path in paths:
        with Image.open(path) as mask:
            wrong = mask.point([(value + 1) % 3 for value in range(256)])
        wrong.save(path)
    return paths


@pytest.mark.parametrize('method', sorted(methods.all_methods()))
def test_no_method_reads_a_mask_of_the_unlabeled_list(masked_world, method):
    world = masked_world(method=method, epochs=1)
    folders = [world.save_path + name for name in ('right', 'wrong', 'none')]
    train(world.load(save_path=folders[0]))
    masks = spoil_masks(world)
    train(world.load(save_path=folders[1]))
    for path in masks:
        os.remove(path)
    train(world.load(save_path=folders[2]))
    for folder in folders[1:]:
        for key in ('model', 'teacher', 'optimizer'):
            assert_equal(read(folders[0]).get(key), read(folder).get(key), key)


@pytest.mark.parametrize('method', ['oracle_labels', 'oracle_selection'])
def test_an_oracle_does_read_them(masked_world, method):
    """Shows that the previous test would detect a method that reads masks."""
    world = masked_world(method=method, epochs=1, gate=0.3, ratio=0.3)
    folders = [world.save_path + name for name in ('right', 'wrong')]
    train(world.load(save_path=folders[0]))
    spoil_masks(world)
    train(world.load(save_path=folders[1]))
    assert not all(torch.equal(one, two) for one, two in zip(
        read(folders[0])['model'].values(), read(folders[1])['model'].values()))


def test_the_control_reads_the_labeled_list_alone(masked_world):
    world = masked_world(method='supervised_strong_views', epoch_steps=4)
    os.remove(world.unlabeled)
    opened = set()

    def note(batch):
        for part in batch:
            opened.update(part.index.tolist())
    cfg = world.load()
    run = start(cfg, World())
    for batch in run.loader.batches(0):
        note(batch)
    assert opened == set(range(5)) and run.loader.unlabeled is run.loader.labeled
    run.fit()
    with open(os.path.join(cfg.save_path, 'metrics.jsonl')) as file:
        assert set(json.loads(file.readline())['lists']) == {'labeled', 'val'}
    assert 'labeled, for strong views: images/' in run.loader.samples(0, 0)


# ---- the order of the control

def slow_places(n, size, epoch, step, steps, rows):
    """(place in the order, pass) of each row: the list is dealt out without end."""
    first = (epoch * steps + step) * size
    return [((first + row) % n, (first + row) // n) for row in rows]


@pytest.mark.parametrize('partner', ['other', 'same'])
@pytest.mark.parametrize('world, labeled', [(1, 2), (2, 3)])
def test_the_control_deals_its_list_out_twice(tiny_world, partner, world, labeled):
    cfg = tiny_world(method='supervised_strong_views', epoch_steps=7, cutmix_partner=partner,
                     labeled_batch_size=labeled).load()
    n = 5
    schedules = [Schedule(cfg, n, n, rank, world, from_labeled=True) for rank in range(world)]
    plain = Schedule(tiny_world(method='supervised', epoch_steps=7, labeled_batch_size=labeled)
                     .load(), n, None, 0, world)
    seen = {}
    for epoch, step in itertools.product(range(2), range(7)):
        draws = [draw for schedule in schedules for draw in schedule.batch(epoch, step)]
        # Labeled images come as in supervised training.
        assert [(draw.labeled, draw.labeled_pass) for draw in draws if draw.labeled is not None] \
            == [(draw.labeled, draw.labeled_pass) for draw in plain.global_batch(epoch, step)]
        strong = [draw for draw in draws if draw.unlabeled is not None]
        places = slow_places(n, 2 * world, epoch, step, 7, range(2 * world))
        assert [draw.unlabeled_pass for draw in strong] == [number for _, number in places]
        for draw in strong:
            seen.setdefault(draw.unlabeled_pass, []).append(draw)
            assert (draw.partner == draw.unlabeled) == (partner == 'same')
    whole = [draws for number, draws in seen.items() if number < max(seen)]
    assert len(whole) >= 5
    for draws in whole:
        assert sorted(draw.unlabeled for draw in draws) == list(range(n))
        assert sorted(draw.partner for draw in draws) == list(range(n))
    assert len({tuple(draw.unlabeled for draw in draws) for draws in whole}) > 1


# ---- runs

RUNS = {'oracle_labels': {}, 'oracle_selection': {'gate': 0.3, 'ratio': 0.3},
        'supervised_strong_views': {'epoch_steps': STEPS, 'labeled_batch_size': 3}}


@pytest.mark.parametrize('method', RUNS)
def test_a_resumed_run_gives_the_same_result(masked_world, method):
    world = masked_world(method=method, log_every=2, **RUNS[method])
    whole, stopped = world.save_path + 'whole', world.save_path + 'stopped'
    train(world.load(save_path=whole))
    interrupted(world.load(save_path=stopped), STEPS + 2)
    assert read(stopped)['epoch'] == 1
    train(world.load(save_path=stopped))
    assert_same_run(whole, stopped)


@pytest.mark.parametrize('method, words', [
    ('oracle_labels', ['an oracle, not a method', 'trains on masks of the unlabeled list']),
    ('oracle_selection', ['an oracle, not a method', 'it trains on masks']),
    ('supervised_strong_views', ['a control', 'its masks'])])
def test_log_results_and_report_name_it(masked_world, capsys, method, words):
    world = masked_world(method=method, epochs=1, **RUNS[method])
    train(world.load())
    with open(os.path.join(world.save_path, 'train.log')) as file:
        line = next(line for line in file.readlines()[:8] if method in line and words[0] in line)
    assert all(word in line for word in words)
    capsys.readouterr()
    assert report([world.save_path]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.split(' | ')[3] == method


# ---- names

def test_oracles_are_no_methods_but_are_found_by_name():
    assert not set(ORACLES) & set(methods.all_methods())
    assert set(ORACLES) == {'oracle_labels', 'oracle_selection', 'supervised_strong_views'}
    for name, oracle in ORACLES.items():
        assert methods.find(name, 'here') is oracle
        assert methods.masks_of(oracle) in ('labeled', 'unlabeled')
        assert ('oracle' in name) == (methods.masks_of(oracle) == 'unlabeled')
    assert all(methods.masks_of(method) is None for method in methods.all_methods().values())


@pytest.mark.parametrize('name', ['selection', 'gate', 'ratio', 'top', 'conf_thresh',
                                  'feature_labels', 'watch_truth'])
def test_the_control_has_no_key_about_pseudo_labels(tiny_world, name):
    world = tiny_world(method='supervised_strong_views')
    with pytest.raises(UserError, match=f"key '{name}' has no effect"):
        config.load(world.config_path, None, [f'{name}=0.5' if name in (
            'gate', 'ratio', 'top', 'conf_thresh') else '{}={}'.format(name, {
                'selection': 'none', 'feature_labels': 'teacher', 'watch_truth': 'true'}[name])])
    with pytest.raises(UserError, match='image_views = 0 and feature_views = 0'):
        world.load(image_views=0, feature_views=0)


def test_loader_of_the_control_gives_masks(masked_world):
    world = masked_world(method='supervised_strong_views', epoch_steps=3, labeled_batch_size=3)
    from dssn.data.lists import read_list
    loader = TrainLoader(world.load(), read_list(world.labeled), None, masks_of='labeled')
    batches = list(loader.batches(0))
    assert len(batches) == 3
    for batch in batches:
        assert len(batch.labeled.image) == 3
        assert len(batch.unlabeled.label) == len(batch.partner.label) == 2


# ---- in a grid

VARIANTS = {'supervised': {'method': 'supervised'},
            'control': {'method': 'supervised_strong_views'},
            'DSSN': {}, 'oracle_both': {'method': 'oracle_labels', 'selection': 'none'},
            'oracle_selection': {'method': 'oracle_selection'}}


def test_grid_gives_the_control_the_steps_and_the_batch_of_the_methods(here):  # noqa: F811
    """8 unlabeled images in batches of 2; one pass over the 5 labeled ones would be 2 steps."""
    here()
    for settings in ({'epochs': 3}, {'epochs': 6, 'epoch_steps': 2},
                     {'epochs': 3, 'labeled_batch_size': 4}):
        write(variants=VARIANTS, settings=settings)
        for run in planned():
            method = methods.find(run.cfg.method, 'here')
            listed = {'supervised': None, 'control': 5}.get(run.variant, 8)
            schedule = Schedule(run.cfg, 5, listed, from_labeled=run.variant == 'control')
            assert run.cfg.epochs * schedule.steps_per_epoch == run.steps == 12
            twice = run.variant == 'supervised' and 'labeled_batch_size' not in settings
            assert run.cfg.batch_size == (4 if twice else 2)
            assert run.folder.split('/')[2] == method.name == run.cfg.method


@pytest.mark.parametrize('length, epochs', [('15/7', 30), ('1/2', 7), (0.5, 7), (2, 28)])
def test_a_length_may_be_a_fraction(here, length, epochs):  # noqa: F811
    here(settings={'epochs': 14}, variants={'DSSN': {}, 'long': {'length': length}})
    assert [(run.cfg.epochs, run.steps)
            for run in planned()[:2]] == [(14, 56), (epochs, 4 * epochs)]


@pytest.mark.parametrize('length', ['15/0', '0/7', '15 / 7', '-1/2', '9/8/7', 'x', '2001/2', '1/9'])
def test_a_length_that_is_no_fraction_of_the_epochs(here, length):  # noqa: F811
    here(settings={'epochs': 14}, variants={'long': {'length': length}})
    with pytest.raises(UserError, match='experiments/mine.yaml: .*length'):
        planned()


@pytest.mark.parametrize('name', ['ccp', 'camvid', 'idd_lite'])
def test_shipped_experiments_share_their_runs(monkeypatch, name):
    """The second experiment's supervised, control and fully labeled runs are those of the first."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(grid, 'read_list', lambda path, masks=True: list(range(400)))
    room, oracles = [grid.read_experiment(f'experiments/{part}_{name}.yaml')
                     for part in ('room', 'oracles')]
    assert oracles.after == room.path
    first, second = [{run.folder: run for run in grid.plan_runs(experiment)}
                     for experiment in (room, oracles)]
    shared = set(first) & set(second)
    assert {first[folder].variant for folder in shared} == {
        'supervised', 'control', 'all_labeled'}
    assert all(first[folder].cfg == second[folder].cfg for folder in shared)
    runs = {run.variant: run for run in second.values()}
    assert {name: run.steps for name, run in runs.items()} == {
        **dict.fromkeys(runs, 700), 'DSSN_from_supervised': 350, 'supervised_further': 350,
        'supervised_long': 1500, 'control_long': 1500, 'DSSN_long': 1500}
    supervised = next(folder for folder in shared if first[folder].variant == 'supervised')
    for run in runs.values():
        assert run.cfg.labeled_images == 8
        assert run.cfg.unlabeled_images == (0 if run.cfg.method == 'supervised' else 4)
        assert run.cfg.unlabeled_id_path.endswith('/unlabeled_with_masks.txt')
        assert getattr(run.cfg, 'labeled_weight', 1) == 1
        start = run.variant in ('DSSN_from_supervised', 'supervised_further')
        assert run.cfg.init_from == (supervised + '/latest.pth' if start else '')
