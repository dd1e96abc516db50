"""The order of samples over epochs, ranks and resumed runs, and the loaders that follow it."""
import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest
import torch

from dssn.batch import Batch
from dssn.data.lists import read_list
from dssn.data import loaders
from dssn.data.loaders import Schedule, TrainLoader, count_workers, eval_loader, read_ahead
from dssn.errors import UserError
from dssn.methods.supervised import SupervisedConfig


def schedule(n_labeled, n_unlabeled, batch_size=2, rank=0, world=1, seed=0, partner='other'):
    cfg = SimpleNamespace(seed=seed, batch_size=batch_size, cutmix_partner=partner, epoch_steps=0,
                          labeled_id_path='the/labeled.txt', unlabeled_id_path='the/unlabeled.txt')
    return Schedule(cfg, n_labeled, n_unlabeled, rank, world)


def rows(plan, epoch):
    return [draw for step in range(plan.steps_per_epoch) for draw in plan.batch(epoch, step)]


# The schedule.

@pytest.mark.parametrize('world, batch_size, n', [(1, 2, 9), (2, 2, 9), (3, 1, 10), (3, 2, 20),
                                                  (2, 4, 8), (1, 1, 1)])
def test_an_epoch_is_one_pass_over_the_unlabeled_list(world, batch_size, n):
    for epoch in range(4):
        plans = [schedule(5, n, batch_size, rank, world) for rank in range(world)]
        seen = [draw.unlabeled for plan in plans for draw in rows(plan, epoch)]
        # No sample twice over all ranks; only the incomplete last batch is dropped.
        assert len(seen) == len(set(seen)) == n - n % (batch_size * world)
        assert set(seen) <= set(range(n))
        assert {plan.steps_per_epoch for plan in plans} == {n // (batch_size * world)}
        assert all(draw.unlabeled_pass == epoch for plan in plans for draw in rows(plan, epoch))
        assert all(len(plan.batch(epoch, 0)) == batch_size for plan in plans)


def test_what_is_dropped_changes_from_epoch_to_epoch():
    plan = schedule(5, 9)
    dropped = {(set(range(9)) - {draw.unlabeled for draw in rows(plan, epoch)}).pop()
               for epoch in range(60)}
    assert dropped == set(range(9))


@pytest.mark.parametrize('world, batch_size, n', [(1, 2, 9), (2, 2, 11), (3, 1, 7)])
def test_supervised_is_one_pass_over_the_labeled_list(world, batch_size, n):
    plans = [schedule(n, None, batch_size, rank, world) for rank in range(world)]
    orders = []
    for epoch in range(4):
        draws = [draw for plan in plans for draw in rows(plan, epoch)]
        seen = [draw.labeled for draw in draws]
        assert len(seen) == len(set(seen)) == n - n % (batch_size * world)
        assert all(draw.labeled_pass == epoch for draw in draws)
        assert all(draw.unlabeled is None and draw.partner is None for draw in draws)
        orders.append(seen)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize('world, n, steps', [(1, 9, 7), (2, 5, 6), (1, 3, 1), (1, 1, 2), (1, 40, 3)])
def test_supervised_epochs_of_so_many_steps(world, n, steps):
    plans = [Schedule(SupervisedConfig(batch_size=2, epoch_steps=steps), n, None, rank, world)
             for rank in range(world)]
    assert {plan.steps_per_epoch for plan in plans} == {steps}
    dealt = [draw for epoch in range(20) for step in range(steps) for plan in plans
             for draw in plan.batch(epoch, step)]
    assert len(dealt) == 20 * steps * 2 * world
    passes = [dealt[i:i + n] for i in range(0, len(dealt) - n + 1, n)]
    for number, draws in enumerate(passes):
        assert sorted(draw.labeled for draw in draws) == list(range(n))
        assert {draw.labeled_pass for draw in draws} == {number}
        assert all(draw.unlabeled is None for draw in draws)
    assert n < 3 or len(passes) == 1 or len({tuple(d.labeled for d in p) for p in passes}) > 1


@pytest.mark.parametrize('n_labeled, n_unlabeled', [(3, 20), (20, 6), (50, 4), (8, 8), (1, 6),
                                                    (7, 9)])
def test_labeled_samples_are_dealt_out_without_end(n_labeled, n_unlabeled):
    plan = schedule(n_labeled, n_unlabeled)
    dealt = [draw for epoch in range(40) for draw in rows(plan, epoch)]
    passes = [dealt[i:i + n_labeled] for i in range(0, len(dealt), n_labeled)]
    if len(passes[-1]) < n_labeled:
        assert len({draw.labeled for draw in passes.pop()}) > 0
    assert len(passes) >= 3
    for number, draws in enumerate(passes):
        # Each stretch of the list's length is one whole pass, across the borders of epochs, so
        # that no sample is starved and none is seen more often than the others.
        assert sorted(draw.labeled for draw in draws) == list(range(n_labeled))
        assert {draw.labeled_pass for draw in draws} == {number}
    if n_labeled > 2:
        orders = {tuple(draw.labeled for draw in draws) for draws in passes}
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


def test_an_unlabeled_image_meets_ever_other_labeled_ones():
    # The two orders are independent permutations, so all pairs come about, and evenly.
    n, epochs = 6, 600
    plan = schedule(n, n)
    counts = [[0] * n for _ in range(n)]
    for epoch in range(epochs):
        for draw in rows(plan, epoch):
            counts[draw.unlabeled][draw.labeled] += 1
    deviation = (epochs / n * (1 - 1 / n)) ** 0.5
    assert all(abs(c - epochs / n) < 5 * deviation for row in counts for c in row)


@pytest.mark.parametrize('place', [0, 3, 5])
def test_every_sample_comes_to_every_place(place):
    plan = schedule(6, 6)
    drawn = [rows(plan, epoch)[place] for epoch in range(600)]
    for column in ('labeled', 'unlabeled'):
        counts = [[getattr(draw, column) for draw in drawn].count(i) for i in range(6)]
        assert all(abs(count - 100) < 5 * 9.2 for count in counts)


def test_partner_same():
    plan = schedule(5, 9, partner='same')
    assert all(draw.partner == draw.unlabeled for epoch in range(3) for draw in rows(plan, epoch))


@pytest.mark.parametrize('n', [2, 3, 8])
def test_partner_other_is_never_itself_and_each_image_is_one_once(n):
    plan = schedule(5, n, batch_size=1)
    pairs = set()
    for epoch in range(80):
        draws = rows(plan, epoch)
        assert all(draw.partner != draw.unlabeled for draw in draws)
        assert sorted(draw.partner for draw in draws) == list(range(n))
        pairs |= {(draw.unlabeled, draw.partner) for draw in draws}
    # No image is bound to one partner.
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
                joined = [draw for plan in parts for draw in plan.batch(epoch, step)]
                assert joined == whole.batch(epoch, step)


def test_a_step_can_be_asked_for_in_any_order():
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
    for word in (path, '%d images' % number, '3 x 2', '= 6', 'batch_size', 'fewer processes'):
        assert word in message
    # As many as a batch are enough; and a labeled list may be as short as it likes.
    assert schedule(n_labeled, n_unlabeled, batch_size=5).steps_per_epoch == 1
    assert schedule(1, 6, batch_size=3, world=2).steps_per_epoch == 1


# The loaders.

def loader_of(world, rank=0, processes=1, **overrides):
    cfg = world.load(**overrides)
    unlabeled = None if cfg.method == 'supervised' else read_list(world.unlabeled, masks=False)
    return TrainLoader(cfg, read_list(world.labeled), unlabeled, rank, processes)


def equal(a, b):
    """Whether two batches hold the same numbers; parts may be None in both."""
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
        assert batch.x.weak.shape == (2, 3, 33, 33) and batch.x.label.shape == (2, 33, 33)
        assert batch.x.index.shape == (2,) and batch.u.index.dtype == torch.int64
        for part in (batch.u, batch.v):
            assert part.strong1.shape == part.strong2.shape == (2, 3, 33, 33)
            assert part.valid.shape == (2, 33, 33) and part.box1.shape == (2, 4)
        assert (batch.u.index != batch.v.index).all()
    assert len({int(i) for batch in batches for i in batch.u.index}) == 8


def test_supervised_batches_have_no_unlabeled_part(tiny_world):
    batches = list(loader_of(tiny_world(method='supervised')).batches(0))
    assert len(batches) == 2 and all(b.u is None and b.v is None for b in batches)
    assert batches[0].x.weak.shape == (2, 3, 33, 33)


def test_batches_follow_the_schedule(tiny_world):
    loader = loader_of(tiny_world())
    for epoch in (0, 3):
        for step, batch in enumerate(loader.batches(epoch)):
            draws = loader.steps.schedule.batch(epoch, step)
            assert batch.x.index.tolist() == [draw.labeled for draw in draws]
            assert batch.u.index.tolist() == [draw.unlabeled for draw in draws]
            assert batch.v.index.tolist() == [draw.partner for draw in draws]


def test_the_number_of_workers_changes_nothing(tiny_world):
    world = tiny_world(num_aug=3)
    epochs = {}
    for workers in (0, 1, 2):
        # The global random numbers must not matter: workers start from other ones.
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


def test_an_epoch_left_in_its_middle_leaves_nothing_behind(tiny_world):
    world = tiny_world()
    expected = list(loader_of(world).batches(1))
    loader = loader_of(world, workers=2)
    # Workers live on between epochs and have prefetched batches of the one that was left.
    next(iter(loader.batches(0)))
    assert all_equal(expected, loader.batches(1))
    assert all_equal(expected[2:], loader.batches(1, 2))


def test_ranks_share_one_global_batch(tiny_world):
    world = tiny_world()
    whole = list(loader_of(world, batch_size=2).batches(1))
    ranks = [list(loader_of(world, rank, 2, batch_size=1).batches(1)) for rank in (0, 1)]
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
    # Not the traceback that a worker process would wrap it in.
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


class Slow:
    """Items that tell when they are read; the fifth is bad."""

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
def test_reading_ahead_gives_all_items_in_order(count):
    assert list(read_ahead(Slow(count))) == [10 * i for i in range(count)]


def test_reading_ahead_reads_two_more_while_one_is_used():
    items = Slow(5)
    given = read_ahead(items)
    next(given)
    ends = time.time() + 10
    while len(items.read) < 3 and time.time() < ends:
        time.sleep(0.01)
    time.sleep(0.1)
    assert items.read == [0, 1, 2]


def test_reading_ahead_passes_errors_on():
    given = read_ahead(Slow(9))
    assert [next(given) for _ in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(ValueError, match='bad'):
        next(given)


def test_a_loader_that_is_let_go_takes_its_workers_with_it(tiny_world):
    before = set(multiprocessing.active_children())
    loader = loader_of(tiny_world(), workers=2)
    next(iter(loader.batches(0)))
    assert len(set(multiprocessing.active_children()) - before) == 2
    del loader
    assert set(multiprocessing.active_children()) <= before


# Workers.

@pytest.mark.parametrize('gpu, cores, expected', [
    (True, 1, 1), (True, 2, 1), (True, 3, 2), (True, 8, 7), (True, 9, 8), (True, 64, 8),
    (False, 1, 0), (False, 2, 1), (False, 64, 1)])
def test_auto_workers(monkeypatch, gpu, cores, expected):
    monkeypatch.setattr(loaders, 'cores_of_a_process', lambda world: {4: cores}[world])
    assert count_workers('auto', 4, gpu) == expected
    # A number is a number.
    assert count_workers(0, 4, gpu) == 0 and count_workers(5, 4, gpu) == 5


def test_auto_is_worked_out_where_loaders_are_made(tiny_world, monkeypatch):
    monkeypatch.setattr(loaders, 'cores_of_a_process', lambda world: 2)
    world = tiny_world(workers='auto')
    assert loader_of(world).loader.num_workers == 1
    loader = loader_of(world, workers=0)
    assert loader.loader.num_workers == 0
    assert all_equal(loader.batches(0), loader_of(world).batches(0))
    assert len(list(eval_loader(world.load(), read_list(world.val)))) == 3
