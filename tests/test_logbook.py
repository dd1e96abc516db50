"""Records of a run: means between lines, files after a restart, and who writes them."""
import json
import os
import subprocess
import sys

import pytest
import torch

from dssn.distributed import World
from dssn.errors import UserError
from dssn.inference.evaluation import scores
from dssn.methods import Terms
from dssn.run.logbook import Logbook, peak_memory

NAMES = ['a', 'b', 'c']
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCORES = scores(torch.tensor([[2, 0, 0], [1, 1, 0], [0, 0, 0]]))


@pytest.fixture
def book(tiny_world):
    """An open logbook of 6 steps, a line every 2."""
    cfg = tiny_world(log_every=2).load()
    os.makedirs(cfg.save_path)
    log = Logbook(cfg, World(), 6)
    log.open('text: 1\n', 0, 0)
    yield log
    log.close()


def terms(value, share=0.5):
    return Terms({'supervised': torch.tensor(value, requires_grad=True)},
                 {'selected': torch.tensor(share)})


def feed(log, values):
    for step, value in enumerate(values):
        log.step(0, step, terms(value), torch.tensor(10 * value), 0.1, images=4)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(folder)
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()['scalars']}


def test_lines_hold_means_since_the_last_one(book):
    feed(book, [1.0, 2.0, 3.0, 5.0])
    book.close()
    got = scalars(book.cfg.save_path)
    assert got['train/supervised'] == [(2, 1.5), (4, 4.0)]
    assert got['train/loss'] == [(2, 15.0), (4, 40.0)]
    assert got['train/selected'] == [(2, 0.5), (4, 0.5)]
    assert all(value > 0 for _, value in got['train/images_per_second'])
    with open(os.path.join(book.cfg.save_path, 'train.log')) as file:
        assert 'step 4/6' in file.read()


def test_a_term_that_is_not_in_every_step_has_the_mean_of_its_own_steps(book):
    book.step(0, 0, Terms({'supervised': torch.tensor(1.0)}, {}), torch.tensor(1.0), 0.1, 4)
    book.step(0, 1, Terms({'supervised': torch.tensor(3.0), 'image1': torch.tensor(8.0)}, {}),
              torch.tensor(1.0), 0.1, 4)
    book.close()
    got = scalars(book.cfg.save_path)
    assert (got['train/supervised'], got['train/image1']) == ([(2, 2.0)], [(2, 8.0)])


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_term_that_is_not_finite_is_named_with_its_steps(book, bad):
    feed(book, [1.0, 2.0, 1.0])
    with pytest.raises(UserError, match=r'non-finite.*\b4\b.*supervised'):
        book.step(0, 3, terms(bad), torch.tensor(1.0), 0.1, 4)


def test_other_ranks_check_but_write_nothing(tiny_world, capsys):
    cfg = tiny_world(log_every=1).load()
    os.makedirs(cfg.save_path)
    log = Logbook(cfg, World(1, 1, 2), 6)
    log.open('', 0, 0)
    log.write('hello')
    feed(log, [1.0])
    log.evaluation(1, 4, {'student': SCORES}, NAMES, 0.1, 1.0)
    with pytest.raises(UserError, match='supervised'):
        feed(log, [float('nan')])
    log.close()
    assert os.listdir(cfg.save_path) == [] and capsys.readouterr().out == ''


def test_an_evaluation_is_one_line_of_json(book):
    book.evaluation(1, 4, {'student': SCORES, 'teacher': SCORES}, NAMES, 0.25, 3.5)
    with open(os.path.join(book.cfg.save_path, 'metrics.jsonl')) as file:
        line, = [json.loads(text) for text in file]
    assert line['kind'] == 'evaluation' and (line['epoch'], line['iteration']) == (1, 4)
    assert line['student'] == line['teacher'] == pytest.approx((200 / 3 + 50) / 2)
    assert line['teacher_iou'] == {'a': pytest.approx(200 / 3), 'b': 50.0, 'c': None}
    assert (line['lr'], line['seconds']) == (0.25, 3.5)
    book.close()
    shown = scalars(book.cfg.save_path)
    assert shown['eval/student/IoU/b'] == [(4, 50.0)]
    assert 'eval/student/IoU/c' not in shown  # an absent class has no value


def test_another_lists_scores_go_with_an_evaluation(book):
    better = SCORES._replace(miou=77.125)
    book.evaluation(1, 4, {'student': SCORES}, NAMES, 0.25, 3.5, {'student': better})
    book.close()
    with open(os.path.join(book.cfg.save_path, 'metrics.jsonl')) as file:
        line = json.loads(file.read())
    assert line['select_on'] == {'student': 77.125} and line['student'] == SCORES.miou
    assert (line['protocol'], line['absent'], line['processes']) == ('original', 'skip', 1)
    shown = scalars(book.cfg.save_path)
    assert shown['select_on/student/mIoU'] == [(4, 77.125)]


@pytest.mark.parametrize('epoch, kept', [(0, []), (1, [1]), (2, [1, 2])])
def test_evaluations_that_come_again_are_forgotten(tiny_world, epoch, kept):
    cfg = tiny_world().load()
    os.makedirs(cfg.save_path)
    path = os.path.join(cfg.save_path, 'metrics.jsonl')
    with open(path, 'w') as file:
        file.write('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n{"kind": "summary", "epoch": 1}\n'
                   '{"epoch": 1, "half')
    log = Logbook(cfg, World(), 6)
    log.open('', epoch, 4 * epoch)
    log.close()
    with open(path) as file:
        assert [json.loads(line)['epoch'] for line in file] == kept


def test_a_restart_keeps_what_was_done_before_it(book):
    # Resuming at step 4: all up to it stands, what came after is drawn again.
    feed(book, [1.0] * 6)
    book.evaluation(1, 4, {'student': SCORES}, NAMES, 0.1, 1.0)
    book.close()
    again = Logbook(book.cfg, World(), 6)
    again.open('', 1, 4)
    for step in (4, 5):
        again.step(1, step, terms(7.0), torch.tensor(7.0), 0.1, 4)
    again.close()
    shown = scalars(book.cfg.save_path)
    assert shown['train/supervised'] == [(2, 1.0), (4, 1.0), (6, 7.0)]
    assert [step for step, _ in shown['eval/student/mIoU']] == [4]


def test_a_fall_is_said_once_though_the_run_was_resumed(book, capsys):
    def evaluate(log, epochs, miou):
        for epoch in epochs:
            log.evaluation(epoch, epoch, {'student': SCORES._replace(miou=miou)}, NAMES, 0.1, 1.0)
    evaluate(book, [1], 60.0)
    evaluate(book, [2, 3, 4], 50.0)
    book.close()
    again = Logbook(book.cfg, World(), 6)
    again.open('', 3, 3)  # stopped before the checkpoint of epoch 4
    evaluate(again, [4, 5], 50.0)
    assert 'warning' not in capsys.readouterr().out
    evaluate(again, [6, 7], 50.0)
    again.close()
    line, = [line for line in capsys.readouterr().out.splitlines() if 'warning' in line]
    for word in ("student's mIoU", '60.00 at epoch 1', 'now 50.00 at epoch 6'):
        assert word in line


@pytest.mark.parametrize('every, due', [(0, []), (1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (3, [3, 6]),
                                        (99, [6])])
def test_what_comes_every_so_many_steps_comes_after_the_last_too(book, every, due):
    assert [step + 1 for step in range(6) if book.is_due(step, every)] == due


def test_time_that_was_not_training_is_left_out_of_the_speed(book, monkeypatch):
    from dssn.run import logbook
    clock = [book.since]
    monkeypatch.setattr(logbook.time, 'time', lambda: clock[0])
    feed(book, [1.0])
    clock[0] += 102
    book.exclude(100)
    book.step(0, 1, terms(1.0), torch.tensor(1.0), 0.1, images=4)
    monkeypatch.undo()
    book.close()
    assert scalars(book.cfg.save_path)['train/images_per_second'] == [(2, pytest.approx(4.0))]


def test_peak_memory_is_the_process_own():
    """Not that of the process which started it: getrusage gives that to a child."""
    code = ('import torch; from dssn.run.logbook import peak_memory; '
            'print(peak_memory(torch.device("cpu")))')
    held = bytearray(2 * 2 ** 30)
    held[::4096] = b'\1' * len(held[::4096])
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                          check=True)
    assert 50 < float(done.stdout) < 1800
    assert peak_memory(torch.device('cpu')) > 2000
