"""Experiments: the grid, equal steps, skipped and continued runs, the table, the page."""
import contextlib
import glob
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

import pytest
import stand_in as stand_in_training
import torch
import yaml
from commands import experiments as main
from PIL import Image

from dssn import config
from dssn.data.lists import read_list
from dssn.data.loaders import Schedule
from dssn.errors import UserError
from dssn.run.lock import Lock
from dssn.tools.experiments import grid
from dssn.tools.experiments.page import PUBLISHED, published_table
from dssn.tools.experiments.pool import Deadline, Pool
from dssn.tools.experiments.progress import RunProgress
from dssn.tools.experiments.run_times import Cost, RunTimes
from dssn.yaml_text import read_mapping

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='shell scripts')
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHIPPED = sorted(path for path in glob.glob(os.path.join(ROOT, 'experiments', '*.yaml'))
                 if not path.endswith('published.yaml'))
FILE = dict(config='configs/tiny.yaml', splits=['all'], seeds=[1, 2],
            variants={'supervised': {'method': 'supervised'}, 'DSSN': {}})


@pytest.fixture
def here(tiny_checkout, monkeypatch):
    """Factory of a `Checkout` with experiments/mine.yaml; it becomes the current folder."""
    def make(keys=None, **experiment):
        checkout = tiny_checkout(**(keys or {}))
        os.mkdir(os.path.join(checkout.root, 'experiments'))
        monkeypatch.chdir(checkout.root)
        write(**experiment)
        return checkout
    return make


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Trainings that `ran` starts are stand-ins."""
    stand_in_training.replace_training(monkeypatch, tmp_path)


def write(**experiment):
    with open('experiments/mine.yaml', 'w') as file:
        yaml.safe_dump(dict(FILE, **experiment), file, sort_keys=False)


def planned(*assignments):
    return grid.plan_runs(grid.read_experiment('experiments/mine.yaml'), 'exp', assignments)


def start(checkout, *arguments, **environment):
    checkout.processes.append(subprocess.Popen(
        [sys.executable, '-m', 'dssn', 'experiments', *arguments], cwd=checkout.root,
        env=dict(checkout.environment, **environment), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        start_new_session=True))
    return checkout.processes[-1]


def ran(checkout, *arguments, status=0, **environment):
    """The output of `run` and of its trainings; it must end with a status.

    It is called in this process: a new one would import PyTorch first.
    """
    with tempfile.TemporaryFile('w+', buffering=1) as file:
        saved = [os.dup(number) for number in (1, 2)]
        with mock.patch.dict(os.environ, {**checkout.environment, **environment}, clear=True), \
                contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                for number in (1, 2):
                    os.dup2(file.fileno(), number)
                found = main(['run', 'experiments/mine.yaml', *arguments])
            finally:
                for number, other in zip((1, 2), saved):
                    os.dup2(other, number)
                    os.close(other)
        file.seek(0)
        output = file.read()
    assert found == status, output
    return output


def records(run):
    with open(os.path.join(run.folder, 'metrics.jsonl')) as file:
        return [json.loads(line) for line in file]


def without_clock(lines):
    return [{key: value for key, value in line.items()
             if not key.startswith(('seconds', 'peak_memory'))} for line in lines]


# ---- the grid

def test_the_grid_is_every_variant_on_every_split_with_every_seed(here):
    here(splits=['all', 'more'], seeds=[3, 1])
    os.rename('splits/tiny/all', 'splits/tiny/more')
    os.mkdir('splits/tiny/all')
    for name in ('labeled', 'unlabeled'):
        with open(f'splits/tiny/more/{name}.txt') as file, \
                open(f'splits/tiny/all/{name}.txt', 'w') as other:
            other.write(file.read())
    found = [(run.seed, run.split, run.variant) for run in planned()]
    assert found == [(seed, split, variant) for seed in (3, 1) for split in ('all', 'more')
                     for variant in ('supervised', 'DSSN')]
    assert len({run.folder for run in planned()}) == 8


def test_all_runs_make_the_same_number_of_steps(here):
    # 8 unlabeled images in batches of 2: 4 steps an epoch; 5 labeled ones in batches of 4: 1.
    here(variants={'supervised': {'method': 'supervised'}, 'fixmatch': {'method': 'fixmatch'},
                   'unimatch': {'method': 'unimatch'}, 'DSSN': {},
                   'one': {'method': 'supervised', 'batch_size': 1}}, settings={'epochs': 3})
    for run in planned():
        labeled, unlabeled = [len(read_list(path, masks=False)) for path in
                              (run.cfg.labeled_id_path, run.cfg.unlabeled_id_path)]
        assert (labeled, unlabeled) == (5, 8)
        schedule = Schedule(run.cfg, labeled, None if run.cfg.method == 'supervised' else unlabeled)
        assert run.cfg.epochs * schedule.steps_per_epoch == run.steps == 12
        assert run.cfg.batch_size == {'supervised': 4, 'one': 1}.get(run.variant, 2)


def test_supervised_runs_use_labeled_batch_size(here):
    here(settings={'labeled_batch_size': 3, 'reference_batch': 3}, variants={
        'supervised': {'method': 'supervised'}, 'DSSN': {}, 'few': {'labeled_batch_size': 1},
        'all': {'method': 'supervised', 'labeled_batch_size': 5},
        'twice': {'method': 'supervised', 'labeled_batch_size': 0}})
    runs = {run.variant: run for run in planned()}
    assert {name: run.cfg.labeled_images for name, run in runs.items()} == {
        'supervised': 3, 'DSSN': 3, 'few': 1, 'all': 5, 'twice': 4}
    assert {name: run.cfg.reference_batch for name, run in runs.items()} == {
        'supervised': 3, 'DSSN': 3, 'few': 3, 'all': 3, 'twice': 6}
    for run in runs.values():
        assert run.steps == 8
        unlabeled = None if run.cfg.method == 'supervised' else 8
        assert Schedule(run.cfg, 5, unlabeled).steps_per_epoch * run.cfg.epochs == 8


def test_several_processes_make_fewer_steps(here):
    here(processes=2)
    assert {run.steps for run in planned()} == {4}  # 2 epochs of 8 // (2 x 2)
    assert {run.cfg.epoch_steps for run in planned() if run.variant == 'supervised'} == {2}


def test_a_variant_may_have_a_length_and_seeds_of_its_own(here):
    # 4 steps an epoch. First seeds come before second ones, each in the order of the variants.
    here(settings={'epochs': 4}, variants={
        'supervised': {'method': 'supervised'}, 'short': {'length': 0.5, 'seeds': [7]},
        'long': {'method': 'supervised', 'length': 2, 'seeds': [7, 9]}, 'DSSN': {}})
    assert [(run.variant, run.seed, run.steps, run.cfg.epochs) for run in planned()] == [
        ('supervised', 1, 16, 4), ('short', 7, 8, 2), ('long', 7, 32, 8), ('DSSN', 1, 16, 4),
        ('supervised', 2, 16, 4), ('long', 9, 32, 8), ('DSSN', 2, 16, 4)]
    for run in planned():
        unlabeled = None if run.cfg.method == 'supervised' else 8
        assert Schedule(run.cfg, 5, unlabeled).steps_per_epoch * run.cfg.epochs == run.steps


def test_epoch_steps_applies_to_all_runs(here):
    here(settings={'epochs': 3, 'epoch_steps': 2})
    assert {(run.steps, run.cfg.epoch_steps) for run in planned()} == {(6, 2)}
    for run in planned():
        unlabeled = None if run.cfg.method == 'supervised' else 8
        assert Schedule(run.cfg, 5, unlabeled).steps_per_epoch == 2


def test_a_setting_of_one_variant_on_the_command_line(here):
    here(variants={'supervised': {'method': 'supervised', 'lr': 0.5}, 'a.b': {}, 'DSSN': {}},
         settings={'gate': 0.3})
    runs = planned('lr=0.25', 'supervised.lr=0.125', 'a.b.gate=0.75')[:3]
    assert [run.cfg.lr for run in runs] == [0.125, 0.25, 0.25]
    assert [run.cfg.gate for run in runs[1:]] == [0.75, 0.3]
    for text, part in (('DSN.gate=1', 'supervised, a.b, DSSN'), ('DSSN.method=fixmatch', 'method')):
        with pytest.raises(UserError, match=f'--set {text}: write key=value, or.*{part}'):
            planned(text)


def test_placeholders_in_texts_are_replaced(here):
    here(settings={'init_from': '{out}/{dataset}/x/seed{seed}/{split}.pth'})
    assert [run.cfg.init_from for run in planned()[::2]] == [
        'exp/tiny/x/seed1/all.pth', 'exp/tiny/x/seed2/all.pth']


def test_settings_reach_the_methods_that_have_them(here):
    here(settings={'gate': 0.5, 'eval_every': 2, 'reference_batch': 2}, variants={
        'supervised': {'method': 'supervised', 'lr': 0.01}, 'DSSN': {},
        'strict': {'gate': 0.7, 'criterion': {'name': 'OHEM', 'kwargs': {'min_kept': 7}}}})
    supervised, plain, strict = planned('crop_size=49')[:3]
    assert {run.cfg.crop_size for run in planned('crop_size=49')} == {49}
    assert (plain.cfg.gate, strict.cfg.gate, supervised.cfg.lr) == (0.5, 0.7, 0.01)
    assert (plain.cfg.reference_batch, supervised.cfg.reference_batch) == (2, 4)
    assert strict.cfg.criterion['kwargs']['min_kept'] == 7
    assert not hasattr(supervised.cfg, 'gate') and supervised.cfg.eval_every == 2


def test_the_start_command_gives_the_planned_config(here):
    import train
    here(settings={'gate': 1e-05, 'select_on': '', 'classes': ['a', 'b', 'on']}, variants={
        'supervised': {'method': 'supervised'}, 'DSSN': {'selection': 'none', 'lean': True}})
    for run in planned():
        arguments, variables = grid.start_command(run, 29500)
        assert arguments[:4] == ['sh', 'scripts/train.sh', '1', '29500']
        folder = '{exp_root}/{dataset}/{method}/{exp}/{split}'.format(**variables)
        lists = 'splits/{dataset}/{split}/'.format(**variables)
        args = train.parse_arguments(
            ['--method', variables['method'], '--config', variables['config'], '--save-path',
             folder, '--labeled-id-path', lists + 'labeled.txt', '--unlabeled-id-path',
             lists + 'unlabeled.txt'] + arguments[4:])
        assert config.load(args.config, {
            'method': args.method, 'labeled_id_path': args.labeled_id_path,
            'unlabeled_id_path': args.unlabeled_id_path, 'save_path': args.save_path,
        }, args.assignments) == run.cfg


@pytest.mark.parametrize('keys, parts', [
    (dict(sedes=[1]), ["unknown key 'sedes'", 'seeds']),
    (dict(variants={}), ["'variants' is missing"]),
    (dict(variants={'a': {'method': 'DSN'}}), ["'DSN'", "did you mean 'DSSN'"]),
    (dict(variants={'a b': {}}), ["'a b'", 'plain name']),
    (dict(variants={'a': {'gaet': 1}}), ["'gaet'", "'gate'"]),
    (dict(variants={'a': {'gate': 2}}), ['mine.yaml: a:', 'gate = 2']),
    (dict(variants={'a': {'seed': 2}}), ['a: seed', 'decided by the experiment']),
    (dict(variants={'a': {}, 'b': {'epochs': 9}}), ['b: 36 optimizer steps', 'has 8']),
    (dict(variants={'a': {}, 'b': {'batch_size': 4}}), ['b: 4 optimizer steps', 'has 8']),
    (dict(variants={'a': {'method': 'supervised', 'epoch_steps': 3}}), ['a: epoch_steps']),
    (dict(variants={'a': {'method': 'supervised', 'gate': 0.5}}), ["has the key 'gate'"]),
    (dict(variants={'a': {'length': 0}}), ['a: length: 0 must be', 'such as 0.5']),
    (dict(variants={'a': {'length': 'x'}}), ["a: length: 'x' must be a number"]),
    (dict(variants={'a': {'length': 0.3}}), ['a: length = 0.3 of 2 epochs', 'not a whole number']),
    (dict(variants={'a': {'length': 2, 'epochs': 4}}), ['a: epochs and length', 'leave one out']),
    (dict(variants={'a': {'seeds': []}}), ['a: seeds = []', 'such as [1]']),
    (dict(variants={'a': {'seeds': [-2]}}), ['a: seeds: -2']),
    (dict(settings={'epoch_steps': 5}), ['epoch_steps = 5', 'all/unlabeled.txt, 4 steps']),
    (dict(settings={'method': 'DSSN'}), ['settings: method']),
    (dict(settings=[1]), ['settings = [1]', 'mapping']),
    (dict(settings={'lean': True}, variants={'a': {'method': 'supervised'}}), ["key 'lean'"]),
    (dict(settings={'batch_size': 9}), ['0 optimizer steps']),
    (dict(settings={'labeled_batch_size': 4},
          variants={'a': {'method': 'supervised', 'batch_size': 8}}),
     ['a: batch_size = 8 has no effect', 'set labeled_batch_size instead']),
    (dict(reference='DSN'), ["reference: 'DSN'", 'supervised, DSSN']),
    (dict(splits='all'), ["splits = 'all'", 'list']), (dict(splits=['../x']), ["'../x'"]),
    (dict(splits=['none']), ['splits/tiny/none/unlabeled.txt', 'no such id list']),
    (dict(seeds=[1, 1]), ['each item once']), (dict(seeds=['x']), ["seeds: 'x'"]),
    (dict(seeds=[-1]), ['seeds: -1']), (dict(processes=0), ['processes: 0']),
    (dict(config='configs/none.yaml'), ['configs/none.yaml: no such config file'])], ids=str)
def test_mistakes_in_the_file_are_named(here, keys, parts):
    here(**keys)
    with pytest.raises(UserError) as error:
        planned()
    text = str(error.value)
    assert all(part in text for part in parts) and '\n' not in text, text


def test_a_split_called_1_8_is_not_18(here):
    here()
    with open('experiments/mine.yaml') as file:
        text = file.read()
    with open('experiments/mine.yaml', 'w') as file:
        file.write(text.replace('- all', '- 1_8\n- 92'))
    assert grid.read_experiment('experiments/mine.yaml').splits == ['1_8', '92']


# ---- the experiments of the project

@pytest.mark.parametrize('path', SHIPPED, ids=os.path.basename)
def test_shipped_experiments_have_sound_grids(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(grid, 'read_list', lambda path, masks=True: list(range(2000)))
    experiment = grid.read_experiment(path)
    runs = grid.plan_runs(experiment)
    seeds = [len(experiment.own_seeds.get(name, experiment.seeds)) for name in experiment.variants]
    assert len(runs) == sum(seeds) * len(experiment.splits)
    assert len({run.folder for run in runs}) == len(runs) and experiment.about
    assert len({run.steps / experiment.lengths.get(run.variant, 1) for run in runs}) == 1
    for name in experiment.published:
        assert any('ource: ' in line for line in published_table(name))
    with open(path) as file:
        head = [line for line in file if line.startswith('#')]
    assert any('python -m dssn experiments run experiments/' + os.path.basename(path) in line
               for line in head)


@pytest.mark.parametrize('methods, switches', [
    ('camvid', 'ablation'), ('camvid_cpu', 'ablation_cpu'), ('shapes', 'ablation_shapes')])
def test_an_ablation_shares_runs_with_the_same_config(monkeypatch, methods, switches):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(grid, 'read_list', lambda path, masks=True: list(range(2000)))
    of_methods, of_switches = [{run.folder: run for run in grid.plan_runs(grid.read_experiment(
        f'experiments/{name}.yaml'))} for name in (methods, switches)]
    shared = set(of_methods) & set(of_switches)
    assert {of_methods[folder].variant for folder in shared} == {'supervised', 'DSSN'}
    assert all(of_methods[folder].cfg == of_switches[folder].cfg for folder in shared)


def test_published_scores_are_complete(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, entry in read_mapping(PUBLISHED).items():
        assert set(entry) == {'title', 'splits', 'rows', 'source'}
        assert all(len(values) == len(entry['splits']) for values in entry['rows'].values()), name
    pascal = read_mapping(PUBLISHED)['pascal_resnet101']
    assert pascal['rows']['DSSN, teacher, best epoch'][pascal['splits'].index(366)] == 78.38
    with pytest.raises(UserError, match='nothing.*pascal_resnet101'):
        published_table('nothing')


# ---- running

def test_a_whole_experiment(here, capsys):
    checkout = here(dict(epochs=2), about='What it shows.', published=['mine'],
                    reference='supervised', findings='It was\nseen.', variants={
                        'supervised': {'method': 'supervised'}, 'DSSN': {'lean': True}})
    with open(PUBLISHED, 'w') as file:
        yaml.safe_dump({'mine': dict(title='tiny', splits=['all'], rows={'DSSN': [12.5]},
                                     source='nowhere')}, file)
    out = ran(checkout)
    runs = planned()
    assert len(runs) == 4
    for run in runs:
        lines = records(run)
        assert lines[-1]['kind'] == 'summary' and lines[-1]['epoch'] == 2
        assert lines[-1]['iteration'] == run.steps == 8
        assert 'PyTorch' in lines[-1]['machine']
    table = [line for line in out.splitlines() if line.startswith('|')]
    assert len(table) == 4 and all('2 (seeds 1, 2)' in line for line in table[2:])
    # Nothing is left to do: each run is skipped, the table is the same.
    before = [os.stat(os.path.join(run.folder, 'latest.pth')).st_mtime_ns for run in runs]
    assert main(['run', 'experiments/mine.yaml']) == 0
    again = capsys.readouterr().out
    assert again.count('done already') == 4 and [
        line for line in again.splitlines() if line.startswith('|')] == table
    assert before == [os.stat(os.path.join(run.folder, 'latest.pth')).st_mtime_ns for run in runs]

    assert main(['list', 'experiments/mine.yaml', '--commands']) == 0
    listed = capsys.readouterr().out
    assert listed.count('done    ') == 4 and '4 runs: 4 done, 0 started, 0 to do' in listed
    assert 'exp=mine-DSSN-seed2 split=all config=configs/tiny.yaml sh scripts/train.sh 1' in listed

    check_page(runs, capsys)
    # A run with other settings in the same folder is an error.
    write(variants={'supervised': {'method': 'supervised'}, 'DSSN': {'lean': False}})
    assert main(['run', 'experiments/mine.yaml']) == 1
    out, error = capsys.readouterr()
    assert 'lean was True, is False' in error and runs[1].folder in error and not out
    with open('splits/tiny/all/labeled.txt') as file:
        lines = file.readlines()
    with open('splits/tiny/all/labeled.txt', 'w') as file:
        file.writelines(lines[1:])
    write(variants={'DSSN': {'lean': True}})
    assert main(['run', 'experiments/mine.yaml']) == 1
    assert 'the labeled list has changed' in capsys.readouterr().err


def check_page(runs, capsys):
    """Check every number of the page against the records."""
    assert main(['page', 'experiments/mine.yaml', '--images', '2']) == 0
    capsys.readouterr()
    with open('docs/results.md') as file:
        page = file.read()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in page.splitlines()
            if line.startswith('| all')]
    rows, classes = rows[:2], rows[2:]
    for row, variant in zip(classes, ('supervised', 'DSSN')):
        last = [records(run)[-2]['student_iou'] for run in runs if run.variant == variant]
        assert row == ['all', variant] + [f'{statistics.mean(values):.1f}' for values in
                                          zip(*[found.values() for found in last])]
    assert len(classes) == 2
    assert [row[:4] for row in rows] == [['all', 'supervised', '5', '2 (1, 2)'],
                                         ['all', 'DSSN', '5', '2 (1, 2)']]
    for row, variant in zip(rows, ('supervised', 'DSSN')):
        evaluations = [[line for line in records(run) if line['kind'] == 'evaluation']
                       for run in runs if run.variant == variant]
        for column, role in ((4, 'student'), (6, 'teacher')):
            if variant == 'supervised' and role == 'teacher':
                assert row[6:8] == ['', '']
                continue
            best = [max(line[role] for line in lines) for lines in evaluations]
            last = [lines[-1][role] for lines in evaluations]
            for cell, values in zip(row[column:], (best, last)):
                assert cell == f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}'
    gains = [records(two)[-2]['student'] - records(one)[-2]['student']
             for one, two in zip(runs[::2], runs[1::2])]
    assert [row[8] for row in rows] == ['', '{}{:.2f} ± {:.2f}'.format(
        '+' if sum(gains) > 0 else '', statistics.mean(gains), statistics.stdev(gains))]
    for text in ('## mine', 'What it shows.', 'It was\n\nseen.',
                 'optimizer steps of each run: 8', 'PyTorch', 'sh scripts/train.sh',
                 '| DSSN | 12.5 |', 'Source: nowhere',
                 'python -m dssn experiments run experiments/mine.yaml'):
        assert text in page, text
    for link in [part.split(')')[0] for part in page.split('](')[1:]]:
        with Image.open(os.path.join('docs', link)) as picture:
            assert min(picture.size) > 50
    # Caption, two rows of 128 pixel tiles: image, ground truth and two variants.
    with Image.open('docs/results/mine-predictions.png') as picture:
        assert picture.size[1] > 2 * 90 and picture.size[0] > 4 * 90


def interrupt(checkout, send, number):
    """Start the experiment, and send a signal when its first run has been evaluated twice."""
    process = start(checkout, 'run', 'experiments/mine.yaml')
    metrics, end = os.path.join(planned()[0].folder, 'metrics.jsonl'), time.time() + 300
    while not os.path.exists(metrics) or len(records(planned()[0])) < 2:
        assert time.time() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    send(process.pid, number)
    return process.communicate(timeout=300)[0], process.returncode


@pytest.mark.slow
def test_a_killed_experiment_continues(here, capsys):
    checkout = here(dict(epochs=6), seeds=[1], variants={'DSSN': {}})
    out, status = interrupt(checkout, os.killpg, signal.SIGKILL)
    run, = planned()
    assert status == -signal.SIGKILL and 2 <= len(records(run)) < 6, out
    assert main(['list', 'experiments/mine.yaml']) == 0
    assert 'started ' in capsys.readouterr().out
    assert 'resuming' in ran(checkout)
    found = records(run)
    assert [line['epoch'] for line in found] == list(range(1, 7)) + [6]
    write(seeds=[1], variants={'DSSN': {}}, exp='undisturbed')
    ran(checkout)
    assert without_clock(found) == without_clock(records(planned()[0]))


def test_a_signal_ends_the_training_and_no_further_run_is_started(here):
    checkout = here(dict(epochs=60), seeds=[1], variants={'a': {}, 'b': {}})
    out, status = interrupt(checkout, os.kill, signal.SIGTERM)
    first, second = planned()
    assert status == 128 + signal.SIGTERM and 'not done: a' in out, out
    assert records(first)[-1]['epoch'] < 60 and not os.path.exists(second.folder)


def test_a_failure_stops_the_experiment_unless_keep_going_is_set(here, stand_in):
    checkout = here(seeds=[1], variants={'a': {'init_from': 'none.pth'},
                                         'b': {'init_from': 'none.pth'}, 'c': {}})
    out = ran(checkout, status=1)
    assert out.count('run 1 of 3') == 1 and 'run 2 of 3' not in out and 'none.pth' in out
    assert out.count('not done: a, split all, seed 1: exit status 1') == 1
    out = ran(checkout, '--keep-going', status=1)
    assert all(f'run {number} of 3' in out for number in (1, 2, 3))
    assert out.count('not done: ') == 2 and 'not done: c' not in out
    assert len([line for line in out.splitlines() if line.startswith('| 1 ')]) == 1


@pytest.mark.slow
def test_runs_that_start_from_those_of_another_experiment(here, capsys):
    checkout = here(variants={'supervised': {'method': 'supervised'}})
    os.rename('experiments/mine.yaml', 'experiments/first.yaml')
    text = '{out}/tiny/supervised/first-supervised-seed{seed}/{split}/latest.pth'
    write(after='experiments/first.yaml', settings={'init_from': text}, variants={'DSSN': {}})
    # A single run, or an array job, does not wait for the other experiment.
    for more in (['--task', '0'], ['--slurm', 'gpu']):
        assert main(['run', 'experiments/mine.yaml', *more]) == 1
        assert 'needs the runs of experiments/first.yaml; not done: 2, such as supervised, ' \
            'split all, seed 1; train them first' in capsys.readouterr().err
    out = ran(checkout, '--out', 'runs', '--set', 'gate=0.5', 'epochs=1')
    runs = grid.plan_runs(grid.read_experiment('experiments/mine.yaml'), 'runs',
                          ['gate=0.5', 'epochs=1'])
    for run in runs:
        start_from = f'runs/tiny/supervised/first-supervised-seed{run.seed}/all/latest.pth'
        assert run.cfg.init_from == start_from and run.cfg.gate == 0.5
        with open(os.path.join(run.folder, 'train.log')) as file:
            assert 'weights from ' + start_from in file.read()
    # Each starts from the run of its own seed, so they are averaged.
    table = [line for line in out.splitlines() if line.startswith('|')]
    assert len(table) == 3 and '2 (seeds 1, 2)' in table[2], out
    assert main(['page', 'experiments/mine.yaml', '--out', 'runs', '--images', '1', '--set',
                 'gate=0.5', 'epochs=1']) == 0
    with open('docs/results.md') as file:
        assert 'init_from=exp/tiny/supervised/first-supervised-seed1/all/latest.pth' in file.read()
    write(after='experiments/none.yaml')
    assert main(['run', 'experiments/mine.yaml']) == 1
    assert 'experiments/none.yaml: no such' in capsys.readouterr().err


def test_a_run_that_another_process_trains_is_not_started(here):
    checkout = here(seeds=[1], variants={'a': {}, 'b': {}})
    first, second = planned()
    os.makedirs(first.folder)
    held = Lock(first.folder)
    out = ran(checkout, '--keep-going', status=1)
    held.release()
    assert 'not done: a' in out and 'in use by process' in out
    assert not os.path.exists(os.path.join(first.folder, 'latest.pth'))
    assert records(second)[-1]['kind'] == 'summary'


# ---- several at once, and for some minutes

def saved(run):
    return torch.load(os.path.join(run.folder, 'latest.pth'))


def test_two_runs_at_once_end_as_one_after_the_other(here):
    checkout = here(seeds=[1])
    out = ran(checkout, '--at-once', '2')
    assert out.index('run 2 of 2') < out.index('done: '), out  # they overlap
    # Their output is only in their logs.
    assert 'peak memory' not in out and out.count('done: ') == 2
    together = planned()
    write(seeds=[1], exp='alone')
    out = ran(checkout)
    assert 'peak memory' in out
    for one, other in zip(together, planned()):
        assert without_clock(records(one)) == without_clock(records(other))
        weights, expected = saved(one)['model'], saved(other)['model']
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_failing_run_does_not_end_the_others(here, stand_in):
    start_from = '{out}/{dataset}/DSSN/mine-a-seed1/{split}/latest.pth'
    checkout = here(dict(epochs=4), seeds=[1], variants={
        'a': {'init_from': 'none.pth'}, 'b': {}, 'after_a': {'init_from': start_from}, 'c': {}})
    a, b, after, c = planned()
    out = ran(checkout, '--at-once', '2', status=1)
    assert records(b)[-1]['kind'] == 'summary' and 'done: b' in out
    assert 'failed: a, split all, seed 1: exit status 1' in out
    assert '  a: train.py: error: none.pth' in out  # the end of its output
    assert not os.path.exists(c.folder) and not os.path.exists(after.folder)
    out = ran(checkout, '--at-once', '2', '--keep-going', status=1)
    assert records(c)[-1]['kind'] == 'summary' and 'done already: b' in out
    assert 'left out: after_a, split all, seed 1: it starts from a, split all, seed 1, which is ' \
        'not done' in out
    assert not os.path.exists(after.folder)


def test_a_run_waits_for_the_one_that_it_starts_from(here, stand_in):
    start_from = '{out}/{dataset}/supervised/mine-first-seed1/{split}/latest.pth'
    checkout = here(seeds=[1], variants={
        'first': {'method': 'supervised'}, 'second': {'init_from': start_from}, 'third': {}})
    out = ran(checkout, '--at-once', '2')
    assert out.index('run 3 of 3') < out.index('done: first') < out.index('run 2 of 3'), out
    assert all(records(run)[-1]['kind'] == 'summary' for run in planned())


def test_a_signal_passes_to_all_runs(here):
    checkout = here(dict(epochs=500), seeds=[1], variants={'a': {}, 'b': {}, 'c': {}})
    process = start(checkout, 'run', 'experiments/mine.yaml', '--at-once', '2', '--keep-going')
    a, b, c = planned()
    end = time.time() + 300
    while not all(os.path.exists(os.path.join(run.folder, 'metrics.jsonl')) and records(run)
                  for run in (a, b)):
        assert time.time() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM, out
    for run, name in ((a, 'a'), (b, 'b')):
        assert f'not done: {name}, split all, seed 1: exit status 143' in out
        assert records(run)[-1]['epoch'] < 500 and saved(run)['step'] >= 4
        Lock(run.folder).release()  # no process trains there any more
    assert not os.path.exists(c.folder)


def test_runs_that_do_not_fit_are_left_out_and_named(here, stand_in, monkeypatch, capsys):
    checkout = here(seeds=[1], variants={'supervised': {'method': 'supervised'}, 'DSSN': {},
                                         'short': {'length': 0.5}})
    for name, value in checkout.environment.items():
        monkeypatch.setenv(name, value)
    # 8 steps of 100 s, 2 evaluations of 20 s and 10 s to start: 850 s; the short one half of that.
    times = RunTimes({'DSSN': Cost(10, 100, 20)})
    outcomes, ended_by = Pool(planned(), deadline=Deadline(12), run_times=times).train()
    assert ended_by is None
    states = {outcome.planned.variant: (outcome.state, outcome.text) for outcome in outcomes}
    out = capsys.readouterr().out
    assert states['supervised'] == ('done', '')  # the cost of its method is unknown
    # Of 720 s the first run, whose length was unknown, has taken some.
    state, text = states['DSSN']
    left = re.fullmatch(r'it takes about 850 s, and (\d+) s are left', text)
    assert state == 'left out' and left and int(left.group(1)) < 720, states
    assert 'left out: DSSN, split all, seed 1: it takes about 850 s' in out
    assert states['short'][0] == 'done'
    assert [os.path.exists(run.folder) for run in planned()] == [True, False, True]
    # The costs of these runs are known for later ones.
    assert 0 < times.seconds_left(planned()[1]) < 400


def test_all_runs_end_within_the_minutes(here, stand_in):
    checkout = here(dict(epochs=5000), seeds=[1], variants={'a': {}, 'b': {}, 'c': {}})
    since = time.time()
    out = ran(checkout, '--at-once', '2', '--minutes', '0.2')
    assert 0.9 * 12 < time.time() - since < 90, out  # without the limit they take 200 s
    for name, run in zip('ab', planned()):
        line, = [line for line in out.splitlines() if line.startswith('stopped: ' + name)]
        assert 'the time is over' in line and 'of 5000 epochs' in line
        assert os.path.exists(os.path.join(run.folder, 'latest.pth'))
    assert 'not done: c, split all, seed 1: left out: the time is over' in out
    assert not os.path.exists(planned()[2].folder)


def test_the_estimated_time_of_the_rest_of_a_run(here, monkeypatch):
    here(settings={'epochs': 6, 'eval_every': 2}, seeds=[1])
    run = planned()[1]
    assert RunTimes().seconds_left(run) is None
    times = RunTimes({'DSSN': Cost(7.0, 0.5, 3.0)})
    assert times.seconds_left(run) == 7 + 24 * 0.5 + 3 * 3
    monkeypatch.setattr('dssn.tools.experiments.run_times.progress_in_folder',
                        lambda run: RunProgress('started', 3))
    assert times.seconds_left(run) == 7 + 12 * 0.5 + 2 * 3  # epochs 4 to 6, evaluated after 4 and 6
    os.makedirs(run.folder)
    with open(os.path.join(run.folder, 'metrics.jsonl'), 'w') as file:
        file.write(json.dumps({'kind': 'summary', 'epoch': 6, 'seconds': 48.0}) + '\n')
    times.learn(run, 60.0)
    assert times.costs == {'DSSN': Cost(12.0, 2.0, 0.0)}


@pytest.mark.parametrize('arguments, status, parts', [
    (['--minutes', 'nan'], 2, ['--minutes', "'nan' must be"]),
    (['--at-once', '0'], 2, ['--at-once', 'at least 1']),
    (['--at-once', '2', '--slurm', 'gpu'], 1, ['--slurm', '--at-once and --minutes']),
    (['--minutes', '2', '--slurm', 'gpu'], 1, ['--slurm', '--at-once and --minutes'])], ids=str)
def test_wrong_options_of_run(here, capsys, arguments, status, parts):
    here(seeds=[1])
    try:
        found = main(['run', 'experiments/mine.yaml', *arguments])
    except SystemExit as end:
        found = end.code
    error = capsys.readouterr().err
    assert found == status and all(part in error for part in parts), error


@pytest.mark.parametrize('task, parts', [('2', ['--task 2', 'from 0 to 1']), ('-1', ['--task -1'])])
def test_a_task_that_does_not_exist(here, task, parts):
    out = ran(here(seeds=[1]), '--task', task, status=1)
    assert all(part in out for part in parts)


# Replaces sbatch: prints its options, and runs the tasks immediately.
SBATCH = """#!{python}
import os, subprocess, sys
options = dict(item.lstrip('-').partition('=')[::2] for item in sys.argv[1:])
print('sbatch', sorted(options))
first, last = options['array'].split('-')
for task in range(int(first), int(last) + 1):
    subprocess.check_call(['sh', '-c', options['wrap']], cwd=options['chdir'],
                          env=dict(os.environ, SLURM_ARRAY_TASK_ID=str(task)))
"""


@pytest.mark.slow
def test_an_array_job_has_a_run_in_each_task(here, tmp_path):
    checkout = here(seeds=[1], variants={'a': {}, 'b': {'lean': True}})
    assert 'no sbatch' in ran(checkout, '--slurm', 'gpu', status=1, PATH=str(tmp_path))
    folder = tmp_path / 'bin'
    folder.mkdir()
    (folder / 'sbatch').write_text(SBATCH.format(python=sys.executable))
    (folder / 'sbatch').chmod(0o755)
    out = ran(checkout, '--set', 'epochs=1', '--slurm', 'gpu', '--gres=gpu:1',
              PATH='{}:{}'.format(folder, os.environ['PATH']))
    assert "'array'" in out and "'gres'" in out and "'partition'" in out
    for run in planned('epochs=1'):
        assert records(run)[-1]['kind'] == 'summary' and records(run)[-1]['epoch'] == 1
