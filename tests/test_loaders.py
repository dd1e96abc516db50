"""The order of samples over epochs, ranks and resumed runs, and the loaders that follow it."""
import gc
import multiprocessing
import os
import time

import pytest
import torch

from dssn.batch import Batch
from dssn.data import loaders
from dssn.data.datasets import RowIndices
from dssn.data.lists import read_list
from dssn.data.loaders import Schedule, TrainLoader, count_workers, eval_loader, read_ahead
from dssn.data.views import generator
from dssn.errors import UserError
from dssn.methods.dssn import DSSNConfig
from dssn.methods.supervised import SupervisedConfig


def schedule(n_labeled, n_unlabeled, batch_size=2, rank=0, world=1, seed=0, partner='other',
             labeled=0, epoch_steps=0):
    cfg = DSSNConfig(seed=seed, batch_size=batch_size, labeled_batch_size=labeled,
                     cutmix_partner=partner, epoch_steps=epoch_steps,
                     labeled_id_path='the/labeled.txt', unlabeled_id_path='the/unlabeled.txt')
    return Schedule(cfg, n_labeled, n_unlabeled, rank, world)


def rows(plan, epoch):
    """All rows of an epoch on one rank."""
    return [row for step in range(plan.steps_per_epoch) for row in plan.batch(epoch, step)]


# The schedule.

@pytest.mark.parametrize('world, batch_size, n', [(1, 2, 9), (2, 2, 9), (3, 1, 10), (3, 2, 20),
                                                  (2, 4, 8), (1, 1, 1)])
def test_an_epoch_is_one_pass_over_the_unlabeled_list(world, batch_size, n):
    for epoch in range(4):
        plans = [schedule(5, n, batch_size, rank, world) for rank in range(world)]
        seen = [row.unlabeled for plan in plans for row in rows(plan, epoch)]
        # No sample twice over all ranks; only the incomplete last batch is dropped.
        assert len(seen) == len(set(seen)) == n - n % (batch_size * world)
        assert set(seen) <= set(range(n))
        assert {plan.steps_per_epoch for plan in plans} == {n // (batch_size * world)}
        assert all(row.unlabeled_pass == epoch for plan in plans for row in rows(plan, epoch))
        assert all(len(plan.batch(epoch, 0)) == batch_size for plan in plans)


@pytest.mark.parametrize('world, n, steps', [(1, 9, 3), (2, 9, 1), (1, 9, 4)])
def test_epoch_steps_takes_the_first_part_of_a_pass(world, n, steps):
    def cfg(epoch_steps):
        return DSSNConfig(batch_size=2, epoch_steps=epoch_steps, labeled_id_path='l',
                          unlabeled_id_path='u')
    for rank in range(world):
        short, whole = [Schedule(cfg(number), 5, n, rank, world) for number in (steps, 0)]
        assert short.steps_per_epoch == steps
        for epoch in range(5):
            assert [row.unlabeled for row in rows(short, epoch)] == \
                [row.unlabeled for row in rows(whole, epoch)][:2 * steps]
    # In the labeled list an epoch continues where the last one stopped.
    plans = [Schedule(cfg(steps), 5, n, rank, world) for rank in range(world)]
    samples = [row.labeled for epoch in range(20) for step in range(steps) for plan in plans
               for row in plan.batch(epoch, step)]
    assert all(sorted(samples[i:i + 5]) == list(range(5)) for i in range(0, len(samples) - 4, 5))


def test_an_epoch_is_at_most_one_pass_over_the_unlabeled_list():
    cfg = DSSNConfig(batch_size=2, epoch_steps=5, labeled_id_path='l.txt',
                     unlabeled_id_path='u.txt')
    with pytest.raises(UserError, match=r'^u.txt: epoch_steps = 5 is more than one pass over the 9 '
                                        'unlabeled images, 4 steps; set at most that'):
        Schedule(cfg, 5, 9)


def test_the_dropped_sample_changes_from_epoch_to_epoch():
    plan = schedule(5, 9)
    dropped = {(set(range(9)) - {row.unlabeled for row in rows(plan, epoch)}).pop()
               for epoch in range(60)}
    assert dropped == set(range(9))


@pytest.mark.parametrize('world, batch_size, n', [(1, 2, 9), (2, 2, 11), (3, 1, 7)])
def test_supervised_is_one_pass_over_the_labeled_list(world, batch_size, n):
    plans = [schedule(n, None, batch_size, rank, world) for rank in range(world)]
    orders = []
    for epoch in range(4):
        batch_rows = [row for plan in plans for row in rows(plan, epoch)]
        seen = [row.labeled for row in batch_rows]
        assert len(seen) == len(set(seen)) == n - n % (batch_size * world)
        assert all(row.labeled_pass == epoch for row in batch_rows)
        assert all(row.unlabeled is None and row.partner is None for row in batch_rows)
        orders.append(seen)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize('world, n, steps', [(1, 9, 7), (2, 5, 6), (1, 3, 1), (1, 1, 2),
                                             (1, 40, 3)])
def test_supervised_epoch_steps(world, n, steps):
    plans = [Schedule(SupervisedConfig(batch_size=2, epoch_steps=steps), n, None, rank, world)
             for rank in range(world)]
    assert {plan.steps_per_epoch for plan in plans} == {steps}
    all_rows = [row for epoch in range(20) for step in range(steps) for plan in plans
                  for row in plan.batch(epoch, step)]
    assert len(all_rows) == 20 * steps * 2 * world
    passes = [all_rows[i:i + n] for i in range(0, len(all_rows) - n + 1, n)]
    for number, batch_rows in enumerate(passes):
        assert sorted(row.labeled for row in batch_rows) == list(range(n))
        assert {row.labeled_pass for row in batch_rows} == {number}
        assert all(row.unlabeled is None for row in batch_rows)
    assert n < 3 or len(passes) == 1 or len({tuple(d.labeled for d in p) for p in passes}) > 1


@pytest.mark.parametrize('n_labeled, n_unlabeled', [(3, 20), (20, 6), (50, 4), (8, 8), (1, 6),
                                                    (7, 9)])
def test_the_labeled_list_is_repeated_endlessly(n_labeled, n_unlabeled):
    plan = schedule(n_labeled, n_unlabeled)
    all_rows = [row for epoch in range(40) for row in rows(plan, epoch)]
    passes = [all_rows[i:i + n_labeled] for i in range(0, len(all_rows), n_labeled)]
    if len(passes[-1]) < n_labeled:
        assert len({row.labeled for row in passes.pop()}) > 0
    assert len(passes) >= 3
    for number, batch_rows in enumerate(passes):
        # Passes cross the borders of epochs. All samples occur equally often.
        assert sorted(row.labeled for row in batch_rows) == list(range(n_labeled))
        assert {row.labeled_pass for row in batch_rows} == {number}
    if n_labeled > 2:
        orders = {tuple(row.labeled for row in batch_rows) for batch_rows in passes}
        assert len(orders) >= min(len(passes), 6) - 2


def test_orders_are_shuffled_and_depend_on_the_seed():
    plans = [schedule(40, 40, seed=seed) for seed in (0, 0, 1)]
    first, again, other = ([(d.labeled, d.unlabeled) for d in rows(plan, 0)] for plan in plans)
    assert first == again
    for column in (0, 1):
        order = [pair[column] for pair in first]
        assert order != sorted(order)
        assert order != [pair[column] for pair in other]
    assert [d.unlabeled for d in rows(plans[0], 0)] != [d.unlabeled for d in rows(plans[0], 1)]


def test_all_pairs_of_labeled_and_unlabeled_images_occur():
    # The two orders are independent permutations, so all pairs occur equally often.
    n, epochs = 6, 600
    plan = schedule(n, n)
    counts = [[0] * n for _ in range(n)]
    for epoch in range(epochs):
        for row in rows(plan, epoch):
            counts[row.unlabeled][row.labeled] += 1
    deviation = (epochs / n * (1 - 1 / n)) ** 0.5
    assert all(abs(c - epochs / n) < 5 * deviation for row in counts for c in row)


@pytest.mark.parametrize('place', [0, 3, 5])
def test_every_sample_occurs_at_every_place(place):
    plan = schedule(6, 6)
    sampled = [rows(plan, epoch)[place] for epoch in range(600)]
    for column in ('labeled', 'unlabeled'):
        counts = [[getattr(row, column) for row in sampled].count(i) for i in range(6)]
        assert all(abs(count - 100) < 5 * 9.2 for count in counts)


def test_partner_same():
    plan = schedule(5, 9, partner='same')
    assert all(row.partner == row.unlabeled for epoch in range(3) for row in rows(plan, epoch))


def test_with_partner_batch_none_is_loaded_and_the_rest_is_the_same():
    plan, other = schedule(5, 9, partner='batch'), schedule(5, 9)
    for epoch in range(3):
        assert rows(plan, epoch) == [row._replace(partner=None) for row in rows(other, epoch)]


@pytest.mark.parametrize('n', [2, 3, 8])
def test_with_partner_other_each_image_is_a_partner_once_and_never_its_own(n):
    plan = schedule(5, n, batch_size=1)
    pairs = set()
    for epoch in range(80):
        batch_rows = rows(plan, epoch)
        assert all(row.partner != row.unlabeled for row in batch_rows)
        assert sorted(row.partner for row in batch_rows) == list(range(n))
        pairs |= {(row.unlabeled, row.partner) for row in batch_rows}
    # All pairs occur.
    assert len(pairs) == n * (n - 1)


def test_the_only_image_is_its_own_partner():
    assert [d.partner for d in rows(schedule(2, 1, batch_size=1), 0)] == [0]


@pytest.mark.parametrize('n_unlabeled', [17, None])
def test_one_times_four_and_two_times_two_take_the_same_steps(n_unlabeled):
    whole = schedule(13, n_unlabeled, 4)
    halves = [schedule(13, n_unlabeled, 2, rank, 2) for rank in (0, 1)]
    quarters = [schedule(13, n_unlabeled, 1, rank, 4) for rank in range(4)]
    for parts in (halves, quarters):
        assert {plan.steps_per_epoch for plan in parts} == {whole.steps_per_epoch}
        for epoch in range(3):
            for step in range(whole.steps_per_epoch):
                joined = [row for plan in parts for row in plan.batch(epoch, step)]
                assert joined == whole.batch(epoch, step)


def rows_of_equal_numbers(n_labeled, n_unlabeled, batch, rank, world, epoch, step, steps, partner):
    """The rows of a step with as many labeled as unlabeled images, one row at a time."""
    shift, found = 0, []
    if partner == 'other':
        shift = int(generator(3, epoch, 0, 102).integers(1, n_unlabeled))
    for row in range(rank * batch, (rank + 1) * batch):
        place = step * batch * world + row
        total = epoch * steps * batch * world + place
        labeled_pass = total // n_labeled
        labeled = generator(3, labeled_pass, 0, 100).permutation(n_labeled)[total % n_labeled]
        order = generator(3, epoch, 0, 101).permutation(n_unlabeled)
        found.append(RowIndices(labeled, labeled_pass, order[place],
                                order[(place + shift) % n_unlabeled], epoch))
    return found


@pytest.mark.parametrize('partner', ['same', 'other'])
@pytest.mark.parametrize('labeled', [0, 2])
@pytest.mark.parametrize('world, n_labeled, n_unlabeled, steps', [(1, 5, 9, 0), (2, 3, 9, 0),
                                                                  (2, 30, 13, 2), (1, 1, 4, 0)])
def test_equal_numbers_of_images(world, n_labeled, n_unlabeled, steps, labeled, partner):
    for rank in range(world):
        plan = schedule(n_labeled, n_unlabeled, 2, rank, world, 3, partner, labeled, steps)
        assert plan.steps_per_epoch == (steps or n_unlabeled // (2 * world))
        for epoch in range(4):
            for step in range(plan.steps_per_epoch):
                assert plan.batch(epoch, step) == rows_of_equal_numbers(
                    n_labeled, n_unlabeled, 2, rank, world, epoch, step, plan.steps_per_epoch,
                    partner)


def columns(batch_rows):
    """([(labeled, pass)], [(unlabeled, partner, pass)]) of rows; missing parts are left out."""
    return ([row[:2] for row in batch_rows if row.labeled is not None],
            [row[2:] for row in batch_rows if row.unlabeled is not None])


@pytest.mark.parametrize('world, labeled, unlabeled, n_labeled, n_unlabeled, steps', [
    (1, 3, 2, 7, 9, 0), (1, 1, 4, 5, 9, 0), (2, 3, 1, 13, 9, 0), (2, 1, 2, 4, 17, 3),
    (2, 4, 1, 3, 5, 0), (3, 2, 3, 40, 20, 0)])
def test_labeled_and_unlabeled_images_follow_their_own_orders(world, labeled, unlabeled, n_labeled,
                                                          n_unlabeled, steps):
    """Against a list of all passes, from which each step takes the next samples."""
    plans = [schedule(n_labeled, n_unlabeled, unlabeled, rank, world, 3, 'other', labeled, steps)
             for rank in range(world)]
    per_epoch = steps or n_unlabeled // (unlabeled * world)
    assert {plan.steps_per_epoch for plan in plans} == {per_epoch}
    upcoming = [(int(sample), number) for number in range(200)
                for sample in generator(3, number, 0, 100).permutation(n_labeled)]
    for epoch in range(5):
        pass_over = [int(sample) for sample in generator(3, epoch, 0, 101).permutation(n_unlabeled)]
        seen = []
        for step in range(per_epoch):
            rows_of_ranks = [plan.batch(epoch, step) for plan in plans]
            assert {len(batch_rows) for batch_rows in rows_of_ranks} == {max(labeled, unlabeled)}
            assert all([len(kind) for kind in columns(batch_rows)] == [labeled, unlabeled]
                       for batch_rows in rows_of_ranks)
            known, others = columns([row for batch_rows in rows_of_ranks for row in batch_rows])
            expected, upcoming = upcoming[:labeled * world], upcoming[labeled * world:]
            assert known == expected
            seen += others
        # No unlabeled image twice in an epoch; only the incomplete last batch is dropped.
        assert [sample for sample, _, _ in seen] == pass_over[:per_epoch * unlabeled * world]
        assert {number for _, _, number in seen} == {epoch}
        assert all(sample != partner for sample, partner, _ in seen)
        assert len({partner for _, partner, _ in seen}) == len(seen)


@pytest.mark.parametrize('labeled, unlabeled', [(4, 8), (8, 4)])
def test_one_times_four_and_two_times_two_with_different_numbers_of_images(labeled, unlabeled):
    whole = schedule(13, 33, unlabeled, labeled=labeled)
    for world in (2, 4):
        parts = [schedule(13, 33, unlabeled // world, rank, world, labeled=labeled // world)
                 for rank in range(world)]
        assert {plan.steps_per_epoch for plan in parts} == {whole.steps_per_epoch}
        for epoch in range(3):
            for step in range(whole.steps_per_epoch):
                joined = [row for plan in parts for row in plan.batch(epoch, step)]
                assert columns(joined) == columns(whole.batch(epoch, step))


def test_a_short_labeled_list_is_repeated_within_a_step():
    batch_rows, _ = columns(schedule(3, 8, 2, labeled=8).batch(0, 0))
    assert [number for _, number in batch_rows] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(sample for sample, _ in batch_rows[:3]) == [0, 1, 2]
    assert len(set(batch_rows)) == 8  # the same image in another pass has another view


@pytest.mark.parametrize('steps', [0, 5])
def test_supervised_training_takes_the_labeled_batch(steps):
    cfg = SupervisedConfig(batch_size=2, labeled_batch_size=3, epoch_steps=steps,
                           labeled_id_path='the/labeled.txt')
    plans = [Schedule(cfg, 14, None, rank, 2) for rank in range(2)]
    assert {plan.steps_per_epoch for plan in plans} == {steps or 2}
    found = [row for step in range(steps or 2) for plan in plans for row in plan.batch(0, step)]
    assert len(found) == 6 * (steps or 2) and all(row.unlabeled is None for row in found)
    assert len({row[:2] for row in found}) == len(found)
    with pytest.raises(UserError, match=r'^the/labeled.txt: 5 images are fewer than a batch '
                                        r'\(3 x 2 processes = 6\); lower labeled_batch_size or'):
        Schedule(SupervisedConfig(batch_size=2, labeled_batch_size=3,
                                  labeled_id_path='the/labeled.txt'), 5, None, 0, 2)


def test_steps_can_be_requested_in_any_order():
    ahead, back = schedule(5, 9), schedule(5, 9)
    names = [(epoch, step) for epoch in range(12) for step in range(4)]
    forward = [ahead.batch(*name) for name in names]
    assert [back.batch(*name) for name in names[::-1]] == forward[::-1]


@pytest.mark.parametrize('n_labeled, n_unlabeled, path, number', [
    (9, 5, 'the/unlabeled.txt', 5), (5, None, 'the/labeled.txt', 5)])
def test_fewer_images_than_a_batch(n_labeled, n_unlabeled, path, number):
    with pytest.raises(UserError) as caught:
        schedule(n_labeled, n_unlabeled, batch_size=3, world=2)
    message = str(caught.value)
    for word in (path, f'{number} images', '3 x 2', '= 6', 'batch_size', 'fewer processes'):
        assert word in message
    # As many images as a batch are enough. A labeled list may be shorter.
    assert schedule(n_labeled, n_unlabeled, batch_size=5).steps_per_epoch == 1
    assert schedule(1, 6, batch_size=3, world=2).steps_per_epoch == 1


# The loaders.

def loader_of(world, rank=0, processes=1, **overrides):
    cfg = world.load(**overrides)
    unlabeled = None if cfg.method == 'supervised' else read_list(world.unlabeled, masks=False)
    return TrainLoader(cfg, read_list(world.labeled), unlabeled, rank, processes)


def equal(a, b):
    """Whether two batches are equal. A part may be None in both."""
    return type(a) is type(b) and all(
        p is q is None or all(torch.equal(s, t) for s, t in zip(p, q)) for p, q in zip(a, b))


def all_equal(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) > 0 and all(equal(a, b) for a, b in zip(first, second))


def test_batches_are_stacked_and_named(tiny_world):
    batches = list(loader_of(tiny_world()).batches(0))
    assert len(batches) == 4
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.labeled.image.shape == (2, 3, 33, 33)
        assert batch.labeled.label.shape == (2, 33, 33)
        assert batch.labeled.index.shape == (2,) and batch.unlabeled.index.dtype == torch.int64
        for part in (batch.unlabeled, batch.partner):
            assert part.strong1.shape == part.strong2.shape == (2, 3, 33, 33)
            assert part.valid.shape == (2, 33, 33) and part.box1.shape == (2, 4)
        assert (batch.unlabeled.index != batch.partner.index).all()
    assert len({int(i) for batch in batches for i in batch.unlabeled.index}) == 8


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('labeled, unlabeled', [(3, 2), (1, 4), (7, 2)])
def test_a_batch_has_the_requested_number_of_images_of_each_kind(tiny_world, labeled, unlabeled,
                                                                 workers):
    loader = loader_of(tiny_world(), batch_size=unlabeled, labeled_batch_size=labeled,
                       workers=workers)
    batches = list(loader.batches(0))
    assert len(batches) == 9 // unlabeled
    for step, batch in enumerate(batches):
        assert batch.labeled.image.shape == (labeled, 3, 33, 33)
        assert batch.labeled.label.shape == (labeled, 33, 33)
        for part in (batch.unlabeled, batch.partner):
            assert {len(tensor) for tensor in part} == {unlabeled}
        known, others = columns(loader.steps.schedule.batch(0, step))
        assert batch.labeled.index.tolist() == [sample for sample, _ in known]
        assert batch.unlabeled.index.tolist() == [sample for sample, _, _ in others]
        assert batch.partner.index.tolist() == [partner for _, partner, _ in others]
        names = loader.samples(0, step).split('; ')
        assert [len(text.split(', ')) for text in names] == [labeled, unlabeled, unlabeled]
        assert names[0] == 'labeled: ' + ', '.join(
            f'images/labeled{sample}.jpg' for sample, _ in known)
        assert names[1] == 'unlabeled: ' + ', '.join(
            f'images/unlabeled{sample}.jpg' for sample, _, _ in others)


def test_a_labeled_row_does_not_depend_on_the_rest_of_its_batch(tiny_world):
    # The first three images, by one step of three or by two steps of two.
    world = tiny_world()
    three = next(loader_of(world, labeled_batch_size=3).batches(0)).labeled
    pairs = [batch.labeled for batch in loader_of(world).batches(0)]
    for whole, first, second in zip(three, *pairs[:2]):
        assert torch.equal(whole, torch.cat([first, second])[:3])


@pytest.mark.parametrize('labeled', [1, 3])
def test_bad_files_are_replaced_in_rows_with_one_kind_of_image_too(tiny_world, labeled):
    world = tiny_world()
    os.remove(os.path.join(world.root, 'images', 'unlabeled4.jpg'))
    loader = loader_of(world, labeled_batch_size=labeled, workers=0)
    batches = [batch for epoch in range(4) for batch in loader.batches(epoch)]
    assert set(loader.replaced) == {'images/unlabeled4.jpg'}
    assert all((len(batch.labeled.index), len(batch.unlabeled.index)) == (labeled, 2)
               for batch in batches)
    assert 4 not in {int(i) for batch in batches for i in batch.unlabeled.index}


def test_supervised_batches_have_no_unlabeled_part(tiny_world):
    batches = list(loader_of(tiny_world(method='supervised')).batches(0))
    assert len(batches) == 2 and all(b.unlabeled is None and b.partner is None for b in batches)
    assert batches[0].labeled.image.shape == (2, 3, 33, 33)


def test_batches_follow_the_schedule(tiny_world):
    loader = loader_of(tiny_world())
    for epoch in (0, 3):
        for step, batch in enumerate(loader.batches(epoch)):
            batch_rows = loader.steps.schedule.batch(epoch, step)
            assert batch.labeled.index.tolist() == [row.labeled for row in batch_rows]
            assert batch.unlabeled.index.tolist() == [row.unlabeled for row in batch_rows]
            assert batch.partner.index.tolist() == [row.partner for row in batch_rows]


def test_the_number_of_workers_changes_nothing(tiny_world):
    world = tiny_world(num_aug=3)
    epochs = {}
    for workers in (0, 1, 2):
        # The global random state must have no effect: each worker starts with another one.
        torch.manual_seed(workers)
        loader = loader_of(world, workers=workers)
        epochs[workers] = [list(loader.batches(epoch)) for epoch in (0, 1)]
    for workers in (1, 2):
        assert all(all_equal(a, b) for a, b in zip(epochs[0], epochs[workers]))
    assert not all_equal(*epochs[0])


@pytest.mark.parametrize('method', ['DSSN', 'supervised'])
def test_an_epoch_can_start_in_its_middle(tiny_world, method):
    loader = loader_of(tiny_world(method=method), seed=3)
    for epoch in (0, 2):
        whole = list(loader.batches(epoch))
        for first in range(1, len(whole)):
            assert all_equal(whole[first:], loader.batches(epoch, first))
        assert list(loader.batches(epoch, len(whole))) == []
        # And the next epoch is whole again.
        assert len(list(loader.batches(epoch + 1))) == len(whole) == loader.steps_per_epoch


def test_an_epoch_left_in_its_middle_does_not_affect_the_next(tiny_world):
    world = tiny_world()
    expected = list(loader_of(world).batches(1))
    loader = loader_of(world, workers=2)
    # Workers live on between epochs, and have prefetched batches of the epoch that was left.
    next(iter(loader.batches(0)))
    assert all_equal(expected, loader.batches(1))
    assert all_equal(expected[2:], loader.batches(1, 2))


@pytest.mark.parametrize('labeled', [0, 3])
def test_ranks_share_one_global_batch(tiny_world, labeled):
    world = tiny_world()
    whole = list(loader_of(world, batch_size=2, labeled_batch_size=2 * labeled).batches(1))
    ranks = [list(loader_of(world, rank, 2, batch_size=1, labeled_batch_size=labeled).batches(1))
             for rank in (0, 1)]
    for batch, halves in zip(whole, zip(*ranks)):
        for part, parts in zip(batch, zip(*halves)):
            for tensor, tensors in zip(part, zip(*parts)):
                assert torch.equal(tensor, torch.cat(tensors))


def test_training_reports_too_small_a_list_by_its_path(tiny_world):
    world = tiny_world()
    with pytest.raises(UserError) as caught:
        loader_of(world, batch_size=10)
    assert world.unlabeled in str(caught.value) and '9 images' in str(caught.value)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_file_ends_the_loop_with_one_clear_error(tiny_world, workers):
    world = tiny_world(max_bad_samples=0)
    path = os.path.join(world.root, 'images', 'unlabeled4.jpg')
    with open(path, 'rb') as file:
        content = file.read()
    with open(path, 'wb') as file:
        file.write(content[:len(content) // 2])
    with pytest.raises(UserError) as caught:
        list(loader_of(world, workers=workers).batches(0))
    message = str(caught.value)
    assert message.startswith(world.unlabeled + ' line 5: ') and path in message
    # Without the traceback of the worker process.
    assert 'Traceback' not in message and '\n' not in message


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_mask_ends_the_evaluation_with_one_clear_error(tiny_world, workers):
    world = tiny_world()
    os.remove(os.path.join(world.root, 'masks', 'val1.png'))
    with pytest.raises(UserError) as caught:
        list(eval_loader(world.load(workers=workers), read_list(world.val)))
    assert str(caught.value).startswith(world.val + ' line 2: no file')


@pytest.mark.parametrize('processes, n_val', [(1, 3), (2, 5), (3, 5), (3, 2)])
def test_evaluation_gives_each_image_to_exactly_one_rank(tiny_world, processes, n_val):
    world = tiny_world(n_val=n_val)
    samples, positions = read_list(world.val), []
    for rank in range(processes):
        for image, label, position in eval_loader(world.load(), samples, rank, processes):
            # Whole images at their own size, every other one portrait.
            size = (30, 40) if int(position) % 2 == 0 else (40, 30)
            assert image.shape == (3,) + size and label.shape == size
            positions.append(int(position))
    assert sorted(positions) == list(range(n_val))


class Recorded:
    """Items that record when they are read. Item 5 raises an error."""

    def __init__(self, count):
        self.count, self.read = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        if index == 5:
            raise ValueError('bad')
        return 10 * index


@pytest.mark.parametrize('count', [0, 1, 2, 3, 5])
def test_read_ahead_yields_all_items_in_order(count):
    assert list(read_ahead(Recorded(count))) == [10 * i for i in range(count)]


@pytest.mark.parametrize('workers', [0, 2])
def test_evaluation_does_not_pin_memory(tiny_world, monkeypatch, workers):
    """Stacking copies the images to memory that is not pinned, so pinning would be wasted."""
    world, real, pinned = tiny_world(), loaders.DataLoader, []

    def loader(*args, **kwargs):
        pinned.append(kwargs.pop('pin_memory', False))
        return real(*args, **kwargs)
    monkeypatch.setattr(loaders, 'DataLoader', loader)
    items = list(eval_loader(world.load(workers=workers), read_list(world.val), 0, 1, True))
    assert len(items) == 3 and not any(pinned) and len(pinned) == (workers > 0)
    assert all(image.dtype == label.dtype == torch.uint8 for image, label, _ in items)


def test_read_ahead_reads_two_more_while_one_is_used():
    items = Recorded(5)
    given = read_ahead(items)
    next(given)
    ends = time.time() + 300
    while len(items.read) < 3 and time.time() < ends:
        time.sleep(0.01)
    time.sleep(0.1)
    assert items.read == [0, 1, 2]


def test_read_ahead_raises_errors():
    given = read_ahead(Recorded(9))
    assert [next(given) for _ in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(ValueError, match='bad'):
        next(given)


def test_the_workers_of_a_deleted_loader_end(tiny_world):
    """At once, without the garbage collector: no cycle of references holds the loader."""
    before = set(multiprocessing.active_children())
    gc.disable()
    loader = loader_of(tiny_world(), workers=2)
    next(iter(loader.batches(0)))
    assert len(set(multiprocessing.active_children()) - before) == 2
    del loader
    end = time.time() + 300
    try:
        while not set(multiprocessing.active_children()) <= before:
            assert time.time() < end
            time.sleep(0.01)
    finally:
        gc.enable()


# Workers.

@pytest.mark.parametrize('gpu, cores, expected', [
    (True, 1, 1), (True, 2, 1), (True, 3, 2), (True, 8, 7), (True, 9, 8), (True, 64, 8),
    (False, 1, 0), (False, 2, 1), (False, 64, 1)])
def test_auto_workers(monkeypatch, gpu, cores, expected):
    monkeypatch.setattr(loaders, 'cores_of_a_process', lambda world: {4: cores}[world])
    assert count_workers('auto', 4, gpu) == expected
    # A number is used as it is.
    assert count_workers(0, 4, gpu) == 0 and count_workers(5, 4, gpu) == 5


def test_auto_workers_are_counted_when_a_loader_is_made(tiny_world, monkeypatch):
    monkeypatch.setattr(loaders, 'cores_of_a_process', lambda world: 2)
    world = tiny_world(workers='auto')
    assert loader_of(world).loader.num_workers == 1
    loader = loader_of(world, workers=0)
    assert loader.loader.num_workers == 0
    assert all_equal(loader.batches(0), loader_of(world).batches(0))
    assert len(list(eval_loader(world.load(), read_list(world.val)))) == 3
