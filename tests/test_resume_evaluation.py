"""A run that goes on with other evaluations, and the ways to train on with other epochs."""
import json
import os
import re
import shlex

import pytest
import torch
from commands import report
from test_engine import (
    all_records,
    assert_equal,
    interrupted,
    read,
    scripted,
    train,
)

import train as program
from dssn import engine
from dssn.distributed import World
from dssn.engine import start
from dssn.errors import UserError
from dssn.inference import evaluation
from dssn.models.weights import network_weights
from dssn.networks import Networks
from dssn.run import checkpoint
from dssn.run.metrics import fall_text
from dssn.tools.run_folders import curve, find_runs, make_rows

WEIGHTS = ('model', 'teacher', 'optimizer')
STEPS = 2  # of an epoch of the small world


@pytest.fixture
def small_world(tiny_world):
    """As `tiny_world`, with fewer images."""
    return lambda **keys: tiny_world(n_labeled=2, n_unlabeled=5, panel_every=0, **keys)


UNDISTURBED = {}  # {epochs: (latest.pth, best.pth, t_best.pth)}; all small worlds are the same


def undisturbed(world):
    """The states of a run of the world that was never stopped."""
    cfg = world.load()
    if cfg.epochs not in UNDISTURBED:
        folder = world.save_path + 'undisturbed'
        train(world.load(save_path=folder))
        UNDISTURBED[cfg.epochs] = [read(folder, name) for name in
                                   ('latest.pth', 'best.pth', 't_best.pth')]
    return UNDISTURBED[cfg.epochs]


def has_same_weights(folder, world):
    for key in WEIGHTS:
        assert_equal(read(folder)[key], undisturbed(world)[0][key], key)


def other_list(world, name='other_val.txt', lines=1):
    path = os.path.join(os.path.dirname(world.val), name)
    with open(world.val) as file:
        kept = file.readlines()[:lines]
    with open(path, 'w') as file:
        file.writelines(kept)
    return path


CHANGES = {
    'protocol': lambda world: dict(protocol='center_crop', crop_size=33),
    'val_id_path': lambda world: dict(val_id_path=other_list(world)),
    'eval_every': lambda world: dict(eval_every=3),
    'eval_batch_size': lambda world: dict(eval_batch_size=1),
    'eval_amp': lambda world: dict(eval_amp='bf16'),
    'select_on': lambda world: dict(val_id_path=other_list(world, lines=1),
                                    select_on=second_half(world)),
    'everything': lambda world: dict(protocol='sliding_window', val_id_path=other_list(world),
                                     eval_every=3),
}


def second_half(world):
    path = os.path.join(os.path.dirname(world.val), 'selecting.txt')
    with open(world.val) as file:
        lines = file.readlines()[1:]
    with open(path, 'w') as file:
        file.writelines(lines)
    return path


@pytest.mark.parametrize('changed', CHANGES)
def test_other_evaluations_change_no_weight_and_are_logged(small_world, changed, capsys):
    if changed == 'eval_amp' and not hasattr(torch, 'autocast'):
        pytest.skip('this PyTorch has no torch.autocast')
    world = small_world(epochs=3)
    again = world.save_path
    interrupted(world.load(save_path=again), STEPS + 1)
    old = read(again, 'best.pth')
    changes = CHANGES[changed](world)
    capsys.readouterr()
    run = train(world.load(save_path=again, **changes))
    has_same_weights(again, world)
    out = capsys.readouterr().out
    for name in changes:
        assert name == 'crop_size' or f'{name} was ' in out
    line, = re.findall('resuming .*', out)
    anew = changed not in ('eval_every', 'eval_batch_size')
    assert ('the best so far is kept' in line) == anew
    kept = f'best_until_epoch{changes.get("eval_every", 2) - 1}.pth'
    assert (f'that before is kept as {kept} and t_{kept}' in out) == anew
    assert os.path.exists(os.path.join(again, kept)) == anew
    records = all_records(again)
    epochs = [record['epoch'] for record in records[:-1]]
    assert epochs == [1] + [epoch for epoch in (2, 3) if epoch == 3
                            or epoch % changes.get('eval_every', 1) == 0]
    assert [bool(record.get('anew')) for record in records[:-1]] == [
        False, anew] + [False] * (len(epochs) - 2)
    summary, counted = records[-1], records[anew:-1]
    assert summary['evaluations'] == len(counted)
    role = lambda record: record.get('select_on', record)['student']  # noqa: E731
    best = max(counted, key=role)
    assert summary['best']['student']['epoch'] == best['epoch'] == read(again, 'best.pth')['epoch']
    assert run.progress.best['student'] == role(best)
    if anew:
        assert_equal(read(again, kept), old)
        assert summary['anew'] == {'epoch': epochs[1], 'changes': records[1]['anew']}
        assert f'evaluations before epoch {epochs[1]} are left out' in out
        assert 'scores are not comparable with those before' in out
        assert counted[-1]['protocol'] == changes.get('protocol', 'original')


def test_the_other_evaluation_is_that_of_a_run_that_always_had_it(small_world):
    world = small_world(epochs=2)
    always, later = world.save_path + 'always', world.save_path + 'later'
    other = dict(protocol='center_crop', val_id_path=other_list(world, lines=2))
    train(world.load(save_path=always, **other))
    interrupted(world.load(save_path=later), STEPS + 1)
    train(world.load(save_path=later, **other))
    scores = [[record[role] for record in all_records(folder)[1:2]
               for role in ('student', 'student_iou', 'teacher', 'lists', 'protocol')]
              for folder in (always, later)]
    assert scores[0] == scores[1]
    assert all_records(later)[-1]['protocol'] == 'center_crop'


def test_a_run_that_failed_while_evaluating_goes_on_with_another_list(small_world, monkeypatch):
    world = small_world(epochs=2)
    again = world.save_path

    def fail(*args):
        raise UserError('the mask is bad')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, 'confusion_matrix', fail)
        with pytest.raises(UserError, match='the mask is bad'):
            train(world.load(save_path=again))
    assert (read(again)['epoch'], read(again)['step']) == (0, STEPS)
    train(world.load(save_path=again, val_id_path=other_list(world), protocol='center_crop'))
    has_same_weights(again, world)
    records = all_records(again)
    # There was no score before, so there is nothing that is not comparable.
    assert [record['epoch'] for record in records] == [1, 2, 2]
    assert not any('anew' in record for record in records)
    assert not [name for name in os.listdir(again) if 'until' in name]


def test_settings_that_come_back_before_an_evaluation_change_nothing(small_world):
    world = small_world(epochs=3)
    again = world.save_path
    interrupted(world.load(save_path=again), STEPS + 1)
    interrupted(world.load(save_path=again, protocol='center_crop', save_every=1), 1)
    assert read(again)['config']['protocol'] == 'center_crop'
    train(world.load(save_path=again))
    has_same_weights(again, world)
    assert not any('anew' in record for record in all_records(again))
    assert read(again)['best'] == undisturbed(world)[0]['best']
    # And if they do not come back, the change is not forgotten.
    third = world.save_path + 'third'
    interrupted(world.load(save_path=third), STEPS + 1)
    interrupted(world.load(save_path=third, protocol='center_crop', save_every=1), 1)
    train(world.load(save_path=third, protocol='center_crop'))
    assert [bool(record.get('anew')) for record in all_records(third)] == [0, 1, 0, 1]


@pytest.mark.parametrize('back', [True, False])
@pytest.mark.parametrize('failing', ['t_best.pth', 'latest.pth'])
def test_a_run_killed_while_it_saves_the_other_best_loses_nothing(small_world, failing, back):
    world = small_world(epochs=2)
    again = world.save_path
    interrupted(world.load(save_path=again), STEPS + 1)
    old = read(again, 'best.pth')
    real = checkpoint.save

    def save(path, content, keep=None):
        if os.path.basename(path) == failing and content['epoch'] == 2:
            raise KeyboardInterrupt
        real(path, content, keep)
    other = dict(protocol='center_crop')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, 'save', save)
        with pytest.raises(KeyboardInterrupt):
            train(world.load(save_path=again, **other))
    assert read(again, 'best.pth')['epoch'] == 2 and read(again)['epoch'] == 1
    train(world.load(save_path=again, **({} if back else other)))
    has_same_weights(again, world)
    if back:
        for name, expected in zip(('best.pth', 't_best.pth'), undisturbed(world)[1:]):
            assert_equal(read(again, name)['model'], expected['model'])
    else:
        assert_equal(read(again, 'best_until_epoch1.pth'), old)
        assert read(again, 'best.pth')['epoch'] == 2


def test_a_save_that_fails_between_keeps_the_old_best(small_world, monkeypatch):
    world = small_world(epochs=3)
    interrupted(world.load(), STEPS + 1)
    old = read(world.save_path, 'best.pth')
    scripted(monkeypatch, {3: {'student': [1.0, 2.0], 'teacher': [1.0, 2.0]}})
    real = checkpoint.save

    def save(path, content, keep=None):
        if path.endswith('t_best.pth') and content['epoch'] == 2:
            raise OSError(28, 'No space left on device')
        real(path, content, keep)
    monkeypatch.setattr(checkpoint, 'save', save)
    train(world.load(protocol='center_crop'))
    assert_equal(read(world.save_path, 'best_until_epoch1.pth'), old)
    assert read(world.save_path, 'best.pth')['epoch'] == 3


def test_the_same_list_under_another_name_is_comparable_and_other_masks_are_not(small_world):
    world = small_world(epochs=2)
    for name, replace, anew in (('copy', None, False), ('masks', 'masks/val0', True)):
        folder = world.save_path + name
        path = other_list(world, name + '.txt', lines=9)
        if replace:
            with open(path) as file:
                text = file.read().replace('masks/val0', 'masks/val0_fine')
            with open(path, 'w') as file:
                file.write(text)
            os.link(os.path.join(world.root, 'masks/val0.png'),
                    os.path.join(world.root, 'masks/val0_fine.png'))
        interrupted(world.load(save_path=folder), STEPS + 1)
        train(world.load(save_path=folder, val_id_path=path))
        assert [bool(record.get('anew')) for record in all_records(folder)[:2]] == [False, anew]


def test_a_val_list_with_other_content_is_another_list(small_world, capsys):
    world = small_world(epochs=2)
    interrupted(world.load(), STEPS + 1)
    os.replace(other_list(world), world.val)
    train(world.load())
    assert re.search(r'resuming .*val list was .*3 lines.*is .*1 lines', capsys.readouterr().out)
    assert 'val list was' in all_records(world.save_path)[1]['anew']


def test_a_state_from_before_scores_had_their_origin(small_world):
    world = small_world(epochs=2)
    for name, change, anew in (('same', {}, False), ('other', {'protocol': 'center_crop'}, True),
                               ('list', {'val_id_path': other_list(world)}, True)):
        folder = world.save_path + name
        interrupted(world.load(save_path=folder), STEPS + 1)
        saved = read(folder)
        del saved['scored']
        checkpoint.save(os.path.join(folder, 'latest.pth'), saved)
        train(world.load(save_path=folder, **change))
        assert [bool(record.get('anew')) for record in all_records(folder)[:2]] == [False, anew]


def test_a_finished_run_is_not_evaluated_again_and_names_the_command(small_world, capsys):
    world = small_world(epochs=1)
    train(world.load())
    before = all_records(world.save_path)
    capsys.readouterr()
    path = other_list(world)
    train(world.load(protocol='center_crop', val_id_path=path, workers=1))
    out = capsys.readouterr().out
    command = re.search('`python (eval.py .*)`', out).group(1)
    assert 'already trained' in out and 'nothing is evaluated again' in out
    assert all_records(world.save_path) == before
    import eval as evaluating
    scores = os.path.join(os.path.dirname(world.val), 'scores.json')
    assert evaluating.main(shlex.split(command)[1:] + ['--json', scores]) == 0
    with open(scores) as file:
        found = json.load(file)
    assert (found['protocol'], found['id_path']) == ('center_crop', path)


def test_the_fall_of_scores_is_that_of_comparable_ones():
    def line(epoch, score, **more):
        return {'kind': 'evaluation', 'epoch': epoch, 'student': score, **more}
    first = [line(1, 90.0)] + [line(epoch, 50.0) for epoch in range(2, 6)]
    assert fall_text(first + [line(6, 50.0)], 'student')
    assert not fall_text(first + [line(6, 50.0, anew='protocol was a, is b')], 'student')


def test_reports_leave_out_what_is_not_comparable_and_name_it(small_world, monkeypatch, capsys):
    world = small_world(epochs=3)
    scripted(monkeypatch, {3: {'student': [90.0], 'teacher': [80.0]}})
    interrupted(world.load(), STEPS + 1)
    monkeypatch.undo()
    # Before the next evaluation the records are those of the old list, whatever the config names.
    interrupted(world.load(val_id_path=other_list(world), save_every=1), 1)
    (run,), _ = find_runs([world.save_path])
    assert run.lists['val'].startswith('own list, 3 lines') and run.lists['select_on'] == 'val'
    scripted(monkeypatch, {1: {'student': [40.0, 50.0], 'teacher': [30.0, 20.0]}})
    train(world.load(val_id_path=other_list(world)))
    (run,), _ = find_runs([world.save_path])
    assert run.lists['val'].startswith('own list, 1 lines')
    assert run.summary['best']['student'] == {'miou': 50.0, 'epoch': 3}
    assert run.summary['best']['teacher'] == {'miou': 30.0, 'epoch': 2}
    assert curve(make_rows([run])[0], 'student')[1] == [40.0, 50.0]
    capsys.readouterr()
    assert report([world.save_path]) == 0
    out = capsys.readouterr().out
    assert '50.00' in out and '90.00' not in out
    assert f'{world.save_path}: evaluations before epoch 2 are left out' in out


def test_a_fresh_start_moves_the_kept_best_aside(small_world):
    world = small_world(epochs=2)
    interrupted(world.load(), STEPS + 1)
    train(world.load(protocol='center_crop'))
    run = start(world.load(), World(), fresh=True)
    run.folder.leave()
    assert not [name for name in os.listdir(world.save_path) if name.endswith('.pth')]


def test_training_lists_stay_checked(small_world):
    world = small_world()
    interrupted(world.load(save_every=1), 1)
    with open(world.unlabeled) as file:
        lines = file.readlines()
    with open(world.unlabeled, 'w') as file:
        file.writelines(lines[1:])
    with pytest.raises(UserError, match='unlabeled list was'):
        start(world.load(protocol='center_crop'), World())


# ---- other epochs

@pytest.mark.parametrize('finished', [True, False])
def test_another_number_of_epochs_is_refused_with_two_ways_that_work(
        small_world, monkeypatch, finished):
    world = small_world(epochs=1)
    if finished:
        train(world.load())
    else:
        interrupted(world.load(save_every=1), 1)
    with pytest.raises(UserError, match='epochs was 1, is 2') as caught:
        start(world.load(epochs=2), World())
    text = str(caught.value)
    ways = [way.rstrip('.') for way in re.findall(
        r'((?:--set \S+ )?--save-path \S+)\. (?:To train|\(With)', text)]
    assert len(ways) == 2 and 'init_from' in ways[0] and 'init_from' not in ways[1]
    expected, first, real = read(world.save_path)['model'], [], engine.Run.fit
    start_weights = network_weights(Networks(world.load(), World()).student)

    def fit(run):
        first.append({name: tensor.clone() for name, tensor in
                      network_weights(run.networks.student).items()})
        real(run)
    monkeypatch.setattr(engine.Run, 'fit', fit)
    for number, way in enumerate(ways):
        arguments = ['--config', world.config_path, '--set', 'epochs=2'] + shlex.split(way)
        program.main(arguments)
        folder = shlex.split(way)[-1]
        assert read(folder)['epoch'] == 2
        assert_equal(first.pop(), expected if number == 0 else start_weights)
        program.main(arguments)  # and the same command again finds it finished
        first.pop()
    # The old run goes on, or is finished, as before.
    program.main(['--config', world.config_path])
    assert read(world.save_path)['epoch'] == 1


def test_other_settings_than_epochs_do_not_speak_of_epochs(small_world):
    world = small_world(epochs=1)
    train(world.load())
    with pytest.raises(UserError) as caught:
        start(world.load(lr=0.5), World())
    assert 'init_from' not in str(caught.value) and 'old values' in str(caught.value)
