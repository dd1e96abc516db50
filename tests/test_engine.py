"""The training run: repeatable, resumable, its records and files, and its edges."""
import glob
import json
import math
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dssn import config, engine, update
from dssn.data.classes import names_of_classes
from dssn.data.loaders import Schedule
from dssn.distributed import World
from dssn.engine import start
from dssn.errors import Stopped, UserError
from dssn.inference import evaluation
from dssn.models.weights import network_weights, read_torch_file
from dssn.networks import choose_lr
from dssn.run import checkpoint, diagnostics
from dssn.run.lock import Lock
from dssn.run.logbook import Logbook
from dssn.run.state import state_of

STEPS = 4  # of an epoch of the tiny world: 9 unlabeled images in batches of 2


def train(cfg):
    run = start(cfg, World())
    run.fit()
    run.log.close()
    return run


def read(folder, name='latest.pth'):
    return read_torch_file(os.path.join(folder, name))


def all_records(folder):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        return [json.loads(line) for line in file]


def metrics(folder):
    """The evaluations of a finished run; one summary, and that last."""
    *lines, _ = found = all_records(folder)
    assert [line['kind'] for line in found] == ['evaluation'] * len(lines) + ['summary']
    return lines


def without_clock(lines):
    return [{key: value for key, value in line.items()
             if not key.startswith(('seconds', 'peak_memory'))} for line in lines]


def assert_equal(a, b, place=''):
    """Bit-identical, through containers."""
    assert type(a) is type(b), place
    if torch.is_tensor(a):
        assert torch.equal(a, b), place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_equal(a[key], b[key], f'{place}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f'{place}.{i}')
    else:
        assert a == b, place


def assert_same_run(a, b):
    for key in ('model', 'teacher', 'optimizer', 'best', 'epoch', 'step', 'miou'):
        assert_equal(read(a).get(key), read(b).get(key), key)
    assert len(metrics(a)) == len(metrics(b))
    assert without_clock(all_records(a)) == without_clock(all_records(b))


def stop_after(monkeypatch, steps):
    """Makes the optimizer raise in the step after `steps`, as a killed run stops."""
    real, done = update.guarded_step, []

    def step(optimizer, norm):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        real(optimizer, norm)
    monkeypatch.setattr(update, 'guarded_step', step)


def interrupted(cfg, steps):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)


def scalars(folder):
    """{tag: [(step, value), ...]} as TensorBoard shows the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(folder, size_guidance={'scalars': 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()['scalars']}


# ---- repeatable

def test_one_seed_gives_one_result_on_any_number_of_workers(tiny_world):
    world = tiny_world(cutmix_partner='other', num_aug=3)
    folders = []
    for name, workers in (('a', 0), ('b', 0), ('c', 2)):
        folders.append(world.save_path + name)
        torch.manual_seed(len(name) * workers)  # what ran before must not matter
        np.random.seed(workers)
        train(world.load(save_path=folders[-1], workers=workers))
    assert_same_run(folders[0], folders[1])
    assert_same_run(folders[0], folders[2])
    other = world.save_path + 'd'
    train(world.load(save_path=other, seed=1))
    assert not torch.equal(read(other)['model']['classifier.weight'],
                           read(folders[0])['model']['classifier.weight'])


# ---- resuming

@pytest.mark.parametrize('method', ['DSSN', 'fixmatch', 'unimatch', 'unimatch_v2', 'supervised'])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tiny_world, method):
    # 9 labeled images: the supervised method has as many steps.
    world = tiny_world(n_labeled=9, method=method, log_every=2)
    whole, stopped = world.save_path + 'whole', world.save_path + 'stopped'
    train(world.load(save_path=whole))
    interrupted(world.load(save_path=stopped), STEPS + 2)
    assert read(stopped)['epoch'] == 1
    train(world.load(save_path=stopped))
    assert_same_run(whole, stopped)
    assert scalars(stopped)['eval/student/mIoU'] == scalars(whole)['eval/student/mIoU']
    assert [step for step, _ in scalars(stopped)['train/loss']] == [2, 4, 6, 8]


@pytest.mark.parametrize('keys, steps', [({'method': 'unimatch_v2'}, 16), ({}, 5)],
                         ids=['unimatch_v2', 'DSSN'])
def test_a_vision_transformer_learns_and_goes_on_after_a_stop(tiny_world, keys, steps):
    world = tiny_world(n_labeled=4, n_unlabeled=4 * steps, epochs=1, batch_size=4)
    keys = dict(model='dpt', backbone='dinov2_tiny', crop_size=28, lr=5e-4, lr_multi=4.0, **keys)
    whole, again = world.save_path + 'whole', world.save_path + 'again'
    run = train(world.load(save_path=whole, **keys))
    assert isinstance(run.networks.optimizer, torch.optim.AdamW)
    stopped(world.load(save_path=again, **keys), 4)
    train(world.load(save_path=again, **keys))
    assert_same_run(whole, again)
    if steps > 5:
        assert metrics(whole)[0]['student'] > 25  # one class everywhere: 11


@pytest.mark.parametrize('dpt', [False, True])
def test_only_batchnorm_has_statistics_of_each_cpu_process(tiny_world, monkeypatch, dpt):
    keys = dict(model='dpt', backbone='dinov2_tiny', crop_size=28) if dpt else {}
    run = start(tiny_world().load(**keys), World())
    run.folder.leave()
    run.progress.step = 1
    monkeypatch.setattr(World, 'has_plain_bn', True)
    monkeypatch.setattr(World, 'rows', lambda self, vector: vector[None])
    assert ('statistics' in state_of(run)) == (not dpt)


def test_a_run_stopped_in_its_first_epoch_starts_again(tiny_world):
    world = tiny_world(epochs=1)
    whole, stopped = world.save_path + 'whole', world.save_path + 'stopped'
    train(world.load(save_path=whole))
    interrupted(world.load(save_path=stopped), 2)
    train(world.load(save_path=stopped))
    assert_same_run(whole, stopped)


def stopped(cfg, steps, number=signal.SIGTERM, workers=0):
    """Trains until a signal comes in the step after `steps`; which is finished and saved."""
    real, done = update.Update.__call__, []

    def call(self, *args, **kwargs):
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), number)
        return real(self, *args, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update.Update, '__call__', call)
        before = signal.signal(number, signal.SIG_DFL)  # tests in the background ignore Ctrl-C
        try:
            with pytest.raises(Stopped) as caught:
                train(cfg)
        finally:
            signal.signal(number, before)
    assert caught.value.number == number
    assert len(done) == steps


def log_lines(folder):
    """The text log without times, what depends on the machine, and the lines about stops."""
    with open(os.path.join(folder, 'train.log')) as file:
        lines = [re.sub(r'^[-0-9]+ [:0-9]+ ', '', line) for line in file]
    left_out = ('undone: ', 'resuming ', 'stopped by ', 'peak memory')
    return [re.sub(r'images_per_second \S+|in \d+ s', '', line) for line in lines
            if not line.startswith(left_out)]


def assert_same_scalars(a, b):
    a, b = [{tag: values for tag, values in scalars(folder).items()
             if 'images_per_second' not in tag} for folder in (a, b)]
    assert a == b


RUNS = {'DSSN': {}, 'supervised': {'method': 'supervised'}, 'accumulate': {'accumulate': 2},
        'more labeled': {'labeled_batch_size': 4, 'accumulate': 2},
        'fewer labeled': {'method': 'fixmatch', 'labeled_batch_size': 1},
        'topk, other partner': {'selection': 'class_topk', 'cutmix_partner': 'other'}}


@pytest.mark.parametrize('keys', RUNS.values(), ids=RUNS.keys())
def test_a_run_that_is_stopped_at_every_step_ends_as_the_undisturbed_one(tiny_world, keys):
    world = tiny_world(log_every=3, **keys)
    whole, again = world.save_path + 'whole', world.save_path + 'again'
    run = train(world.load(save_path=whole))
    for number in range(run.total_steps - 1):
        stopped(world.load(save_path=again, workers=number % 2), 1,
                (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)[number % 3])
    train(world.load(save_path=again))
    assert_same_run(whole, again)
    assert log_lines(whole) == log_lines(again)
    assert_same_scalars(whole, again)


@pytest.mark.parametrize('steps', range(1, 2 * STEPS))
def test_what_was_done_after_a_save_is_done_again_and_marked(tiny_world, steps):
    world = tiny_world(log_every=1, save_every=3)
    whole, again = world.save_path + 'whole', world.save_path + 'again'
    train(world.load(save_path=whole))
    interrupted(world.load(save_path=again), steps)
    at = read(again)['step'] if steps >= 3 else 0
    assert at == max(place for place in (0, 3, 4, 6) if place <= steps)
    train(world.load(save_path=again))
    assert_same_run(whole, again)
    assert log_lines(whole) == log_lines(again)
    assert_same_scalars(whole, again)
    with open(os.path.join(again, 'train.log')) as file:
        undone = [line for line in file if line.startswith('undone: ')]
    assert sum(' step ' in line and 'epoch' in line for line in undone) == steps - at


def test_a_signal_while_evaluating_stops_there(tiny_world, monkeypatch):
    world = tiny_world(epochs=2)
    whole, again = world.save_path + 'whole', world.save_path + 'again'
    train(world.load(save_path=whole))
    real = evaluation.confusion_matrix

    def confusion_matrix(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(*args)
    monkeypatch.setattr(evaluation, 'confusion_matrix', confusion_matrix)
    with pytest.raises(Stopped):
        train(world.load(save_path=again))
    assert read(again)['step'] == STEPS and read(again)['epoch'] == 0
    assert not os.path.exists(os.path.join(again, 'metrics.jsonl'))
    monkeypatch.undo()
    train(world.load(save_path=again))
    assert_same_run(whole, again)
    assert log_lines(whole) == log_lines(again)


def test_minutes_between_saves(tiny_world, monkeypatch):
    world = tiny_world(epochs=1, save_every='0.001 min')  # 60 ms
    real, places = checkpoint.save, []

    def save(path, content, keep=None):
        if path.endswith('latest.pth'):
            places.append(content['step'])
        real(path, content, keep)
    monkeypatch.setattr(checkpoint, 'save', save)
    monkeypatch.setattr(engine.Run, 'next_batch',
                        lambda self, batches, real=engine.Run.next_batch:
                        (time.sleep(0.1), real(self, batches))[1])
    train(world.load())
    # In the epoch, at its end (for the clock and for the evaluation, but once), after evaluating.
    assert places == [1, 2, 3, 4, 4]


def test_the_state_before_is_taken_where_the_newest_is_damaged(tiny_world, capsys):
    world = tiny_world(save_every=1)
    whole, again = world.save_path + 'whole', world.save_path + 'again'
    train(world.load(save_path=whole))
    stopped(world.load(save_path=again), 3)
    latest = os.path.join(again, 'latest.pth')
    with open(latest, 'r+b') as file:
        file.truncate(os.path.getsize(latest) // 2)
    train(world.load(save_path=again))
    out = capsys.readouterr().out
    assert 'warning: ' in out and 'previous.pth, the state before it' in out
    assert os.path.exists(os.path.join(again, 'damaged.pth'))
    assert_same_run(whole, again)


def test_no_state_that_can_be_read_is_an_error(tiny_world):
    world = tiny_world(save_every=1)
    stopped(world.load(), 3)
    for name in ('latest.pth', 'previous.pth'):
        with open(os.path.join(world.save_path, name), 'wb') as file:
            file.write(b'damaged')
    with pytest.raises(UserError, match='latest.pth.*previous.pth.*--fresh'):
        start(world.load(), World())
    run = start(world.load(), World(), fresh=True)
    assert not run.resumed
    run.fit()
    before, = [name for name in os.listdir(world.save_path) if name.startswith('before_')]
    assert {'latest.pth', 'previous.pth', 'train.log'} <= set(
        os.listdir(os.path.join(world.save_path, before)))


@pytest.mark.parametrize('failing', [['latest.pth'], ['best.pth'], ['t_best.pth', 'latest.pth']])
def test_a_save_that_fails_ends_nothing_and_is_made_up_for(
        tiny_world, monkeypatch, capsys, failing):
    world = tiny_world(epochs=3, save_every=1)
    whole, again = world.save_path + 'whole', world.save_path + 'again'
    train(world.load(save_path=whole))
    real, left = checkpoint.save, [9]

    def save(path, content, keep=None):
        if os.path.basename(path) in failing and left[0]:
            left[0] -= 1
            raise OSError(28, 'No space left on device')
        real(path, content, keep)
    monkeypatch.setattr(checkpoint, 'save', save)
    capsys.readouterr()
    train(world.load(save_path=again))
    assert 'could not be saved' in capsys.readouterr().out
    assert_same_run(whole, again)
    for name in ('best.pth', 't_best.pth'):
        expected = read(whole, name)
        assert_equal(expected, {**read(again, name), 'config': expected['config']})


def test_a_disk_that_is_full_from_the_start_is_one_error(tiny_world, monkeypatch):
    def write(self, content):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Lock, 'write', write)
    with pytest.raises(UserError, match='No space left.*make room'):
        start(tiny_world().load(), World())


def test_a_run_whose_end_cannot_be_saved_says_so(tiny_world, monkeypatch):
    world = tiny_world(epochs=1)

    def save(path, content, keep=None):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(checkpoint, 'save', save)
    monkeypatch.setattr(engine.time, 'sleep', lambda seconds: None)
    with pytest.raises(UserError, match='could not be saved.*make room'):
        train(world.load())


def test_bad_files_are_named_and_replaced_up_to_a_limit(tiny_world, capsys):
    world = tiny_world(max_bad_samples=2, epochs=2)
    for number in (2, 6):
        with open(os.path.join(world.root, f'images/unlabeled{number}.jpg'), 'wb') as file:
            file.write(b'no image')
    train(world.load(save_path=world.save_path + '2'))
    out = capsys.readouterr().out
    assert out.count('warning: a bad sample was replaced') == 2  # not once an epoch
    assert 'unlabeled2.jpg' in out and 'unlabeled6.jpg' in out
    with open(os.path.join(world.root, 'images/unlabeled4.jpg'), 'wb') as file:
        file.write(b'no image')
    with pytest.raises(UserError, match=r'max_bad_samples = 2.*unlabeled\d.jpg'):
        train(world.load(epochs=3))
    steps = read(world.save_path)['step']  # what was trained before is kept
    for number in (2, 4, 6):
        draw_again = os.path.join(world.root, f'images/unlabeled{number}.jpg')
        Image.new('RGB', (40, 30)).save(draw_again)
    run = train(world.load(epochs=3, max_bad_samples=3))
    assert run.resumed and read(world.save_path)['epoch'] == 3 and steps > 0


def test_a_list_with_other_content_is_refused(tiny_world):
    world = tiny_world()
    stopped(world.load(), 1)
    with open(world.labeled) as file:
        lines = file.readlines()
    with open(world.labeled, 'w') as file:
        file.writelines(lines[1:])
    with pytest.raises(UserError, match=r'labeled list was .*5 lines.*is .*4 lines.*--fresh'):
        start(world.load(), World())


def test_what_may_change_is_said(tiny_world, capsys):
    world = tiny_world()
    stopped(world.load(), 1)
    train(world.load(workers=1))
    assert 'workers was 0, is 1' in capsys.readouterr().out


@pytest.mark.parametrize('place', ['before latest.pth', 'after latest.pth'])
def test_a_run_stopped_between_its_files_goes_on_with_all_of_them(tiny_world, place):
    world = tiny_world()
    whole, stopped = world.save_path + 'whole', world.save_path + 'stopped'
    train(world.load(save_path=whole))
    real = checkpoint.save

    def save(path, content, keep=None):
        is_latest = path.endswith('latest.pth')
        if is_latest and place == 'before latest.pth':
            raise KeyboardInterrupt
        real(path, content, keep)
        if is_latest:
            raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, 'save', save)
        with pytest.raises(KeyboardInterrupt):
            train(world.load(save_path=stopped))
    train(world.load(save_path=stopped))
    assert_same_run(whole, stopped)
    for name in ('best.pth', 't_best.pth'):
        assert_equal(read(whole, name)['model'], read(stopped, name)['model'])


def test_a_finished_run_trains_nothing(tiny_world, capsys):
    world = tiny_world(epochs=1)
    train(world.load())
    before = {name: os.stat(os.path.join(world.save_path, name)).st_mtime_ns
              for name in os.listdir(world.save_path)}
    capsys.readouterr()
    train(world.load())
    assert 'already trained' in capsys.readouterr().out
    assert before == {name: os.stat(os.path.join(world.save_path, name)).st_mtime_ns
                      for name in os.listdir(world.save_path)}


@pytest.mark.parametrize('left', ['', '{"kind": "summ'], ids=['killed before it', 'killed in it'])
def test_a_finished_run_without_its_summary_gets_it(tiny_world, capsys, left):
    world = tiny_world(epochs=2)
    train(world.load())
    expected = all_records(world.save_path)
    path = os.path.join(world.save_path, 'metrics.jsonl')
    with open(path) as file:
        lines = file.readlines()
    with open(path, 'w') as file:
        file.writelines(lines[:-1] + [left])
    log = os.path.join(world.save_path, 'train.log')
    with open(log) as file:
        said = file.read()
    os.remove(log)
    before = os.stat(os.path.join(world.save_path, 'latest.pth')).st_mtime_ns
    train(world.load())
    assert all_records(world.save_path) == expected
    assert os.stat(os.path.join(world.save_path, 'latest.pth')).st_mtime_ns == before
    with open(log) as file:
        text = file.read().split('finished: ')[1]
    assert said.count('finished: ') == 1 and said.endswith('finished: ' + text)
    capsys.readouterr()
    train(world.load())
    assert capsys.readouterr().out.endswith('finished: ' + text)  # and the files stay
    assert all_records(world.save_path) == expected


@pytest.mark.parametrize('changes', [dict(lr=0.5), dict(epochs=3, batch_size=1),
                                     dict(method='supervised'), dict(decoder_channels=16),
                                     dict(selection='none'), dict(labeled_batch_size=3)], ids=str)
def test_changed_settings_are_refused_by_name(tiny_world, changes):
    world = tiny_world(epochs=1)
    train(world.load())
    with pytest.raises(UserError, match='latest.pth') as caught:
        start(world.load(**changes), World())
    for name, value in changes.items():
        assert name in str(caught.value) and str(value) in str(caught.value)


def test_another_number_of_processes_is_refused(tiny_world):
    world = tiny_world(epochs=1)
    train(world.load())
    saved = read(world.save_path)
    saved['world'] = 2
    checkpoint.save(os.path.join(world.save_path, 'latest.pth'), saved)
    with pytest.raises(UserError, match='processes was 2, is 1'):
        start(world.load(), World())


def test_settings_that_change_no_number_may_change(tiny_world):
    world = tiny_world()
    interrupted(world.load(), STEPS + 1)
    train(world.load(workers=1, log_every=1))
    assert read(world.save_path)['epoch'] == 2


def test_a_run_from_before_a_key_existed_was_made_with_its_default(tiny_world):
    world = tiny_world()
    interrupted(world.load(), STEPS + 1)
    saved = read(world.save_path)
    for key in ('colours', 'ignore_index', 'labeled_batch_size'):
        del saved['config'][key]
    torch.save(saved, os.path.join(world.save_path, 'latest.pth'))
    with pytest.raises(UserError, match='ignore_index was 255, is 7'):
        start(world.load(ignore_index=7), World())
    train(world.load())
    assert read(world.save_path)['epoch'] == 2


@pytest.mark.parametrize('content', [{'model': {}}, [], {'optimizer': {}, 'world': 1}], ids=str)
def test_a_foreign_latest_file_is_refused(tiny_world, content):
    world = tiny_world()
    os.makedirs(world.save_path)
    torch.save(content, os.path.join(world.save_path, 'latest.pth'))
    with pytest.raises(UserError, match='latest.pth.*--save-path'):
        start(world.load(), World())


# ---- records

def test_records_of_a_run(tiny_world):
    world = tiny_world(log_every=2)
    cfg = world.load()
    run = train(cfg)
    lines = metrics(world.save_path)
    assert [(line['kind'], line['epoch'], line['iteration']) for line in lines] == [
        ('evaluation', 1, STEPS), ('evaluation', 2, 2 * STEPS)]
    for line in lines:
        for role in ('student', 'teacher'):
            iou = line[role + '_iou']
            assert list(iou) == names_of_classes(cfg)
            assert line[role] == pytest.approx(np.mean([v for v in iou.values() if v is not None]))
        assert line['seconds'] > 0
        assert [value > 10 for key, value in line.items() if 'peak_memory' in key] == [True]
    assert lines[1]['seconds'] > lines[0]['seconds']
    # The rate lags by a step: step t uses (1 - (t-1)/T)^0.9.
    for line in lines:
        step = line['iteration'] - 1
        assert line['lr'] == pytest.approx(cfg.lr * (1 - (step - 1) / (2 * STEPS)) ** 0.9)
    shown = scalars(world.save_path)
    for role in ('student', 'teacher'):
        assert shown[f'eval/{role}/mIoU'] == [
            (line['iteration'], pytest.approx(line[role], rel=1e-5)) for line in lines]
    assert [step for step, _ in shown['train/loss']] == [2, 4, 6, 8]
    for term in ('supervised', 'feature1', 'feature2', 'image1', 'image2', 'contrast_image',
                 'contrast_feature', 'lr'):
        assert all(math.isfinite(value) for _, value in shown['train/' + term])
    with open(os.path.join(world.save_path, 'config.yaml')) as file:
        assert yaml.safe_load(file) == config.to_dict(cfg)
    assert config.load(os.path.join(world.save_path, 'config.yaml')) == cfg
    text = open(os.path.join(world.save_path, 'train.log')).read()
    assert 'mIoU' in text and 'step 8/8' in text
    assert len(glob.glob(os.path.join(world.save_path, 'events*'))) == 1
    assert run.progress.best == {
        role: max(line[role] for line in lines) for role in ('student', 'teacher')}


def test_files_of_a_run_are_plain_and_complete(tiny_world):
    world = tiny_world()
    cfg = world.load()
    run = train(cfg)
    lines = metrics(world.save_path)
    for name, role in (('best.pth', 'student'), ('t_best.pth', 'teacher')):
        path = os.path.join(world.save_path, name)
        content = read(world.save_path, name)
        assert content['weights'] == role
        assert content['miou'] == max(line[role] for line in lines)
        assert type(content['miou']) is float
        assert config.from_dict(content['config'], path) == cfg
        assert content['classes'] == ['class 0', 'class 1', 'class 2']
        best = [line['epoch'] for line in lines if line[role] == content['miou']][0]
        assert (content['epoch'], content['step']) == (best, best * STEPS)
        assert not any(key.startswith('module.') for key in content['model'])
        if best == cfg.epochs:
            assert_equal(content['model'], network_weights(run.networks.by_role()[role]))
    latest = read(world.save_path)
    assert {'model', 'teacher', 'optimizer', 'epoch', 'step', 'config', 'best'} <= set(latest)
    assert_equal(latest['model'], network_weights(run.networks.by_role()['student']))
    assert_equal(latest['teacher'], network_weights(run.networks.by_role()['teacher']))


@pytest.mark.skipif(int(torch.__version__.split('.')[0]) < 2, reason='has no weights_only')
@pytest.mark.parametrize('name', ['best.pth', 't_best.pth', 'latest.pth'])
def test_files_load_with_weights_only(tiny_world, name):
    world = tiny_world(epochs=1)
    train(world.load())
    content = torch.load(os.path.join(world.save_path, name), weights_only=True)
    assert content['epoch'] == 1


def test_eval_every_leaves_out_evaluations_but_not_the_last(tiny_world):
    world = tiny_world(epochs=3, eval_every=2, n_unlabeled=2, n_val=1)
    train(world.load())
    assert [line['epoch'] for line in metrics(world.save_path)] == [2, 3]


# ---- watching

def images(folder):
    """{tag: [(step, width, height), ...]} of the pictures in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(folder, size_guidance={'images': 0})
    events.Reload()
    return {tag: [(event.step, event.width, event.height) for event in events.Images(tag)]
            for tag in events.Tags()['images']}


def name_masks(world, lines, bad=()):
    """Gives some lines of the unlabeled list (from 0) a mask; the `bad` ones are no masks."""
    with open(world.unlabeled) as file:
        names = [line.strip() for line in file]
    for i in lines:
        size = Image.open(os.path.join(world.root, names[i])).size
        mask = Image.new('L', size, 200 if i in bad else i % 3)
        mask.save(os.path.join(world.root, f'masks/hidden{i}.png'))
        names[i] += f' masks/hidden{i}.png'
    with open(world.unlabeled, 'w') as file:
        file.writelines(name + '\n' for name in names)


def test_watching_changes_no_number_and_opens_masks_only_if_told(tiny_world, monkeypatch):
    from dssn.data import datasets
    opened, real = [], datasets.open_mask

    def open_mask(root, sample, *rest):
        opened.append(sample.mask)
        return real(root, sample, *rest)
    monkeypatch.setattr(datasets, 'open_mask', open_mask)
    world = tiny_world(cutmix_partner='other', gate=0.3, ratio=0.5, log_every=2)
    name_masks(world, range(0, 9, 2))
    folders = {}
    for name, keys in (('off', dict(panel_every=0)), ('on', dict(panel_every=1, panel_images=1)),
                       ('truth', dict(panel_every=3, watch_truth=True))):
        del opened[:]
        folders[name] = world.save_path + name
        train(world.load(save_path=folders[name], **keys))
        assert any('hidden' in mask for mask in opened) == (name == 'truth')
    assert_same_run(folders['off'], folders['on'])
    assert_same_run(folders['off'], folders['truth'])
    shown = {name: images(folder) for name, folder in folders.items()}
    assert shown['off'] == {}
    assert [step for step, _, _ in shown['on']['panels/unlabeled']] == list(range(1, 9))
    assert [step for step, _, _ in shown['truth']['panels/unlabeled']] == [3, 6, 8]
    # A row an image; a column more with truth.
    (_, width, height), (_, wider, taller) = [shown[name]['panels/unlabeled'][-1]
                                              for name in ('on', 'truth')]
    assert wider - width == 128 + 4 and taller - height == 128 + 4
    tags = {name: set(scalars(folder)) for name, folder in folders.items()}
    assert tags['off'] == tags['on'] <= tags['truth']
    new = {tag.split('/')[2] for tag in tags['truth'] - tags['off']}
    assert {'correct_all'} <= new <= {'correct_all', 'correct_selected', 'correct'}
    for tag, values in scalars(folders['truth']).items():
        assert 'pseudo' not in tag or all(0 <= value <= 1 for _, value in values)
    assert [step for step, _ in scalars(folders['on'])['pseudo/feature/predicted/class 0']] == [
        2, 4, 6, 8]


def test_partners_of_the_same_batch_are_compared_with_their_own_masks(tiny_world, monkeypatch):
    world, seen = tiny_world(epochs=1, cutmix_partner='batch', panel_every=1), []
    name_masks(world, range(9))
    real = diagnostics.ground_truth_scalars
    monkeypatch.setattr(diagnostics, 'ground_truth_scalars', lambda labels, unlabeled, own, partner,
                        names: seen.append((own, partner)) or real(labels, unlabeled, own, partner,
                                                                   names))
    train(world.load(watch_truth=True))
    assert len(seen) == STEPS
    for own, partner in seen:
        assert torch.equal(partner, own.flip(0)) and not torch.equal(partner, own)


def test_a_run_goes_on_with_other_panels(tiny_world):
    world = tiny_world()
    interrupted(world.load(), STEPS + 1)
    train(world.load(panel_every=2, panel_images=1, watch_truth=True))
    assert [step for step, _, _ in images(world.save_path)['panels/unlabeled']] == [6, 8]


@pytest.mark.parametrize('size', [1, 2])
def test_a_supervised_run_shows_its_labeled_images(tiny_world, size):
    world = tiny_world(n_labeled=4, method='supervised', epochs=1, batch_size=size)
    train(world.load())
    last = 4 // size
    assert images(world.save_path) == {
        'panels/labeled': [(last, 3 * 128 + 2 * 4, 14 + size * 132 - 4)]}
    assert not any(tag.startswith('pseudo/') for tag in scalars(world.save_path))


def test_warm_up_shows_no_labels_of_the_image_level(tiny_world, capsys):
    world = tiny_world(epochs=1, warm_up_epochs=1, panel_every=1, n_unlabeled=3, batch_size=1)
    train(world.load())
    assert len(images(world.save_path)['panels/unlabeled']) == 3
    tags = set(scalars(world.save_path))
    assert not any('pseudo/image' in tag for tag in tags) and 'train/agreement' not in tags
    assert any('pseudo/feature/predicted' in tag for tag in tags)
    assert 'warning: epoch' not in capsys.readouterr().out


def test_bad_masks_of_unlabeled_images_are_named_once_and_harm_nothing(tiny_world, capsys):
    world = tiny_world(panel_every=1, watch_truth=True, epochs=2, batch_size=3)
    name_masks(world, [0, 1, 2], bad=[0, 2])
    os.remove(os.path.join(world.root, 'masks/hidden1.png'))
    train(world.load())
    lines = [line for line in capsys.readouterr().out.splitlines() if 'watch_truth:' in line]
    assert '3 of 9 lines' in lines[0]
    assert [sum(f'line {n}:' in line for line in lines) for n in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert len(lines) == 4 and any('value 200' in line for line in lines)


def test_a_list_without_masks_has_no_ground_truth_to_watch(tiny_world, capsys):
    world = tiny_world(panel_every=1, watch_truth=True, epochs=1)
    train(world.load())
    line, = [line for line in capsys.readouterr().out.splitlines() if 'watch_truth:' in line]
    assert world.unlabeled in line and 'no ground truth' in line
    assert not any('correct' in tag for tag in scalars(world.save_path))


@pytest.mark.parametrize('selection, gate, words', [
    ('class_max', 0.999999, 'but never selected: class 0, class 1, class 2'), ('none', 0.9, '')])
def test_classes_without_labels_are_named_when_they_change(tiny_world, capsys, selection, gate,
                                                           words):
    world = tiny_world(epochs=3, selection=selection, gate=gate, lr=1e-9)
    train(world.load())
    lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if 'selected pseudo-label' in line]
    if words:
        # Nothing changes: said in the first epoch only.
        assert 'epoch 1: 3 of 3 classes' in lines[0] and len(lines) == 1
    else:
        assert all('never selected' not in line for line in lines)


# ---- selecting the best

def scripted(monkeypatch, by_list):
    """The k-th evaluation of a list gives {role: mIoU} = by_list[images of the list][k]."""
    real, calls = engine.evaluate, {}

    def evaluate(models, cfg, samples, world, **kwargs):
        found = real(models, cfg, samples, world, **kwargs)
        number = calls[len(samples)] = calls.get(len(samples), -1) + 1
        return {role: score._replace(miou=by_list[len(samples)][role][number])
                for role, score in found.items()}
    monkeypatch.setattr(engine, 'evaluate', evaluate)


def held_out(world, count):
    """Moves the first samples of val into a list of their own; returns its path."""
    with open(world.val) as file:
        lines = file.readlines()
    path = os.path.join(os.path.dirname(world.val), 'held_out.txt')
    for name, part in ((path, lines[:count]), (world.val, lines[count:])):
        with open(name, 'w') as file:
            file.writelines(part)
    return path


VAL = {'student': [50.0, 60.0, 70.0, 55.0], 'teacher': [75.0, 62.0, 61.0, 62.0]}
HELD = {'student': [10.0, 40.0, 20.0, 30.0], 'teacher': [5.0, 6.0, 8.0, 8.0]}


def test_the_summary_puts_best_and_last_side_by_side(tiny_world, monkeypatch):
    world = tiny_world(epochs=4, n_unlabeled=2, n_val=2)
    scripted(monkeypatch, {2: VAL})
    run = train(world.load())
    lines, summary = metrics(world.save_path), all_records(world.save_path)[-1]
    assert summary['best'] == {'student': {'miou': 70.0, 'epoch': 3},
                               'teacher': {'miou': 75.0, 'epoch': 1}}
    assert summary['last'] == {'student': {'miou': 55.0, 'epoch': 4},
                               'teacher': {'miou': 62.0, 'epoch': 4}}
    assert (summary['selected_on'], summary['evaluations'], summary['epoch']) == ('val', 4, 4)
    assert (summary['protocol'], summary['absent'], summary['processes']) == ('original', 'skip', 1)
    assert summary['lists'] == lines[-1]['lists'] and summary['seconds'] == lines[-1]['seconds']
    assert run.progress.best == {'student': 70.0, 'teacher': 75.0}
    with open(os.path.join(world.save_path, 'train.log')) as file:
        text = file.read().split('finished: ')[1].splitlines()
    numbers = [line.split()[-2:] for line in text]
    assert ['70.00', '75.00'] in numbers and ['55.00', '62.00'] in numbers and ['3', '1'] in numbers
    assert '4 evaluations on val itself' in text[-1]


def test_another_list_selects_and_val_is_reported(tiny_world, monkeypatch):
    world = tiny_world(epochs=4, n_unlabeled=2, n_val=3)
    path = held_out(world, 2)
    scripted(monkeypatch, {1: VAL, 2: HELD})
    cfg = world.load(select_on=path)
    run = train(cfg)
    lines, summary = metrics(world.save_path), all_records(world.save_path)[-1]
    assert [line['student'] for line in lines] == VAL['student']
    assert [line['select_on'] for line in lines] == [
        {'student': s, 'teacher': t} for s, t in zip(HELD['student'], HELD['teacher'])]
    assert summary['selected_on'] == 'select_on'
    # Of equal scores the first is kept.
    assert summary['best'] == {'student': {'miou': 60.0, 'epoch': 2, 'select_on': 40.0},
                               'teacher': {'miou': 61.0, 'epoch': 3, 'select_on': 8.0}}
    assert summary['last'] == {'student': {'miou': 55.0, 'epoch': 4, 'select_on': 30.0},
                               'teacher': {'miou': 62.0, 'epoch': 4, 'select_on': 8.0}}
    assert summary['lists']['select_on']['lines'] == 2
    for name, role in (('best.pth', 'student'), ('t_best.pth', 'teacher')):
        saved = read(world.save_path, name)
        assert {key: saved[key] for key in ('miou', 'epoch')} == {
            key: summary['best'][role][key] for key in ('miou', 'epoch')}
    assert run.progress.best == {'student': 40.0, 'teacher': 8.0}
    assert scalars(world.save_path)['select_on/student/mIoU'] == list(zip([1, 2, 3, 4],
                                                                         HELD['student']))
    with open(os.path.join(world.save_path, 'train.log')) as file:
        log = file.read()
    assert 'select_on list: own list, 2 lines' in log and 'highest mIoU on select_on' in log
    assert 'mIoU on select_on: student 30.00, teacher 8.00' in log


def test_the_selecting_list_is_evaluated_as_val_is(tiny_world):
    from dssn.data.lists import read_list
    from dssn.inference.evaluation import evaluate
    world = tiny_world(epochs=1, n_unlabeled=2, n_val=3)
    cfg = world.load(select_on=held_out(world, 2))
    run = train(cfg)
    line, = metrics(world.save_path)
    expected = evaluate(run.networks.by_role(), cfg, read_list(cfg.select_on), World())
    assert line['select_on'] == {role: score.miou for role, score in expected.items()}


# ---- methods

def test_the_first_step_copies_the_student_and_later_ones_average(tiny_world, monkeypatch):
    from dssn import ema
    world = tiny_world(epochs=1, teacher_bn='running', beta=0.9, log_every=1)
    seen, real = [], ema.update

    def update(teacher, student, keep_rate):
        before = {name: t.clone() for name, t in teacher.state_dict().items()}
        real(teacher, student, keep_rate)
        seen.append((before, {n: t.clone() for n, t in student.state_dict().items()},
                     {n: t.clone() for n, t in teacher.state_dict().items()}))
    monkeypatch.setattr(ema, 'update', update)
    train(world.load())
    assert len(seen) == STEPS
    assert_equal(dict(seen[0][2]), dict(seen[0][1]))
    for before, student, after in seen[1:]:
        for name in before:
            if before[name].is_floating_point():
                expected = 0.9 * before[name] + (1 - 0.9) * student[name]
                assert torch.allclose(after[name], expected, atol=1e-6), name
            else:
                assert torch.equal(after[name], student[name]), name
    # Running statistics move too: the student's two passes a step are counted.
    counts = [name for name in seen[-1][1] if name.endswith('num_batches_tracked')]
    assert int(seen[-1][1][counts[0]]) == 2 * STEPS
    # No pseudo-labels of the strong views in the first step.
    assert [step for step, _ in scalars(world.save_path)['train/image1']] == [2, 3, 4]


def test_warm_up_by_epochs_keeps_the_teacher_a_copy(tiny_world):
    world = tiny_world(warm_up_epochs=2)
    run = train(world.load())
    student, teacher = [dict(network.state_dict()) for network in run.networks.by_role().values()]
    assert_equal(student, teacher)
    assert 'train/image1' not in scalars(world.save_path)


def test_the_teacher_has_no_gradient_and_the_student_moves(tiny_world):
    run = start(tiny_world(epochs=1).load(), World())
    before = [p.clone() for p in run.networks.student.parameters()]
    run.fit()
    run.log.close()
    assert all(p.grad is None and not p.requires_grad for p in run.networks.teacher.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, run.networks.student.parameters()))


def test_a_supervised_run_has_no_teacher_and_needs_no_unlabeled_list(tiny_world):
    world = tiny_world(n_labeled=7, method='supervised')
    run = train(world.load(unlabeled_id_path=''))
    assert list(run.networks.by_role()) == ['student']
    lines = metrics(world.save_path)
    assert [line['iteration'] for line in lines] == [3, 6]  # 7 labeled images in batches of 2
    assert [(line['teacher'], line['teacher_iou']) for line in lines] == [(None, None)] * 2
    assert not os.path.exists(os.path.join(world.save_path, 't_best.pth'))
    assert 'teacher' not in read(world.save_path)


def test_training_starts_from_a_checkpoint_of_another_class_count(tiny_world, capsys):
    source = tiny_world(epochs=1, method='supervised')
    train(source.load())
    path = os.path.join(source.save_path, 'best.pth')
    world = tiny_world(nclass=4, init_from=path)
    capsys.readouterr()
    run = start(world.load(), World())
    run.log.close()
    theirs, ours = read(source.save_path, 'best.pth')['model'], run.networks.student.state_dict()
    assert ours['classifier.weight'].shape[0] == 4
    for name in ours:
        if not name.startswith('classifier.'):
            assert torch.equal(ours[name], theirs[name]), name
            assert torch.equal(run.networks.teacher.state_dict()[name], theirs[name]), name
    out = capsys.readouterr().out
    assert path in out and 'classifier.weight' in out


# ---- edges

@pytest.mark.parametrize('criterion', ['CELoss', 'OHEM'])
@pytest.mark.parametrize('method', ['DSSN', 'supervised'])
def test_labels_without_a_valid_pixel_train_on_unharmed(tiny_world, method, criterion):
    world = tiny_world(epochs=1, method=method, log_every=1, criterion={'name': criterion},
                       skip_check=True)
    folder = os.path.join(world.root, 'masks')
    for name in os.listdir(folder):
        mask = Image.open(os.path.join(folder, name))
        if 'val' not in name:
            Image.new('L', mask.size, 255).save(os.path.join(folder, name))
    run = train(world.load())
    assert all(value == 0 for _, value in scalars(world.save_path)['train/supervised'])
    assert all(bool(torch.isfinite(p).all()) for p in run.networks.student.parameters())


@pytest.mark.parametrize('partner', ['same', 'other'])
def test_batch_of_one(tiny_world, partner):
    world = tiny_world(n_unlabeled=3, batch_size=1, cutmix_partner=partner)
    run = train(world.load())
    assert [line['iteration'] for line in metrics(world.save_path)] == [3, 6]
    assert all(bool(torch.isfinite(t).all()) for t in run.networks.student.state_dict().values())


def test_one_image_of_each_kind(tiny_world):
    world = tiny_world(n_labeled=1, n_unlabeled=1, n_val=1, batch_size=1, epochs=1,
                       cutmix_partner='other')
    train(world.load())
    assert read(world.save_path)['step'] == 1


def poison(monkeypatch, at):
    """From call `at` on (from 1), DSSN's contrastive loss is not a number."""
    from dssn.methods import dssn
    real, calls = dssn.pixel_contrast, []

    def pixel_contrast(a, b):
        calls.append(1)
        loss = real(a, b)
        # The image level is asked first in a step, then the feature level.
        return loss * float('nan') if len(calls) % 2 and len(calls) // 2 + 1 >= at else loss
    monkeypatch.setattr(dssn, 'pixel_contrast', pixel_contrast)


def test_a_loss_that_is_not_finite_stops_with_its_name_and_step(tiny_world, monkeypatch):
    world = tiny_world(log_every=1)
    poison(monkeypatch, 3)
    with pytest.raises(UserError, match=r'non-finite.*\b3\b.*contrast_image'):
        train(world.load())


def test_no_checkpoint_holds_weights_that_are_not_finite(tiny_world, monkeypatch):
    # Fewer steps an epoch than between lines of the log: the check must not come after the save.
    world = tiny_world(log_every=50, epochs=3)
    poison(monkeypatch, STEPS + 2)
    with pytest.raises(UserError, match='non-finite'):
        train(world.load())
    assert read(world.save_path)['epoch'] == 1


def test_the_term_that_went_first_is_named(tiny_world, monkeypatch):
    # Later steps have bad terms as well.
    world = tiny_world(log_every=50, epochs=1)
    poison(monkeypatch, 2)
    with pytest.raises(UserError, match='non-finite.*contrast_image'):
        train(world.load())


@pytest.mark.parametrize('labeled', [0, 3])
def test_the_samples_are_named_and_the_networks_kept_for_inspection(tiny_world, monkeypatch,
                                                                    labeled):
    world = tiny_world(log_every=50, epochs=1, labeled_batch_size=labeled)
    poison(monkeypatch, 2)
    with pytest.raises(UserError) as caught:
        train(world.load())
    kept = read(world.save_path, 'nonfinite.pth')
    assert kept['fault']['step'] == 2 and kept['fault']['term'] == 'contrast_image'
    assert kept['fault']['samples'] in str(caught.value)
    schedule = Schedule(world.load(), 5, 9)
    names = [word.strip(',;') for word in kept['fault']['samples'].split() if '.jpg' in word]
    draws = schedule.batch(0, 1)
    assert names == ([f'images/labeled{draw.labeled}.jpg' for draw in draws]
                     + [f'images/unlabeled{draw.unlabeled}.jpg' for draw in draws[:2]]
                     + [f'images/unlabeled{draw.partner}.jpg' for draw in draws[:2]])
    # The student as one good step left it, though three more were trained.
    monkeypatch.undo()
    other = world.load(save_path=world.save_path + '2')
    stopped(other, 1)
    student = {name: value for name, value in read(other.save_path)['model'].items()
               if 'running' not in name and 'tracked' not in name}
    assert_equal({name: kept['model'][name] for name in student}, student)


@pytest.mark.parametrize('most, ends', [(20, False), (2, True)])
def test_steps_that_are_not_finite_can_be_skipped_up_to_a_limit(tiny_world, monkeypatch, capsys,
                                                                most, ends):
    world = tiny_world(log_every=1, epochs=2, on_nonfinite='skip', max_skips=most)
    poison(monkeypatch, 2 * STEPS - 2)  # the last three of eight steps
    if ends:
        with pytest.raises(UserError, match=r'3 skipped steps, max_skips = 2.*at step 8'):
            train(world.load())
        return
    run = train(world.load())
    assert run.progress.skips == read(world.save_path)['skips'] == 3
    text = capsys.readouterr().out
    assert text.count('warning: 1 steps were not finite and were skipped') == 3
    assert all(torch.isfinite(value).all() for value in read(world.save_path)['model'].values())


def test_a_step_draws_by_its_place_alone():
    drawn = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        update.seed_step(5, 7, 0)
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)
    for other in ((6, 7, 0), (5, 8, 0), (5, 7, 1)):
        update.seed_step(*other)
        assert not torch.equal(torch.rand(4), drawn[0])


# ---- learning rate and memory

@pytest.mark.parametrize('keys, processes, lr, words', [
    ({}, 3, 0.02, None), ({'reference_batch': 2}, 1, 0.02, None),
    ({'reference_batch': 8}, 2, 0.02, 'global batch is 4 .*meant for 8.*scale_lr=true.*0.01'),
    ({'reference_batch': 8, 'scale_lr': True}, 2, 0.01, 'scaled to 0.01'),
    # Labeled images count, as many as there are.
    ({'reference_batch': 8, 'labeled_batch_size': 4}, 2, 0.02, None),
    ({'reference_batch': 4, 'labeled_batch_size': 3, 'scale_lr': True}, 2, 0.03,
     r'global batch is 6 \(3 x 2 processes\).*scaled to 0.03'),
    ({'reference_batch': 4, 'labeled_batch_size': 8, 'scale_lr': True, 'method': 'supervised'}, 1,
     0.04, 'scaled to 0.04'),
])
def test_lr_is_for_a_global_batch(tiny_world, keys, processes, lr, words):
    found, notes = choose_lr(tiny_world(lr=0.02, batch_size=2).load(**keys), processes)
    assert found == pytest.approx(lr)
    if words:
        note, = notes
        assert re.search(words, note)
    else:
        assert notes == []


def test_a_scaled_lr_is_trained_with_and_said(tiny_world, capsys):
    world = tiny_world(lr=0.02, reference_batch=1, scale_lr=True, epochs=1)
    run = train(world.load())
    assert 'scaled to 0.04' in capsys.readouterr().out
    assert metrics(world.save_path)[0]['lr'] == pytest.approx(
        0.04 * (1 - (STEPS - 2) / STEPS) ** 0.9)
    assert run.networks.optimizer.param_groups[1]['lr'] == pytest.approx(
        run.cfg.lr_multi * run.networks.optimizer.param_groups[0]['lr'])


def test_a_gpu_that_is_too_small_is_told_what_helps(tiny_world, monkeypatch):
    def full(*_):
        raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...')
    monkeypatch.setattr(update.Update, 'gradients', full)
    cfg = tiny_world().load()
    with pytest.raises(UserError) as caught:
        train(cfg)
    text = str(caught.value)
    assert text.startswith('CUDA out of memory') and 'Tried' not in text
    options = [f'accumulate={cfg.batch_size}', 'checkpoint_backbone=true', 'lean=true', 'amp=bf16']
    assert all(option in text for option in options)
    some = tiny_world().load(lean=True, accumulate=2)
    with pytest.raises(UserError) as caught:
        train(some)
    assert 'lean=' not in str(caught.value) and 'accumulate=' not in str(caught.value)


@pytest.mark.parametrize('keys, size, advice', [
    ({'labeled_batch_size': 6, 'batch_size': 4}, 'labeled_batch_size 6, batch_size 4',
     'accumulate=2'),
    ({'labeled_batch_size': 3, 'batch_size': 2}, 'labeled_batch_size 3, batch_size 2', None),
    ({'labeled_batch_size': 3, 'method': 'supervised'}, 'labeled_batch_size 3', 'accumulate=3'),
    ({'method': 'supervised'}, 'batch_size 2', 'accumulate=2')], ids=str)
def test_parts_that_are_advised_are_legal(tiny_world, keys, size, advice):
    text = engine.memory_advice(tiny_world().load(**keys), 'CUDA out of memory. Tried')
    assert text.startswith(f'CUDA out of memory: {size} at crop_size 33 ')
    assert (re.findall(r'accumulate=\d+', text) or [None]) == [advice]
    if advice:
        tiny_world().load(**keys, accumulate=int(advice.split('=')[1]))


@pytest.mark.parametrize('keys, images', [
    ({}, 4), ({'labeled_batch_size': 3}, 5), ({'labeled_batch_size': 1, 'batch_size': 4}, 5),
    ({'method': 'supervised'}, 2), ({'method': 'supervised', 'labeled_batch_size': 3}, 3)], ids=str)
def test_images_a_second_are_those_of_both_kinds(tiny_world, monkeypatch, keys, images):
    real, counts = Logbook.step, []

    def step(self, *args, **kwargs):
        counts.append(kwargs['images'])
        real(self, *args, **kwargs)
    monkeypatch.setattr(Logbook, 'step', step)
    train(tiny_world(epochs=1, **keys).load())
    assert set(counts) == {images}


def test_a_step_trains_on_what_the_schedule_says(tiny_world, monkeypatch):
    world, seen = tiny_world(labeled_batch_size=3, epochs=1), []
    real = update.Update.gradients

    def gradients(self, batch, step):
        parts = batch.labeled, batch.unlabeled, batch.partner
        seen.append([part.index.tolist() for part in parts])
        return real(self, batch, step)
    monkeypatch.setattr(update.Update, 'gradients', gradients)
    train(world.load())
    schedule = Schedule(world.load(), 5, 9)
    assert len(seen) == STEPS
    for step, found in enumerate(seen):
        draws = schedule.batch(0, step)
        assert found == [[draw.labeled for draw in draws], [draw.unlabeled for draw in draws[:2]],
                         [draw.partner for draw in draws[:2]]]
    labeled = [index for found in seen for index in found[0]]
    assert sorted(labeled[:5]) == sorted(labeled[5:10]) == list(range(5))


def test_other_errors_of_pytorch_are_not_hidden(tiny_world, monkeypatch):
    def wrong(*_):
        raise RuntimeError('shapes')
    monkeypatch.setattr(update.Update, 'gradients', wrong)
    with pytest.raises(RuntimeError, match='shapes'):
        train(tiny_world().load())


def test_peak_memory_is_said_after_the_first_step(tiny_world, capsys):
    train(tiny_world(epochs=1).load())
    lines = [line for line in capsys.readouterr().out.splitlines() if 'peak memory' in line]
    assert len(lines) == 1 and lines[0].endswith(' MiB')


@pytest.mark.parametrize('method', ['DSSN', 'supervised'])
def test_a_run_in_parts_resumes_as_the_undisturbed_one(tiny_world, method):
    world = tiny_world(n_labeled=9, method=method, batch_size=4, accumulate=2)
    whole, stopped = world.save_path + 'whole', world.save_path + 'stopped'
    train(world.load(save_path=whole))
    interrupted(world.load(save_path=stopped), 3)  # 2 steps an epoch
    train(world.load(save_path=stopped))
    assert_same_run(whole, stopped)
