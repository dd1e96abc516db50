"""Short trainings on one GPU: the script rehearsed, what the probe decides, results, mistakes."""
import argparse
import json
import os
import shutil
import subprocess
import tarfile
from types import SimpleNamespace

import pytest
import stand_in
import torch
import yaml
from commands import experiments as main

from dssn import methods
from dssn.errors import UserError
from dssn.models import BACKBONES, ENCODERS
from dssn.models.vit import VisionTransformer
from dssn.tools.experiments import evidence, evidence_files, grid, probe
from dssn.tools.experiments.pool import RunOutcome
from dssn.tools.experiments.run_times import Cost
from dssn.yaml_text import read_mapping

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='shell scripts')
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LISTS = ['--config', 'configs/tiny.yaml', '--labeled', 'splits/tiny/all/labeled.txt', '--unlabeled',
         'splits/tiny/all/unlabeled.txt']
ORDER = ['supervised', 'all_labeled', 'control', 'DSSN', 'fixmatch', 'unimatch', 'unimatch_v2',
         'DSSN_from_supervised', 'supervised_again', 'DSSN_again', 'supervised_long',
         'control_long', 'DSSN_long']
ORACLES = ['oracle_both', 'oracle_labels', 'oracle_selection']


@pytest.fixture
def here(tiny_checkout, monkeypatch):
    """A `Checkout`, the current folder, with the project's experiment and weights in float16."""
    checkout = tiny_checkout()
    for name in ('experiments', 'pretrained'):
        os.mkdir(os.path.join(checkout.root, name))
    for name in ('experiments/gpu_evidence.yaml', 'configs/shapes.yaml', 'splits/shapes'):
        os.symlink(os.path.join(ROOT, name), os.path.join(checkout.root, name))
    monkeypatch.chdir(checkout.root)
    network = BACKBONES['resnet18']('plain', base_channels=4)
    torch.save({name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in network.state_dict().items()}, 'weights.pth')
    with open('configs/tiny.yaml') as file:
        checkout.val = next(line.split()[1] for line in file if line.startswith('val_id_path'))
    return checkout


def read_json(folder):
    with open(os.path.join(folder, 'evidence.json')) as file:
        return json.load(file)


def rows_of(table):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()
            if line.startswith('|')][2:]


# ---- the whole command

@pytest.mark.slow
def test_the_script_rehearsed_on_own_lists_and_weights(here):
    # Without the methods that another variant's row does not refer to.
    names = [name for name in ORDER if name not in ('fixmatch', 'unimatch', 'unimatch_v2',
                                                    'control', 'control_long')]
    experiment = read_mapping(evidence.EXPERIMENT)
    os.remove(evidence.EXPERIMENT)
    with open(evidence.EXPERIMENT, 'w') as file:
        yaml.safe_dump(dict(experiment, variants={
            name: keys for name, keys in experiment['variants'].items() if name in names}), file,
            sort_keys=False)
    command = ['sh', 'scripts/gpu_evidence.sh', 'found', '--rehearse', '--steps', '5', *LISTS,
               '--val', here.val, '--all-labeled', 'splits/tiny/all/labeled.txt', '--weights',
               'weights.pth', '--minutes', '9']
    done = subprocess.run(command, env=here.environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, timeout=540)
    assert done.returncode == 0, done.stdout
    assert sorted(os.listdir('found')) == ['evidence.json', 'evidence.md', 'runs.tar.gz']
    found = read_json('found')
    # 8 unlabeled images in batches of 2; 5 steps are two epochs of 2.
    assert [(run['variant'], run['seed'], run['steps']) for run in found['runs']] == [
        (name, 2 if name.endswith('again') else 1,
         8 if name.endswith('long') else 2 if name == 'DSSN_from_supervised' else 4)
        for name in names]
    assert {run['state'] for run in found['runs']} == {'done'} and found['rehearsed'] is True
    with open('found/evidence.md') as file:
        table = file.read()
    assert 'rehearsed on a CPU: no number of this table is evidence' in table
    assert table in done.stdout
    with tarfile.open('found/runs.tar.gz') as archive:
        for row, run in zip(rows_of(table), found['runs']):
            name = '{variant}-seed{seed}'.format(**run)
            lines = archive.extractfile(name + '/metrics.jsonl').read().decode().splitlines()
            last = json.loads(lines[-2])  # before the summary
            assert (run['student'], run['teacher']) == (last['student'], last['teacher'])
            assert row[3] == '{0} of {0}'.format(last['iteration']) and row[-1] == 'done'
            assert row[5] == '{:.2f}'.format(last['student'])
            log = archive.extractfile(name + '/train.log').read().decode()
            start_from = 'weights from ' if run['variant'] == 'DSSN_from_supervised' else \
                'backbone from pretrained/resnet18.pth'
            assert start_from in log
            settings = archive.extractfile(name + '/config.yaml').read().decode()
            assert 'backbone: resnet18' in settings and 'stem: plain' in settings
            assert ('labeled_weight: 1.0' in settings) == (run['method'] != 'supervised')
        assert len(archive.getnames()) == 3 * len(names)
    # The gain is over the supervised run of the same seed, of the same steps where there is one.
    student = {run['variant']: run['student'] for run in found['runs']}
    for name, base in (('DSSN', 'supervised'), ('DSSN_again', 'supervised_again'),
                       ('DSSN_long', 'supervised_long'), ('all_labeled', 'supervised'),
                       ('DSSN_from_supervised', 'supervised')):
        row = rows_of(table)[names.index(name)]
        assert row[7] == f'{student[name] - student[base]:+.2f}', name


def test_runs_that_lack_a_list_or_time_are_named(here, monkeypatch, capsys, tmp_path):
    stand_in.replace_training(monkeypatch, tmp_path)
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)
    costs = {name: Cost(2, 0.1, 0.1) for name in ('supervised', 'fixmatch', 'unimatch',
                                                  'unimatch_v2', 'supervised_strong_views')}
    monkeypatch.setattr(probe, 'measure', lambda *_: (dict(costs, DSSN=Cost(1e4, 1, 1)), None, 2))
    assert main(['evidence', 'found', '--rehearse', '--steps', '4', *LISTS, '--val', here.val]) == 0
    with open('found/evidence.md') as file:
        table = file.read()
    states = {row[0]: row[-1] for row in rows_of(table)}
    assert states == {name: 'left out' if 'DSSN' in name else 'done'
                      for name in ORDER if name != 'all_labeled'}
    assert '- left out: all_labeled: no --all-labeled was given' in table
    for name in ORACLES:
        assert f'- left out: {name}: no --unlabeled-with-masks was given' in table
    for name in (name for name in ORDER if 'DSSN' in name):
        assert f'- left out: {name}, seed ' in table
    assert 'it takes about 10' in table and 'not done: DSSN_long' in capsys.readouterr().err


def test_oracles_are_trained_if_the_unlabeled_list_names_masks(here, monkeypatch, capsys, tmp_path):
    stand_in.replace_training(monkeypatch, tmp_path)
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)
    listed = ['--config', 'configs/tiny.yaml', '--labeled', 'splits/tiny/all/labeled.txt', '--val',
              here.val]
    masked = ['--unlabeled-with-masks', 'splits/tiny/all/labeled.txt']  # its lines name masks
    oracles = dict.fromkeys(['oracle_labels', 'oracle_selection'], Cost(2, 0.1, 0.1))
    names = ['supervised', 'supervised_strong_views', 'DSSN', 'fixmatch', 'unimatch', 'unimatch_v2']
    others = dict.fromkeys(names, Cost(1e4, 1, 1))
    monkeypatch.setattr(probe, 'measure', lambda *_: (dict(oracles, **others), None, 2))
    assert main(['evidence', 'found', '--rehearse', '--steps', '4', *listed, *masked]) == 0
    runs = {run['variant']: run for run in read_json('found')['runs']}
    assert list(runs) == [*ORDER[:1], *ORDER[2:7], *ORACLES, *ORDER[7:]]
    assert {name for name, run in runs.items() if run['state'] == 'done'} == set(ORACLES)
    assert [runs[name]['method'] for name in ORACLES] == [
        'oracle_labels', 'oracle_labels', 'oracle_selection']
    capsys.readouterr()
    assert main(['evidence', 'found', '--rehearse', *listed, *masked, '--unlabeled',
                 'splits/tiny/all/unlabeled.txt']) == 1
    assert '--unlabeled-with-masks: all methods use this list' in capsys.readouterr().err


@pytest.mark.parametrize('own', [True, False])
@pytest.mark.parametrize('rehearse', [True, False])
def test_weights_of_dinov2_decide_the_network(here, monkeypatch, own, rehearse):
    encoder = dict(width=192, depth=2, taps=(0, 0, 1, 1))
    monkeypatch.setitem(ENCODERS, 'dinov2_tiny', (encoder, *ENCODERS['dinov2_tiny'][1:]))
    torch.save(VisionTransformer(**encoder).state_dict(), 'vit.pth')
    options = [*LISTS, '--val', here.val, '--all-labeled', 'splits/tiny/all/labeled.txt']
    parser = argparse.ArgumentParser()
    evidence.add_arguments(parser)
    args = parser.parse_args(['--weights', 'vit.pth', *own * options, *rehearse * ['--rehearse'],
                              '--set', 'lr_multi=30'])
    experiment, _ = evidence.choose_variants(args)
    assignments = evidence.choose_assignments(args, experiment)
    for run in evidence.plan_runs_of_length(experiment, 'exp', assignments, 4)[1]:
        cfg = run.cfg
        assert (cfg.model, cfg.backbone, cfg.pretrained) == ('dpt', 'dinov2_tiny', True)
        assert (cfg.optimizer, cfg.lr, cfg.lr_multi) == ('adamw', 5e-6, 30)
        assert cfg.crop_size == (42 if rehearse else 518 if own else 70)
    assert os.path.exists('pretrained/dinov2_tiny.pth')


# ---- what the probe decides

def by_hand(experiment, costs, at_once, steps):
    """The end of the last run, if each starts when the first place becomes free."""
    ends = []
    for variant, keys in experiment.variants.items():
        cost = costs[keys.get('method', 'DSSN')]
        length = experiment.lengths.get(variant, 1)
        takes = cost.start + cost.step * steps * length + 2 * length * cost.evaluation
        going = sorted(ends)[-at_once:]
        ends.append(takes + (going[0] if len(going) == at_once else 0))
    return max(ends)


@pytest.mark.parametrize('at_once', [1, 2, 5])
@pytest.mark.parametrize('seconds', [60, 300, 1000])
def test_as_many_steps_are_chosen_as_fit(monkeypatch, at_once, seconds):
    monkeypatch.chdir(ROOT)
    experiment = grid.read_experiment(evidence.EXPERIMENT)
    costs = {'supervised': Cost(4, 0.02, 2), 'DSSN': Cost(6, 0.11, 4), 'fixmatch': Cost(5, 0.06, 2),
             'unimatch': Cost(5, 0.07, 2), 'unimatch_v2': Cost(6, 0.08, 4),
             'supervised_strong_views': Cost(6, 0.1, 4),
             'oracle_labels': Cost(6, 0.11, 4), 'oracle_selection': Cost(7, 0.12, 4)}
    deadline = SimpleNamespace(left=lambda: seconds / probe.SPARE)
    limits = probe.Limits(24, 10, 900)
    steps = probe.choose_steps(experiment, costs, at_once, deadline, limits)
    assert limits.least <= steps <= limits.most
    assert steps == limits.least or by_hand(experiment, costs, at_once, steps) <= seconds + 1e-6
    assert steps == limits.most or by_hand(experiment, costs, at_once, steps + 1) > seconds - 1e-6


@pytest.mark.parametrize('steps, epochs, epoch_steps', [
    (8, 2, 4), (7, 2, 3), (9, 4, 2), (100, 26, 3), (1, 2, 1), (2, 2, 1)])
def test_all_runs_have_whole_epochs_of_at_most_one_pass(here, steps, epochs, epoch_steps):
    # One pass over the unlabeled list is 4 steps.
    experiment = grid.read_experiment(evidence.EXPERIMENT)._replace(
        config='configs/tiny.yaml', splits=['all'])
    experiment.variants.pop('all_labeled')
    found = probe.epoch_keys(experiment, [], steps)
    assert found == {'epochs': epochs, 'epoch_steps': epoch_steps, 'eval_every': epochs // 2}
    assert epochs * epoch_steps <= max(steps, 2)
    runs = grid.plan_runs(experiment, 'exp', ['{}={}'.format(*item) for item in found.items()])
    assert {run.steps / experiment.lengths.get(run.variant, 1) for run in runs} == {
        epochs * epoch_steps}


def make_probed(folder, method, seconds, rate):
    """A run of two epochs of 10 steps in a folder, with invented records."""
    os.makedirs(folder)
    with open(os.path.join(folder, 'metrics.jsonl'), 'w') as file:
        for epoch, at in enumerate(seconds, 1):
            line = {'epoch': epoch, 'iteration': 10 * epoch, 'student': 1.0, 'teacher': None,
                    'seconds': at, 'peak_memory_mib': 4000.0}
            file.write(json.dumps(line) + '\n')
    with open(os.path.join(folder, 'train.log'), 'w') as file:
        file.write('step 10/20 images_per_second 3.5 lr 1\n'
                   f'step 20/20 images_per_second {rate} lr 1\n')
    sizes = {'labeled_batch_size': 8} if method == 'supervised' else \
        {'labeled_batch_size': 6, 'batch_size': 2}
    cfg = methods.find(method, 'here').Config(method=method, epoch_steps=10, **sizes)
    return SimpleNamespace(folder=folder, name=method, cfg=cfg)


def test_the_cost_of_a_step_is_read_from_a_run(tmp_path):
    # 8 images a step at 80 a second: 0.1 s a step. The second epoch takes 1 s of steps and 2 s of
    # evaluation, the first one 4 s more. 20 s of process, of which 10 s are recorded.
    for method in ('supervised', 'DSSN'):
        run = make_probed(str(tmp_path / method), method, [7.0, 10.0], 80.0)
        cost, peak = probe.read_cost(run, 20.0)
        assert cost == pytest.approx(Cost(10 + 4, 0.1, 2.0)) and peak == 4000


def test_as_many_runs_at_once_as_fit_into_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, 'free_memory', lambda: free)
    monkeypatch.setattr(probe, 'cores_of_a_process', lambda size: 16 // size)
    asked = []

    def train_probe(experiment, folder, assignments, limits, deadline, at_once, on_cpu):
        asked.append(at_once)
        folder = str(tmp_path / str(len(asked)))
        one = make_probed(folder + '/a', 'DSSN', [7.0, 10.0], 80.0)
        if at_once > most:
            with open(os.path.join(one.folder, 'x.log'), 'w') as file:
                file.write('CUDA out of memory: batch_size 4 does not fit')
            return [RunOutcome(one, 'failed', 'exit status 1')], None
        return [RunOutcome(one, 'done', '', 20.0)], None
    monkeypatch.setattr(probe, 'train_probe', train_probe)

    def chosen(at_once=None):
        del asked[:]
        for name in os.listdir(str(tmp_path)):
            shutil.rmtree(str(tmp_path / name))
        return probe.measure(None, str(tmp_path / 'root'), [], probe.GPU_LIMITS, None, at_once)[1:]
    # 4000 MiB of tensors, a quarter for gaps, 1024 of context: 6024 MiB a run.
    most, free = 9, 80000
    assert chosen() == (6024, 5) and asked == [5]
    free = 15000
    assert chosen() == (6024, 2) and chosen(4) == (6024, 4)
    most, free = 2, 80000
    assert chosen() == (6024, 2) and asked == [5, 2]
    most = 0
    with pytest.raises(UserError, match='the probe: DSSN: failed, exit status 1; see the log'):
        chosen()
    assert asked == [5, 2, 1]


# ---- the results

def test_results_are_written_as_runs_end(tmp_path):
    def run(name, seed):
        return SimpleNamespace(
            variant=name, seed=seed, name=name, folder=str(tmp_path / name), steps=20,
            assignments=[], cfg=SimpleNamespace(method=name, labeled_id_path='l'))
    runs = [run('supervised', 1), run('DSSN', 1)]
    make_probed(runs[0].folder, 'supervised', [7.0, 10.0], 80.0)
    out = str(tmp_path / 'out')
    found = evidence_files.EvidenceFiles(out, False)
    found.open({'machine': 'a card', 'runs_at_once': 2, 'left_out': {}}, runs, 'supervised')
    assert [run['state'] for run in read_json(out)['runs']] == ['to do', 'to do']
    found.update([RunOutcome(runs[0], 'done', '', 21.0)])
    # The files are written at once.
    first, second = read_json(out)['runs']
    assert (first['state'], first['student'], first['steps_done']) == ('done', 1.0, 20)
    assert first['seconds_with_start'] == 21.0 and second['state'] == 'to do'
    open(os.path.join(runs[0].folder, 'config.yaml'), 'w').close()
    found.update([])  # no write: no run has ended, and the last write was just now
    assert read_json(out)['runs'][0]['state'] == 'done'
    found.written -= evidence_files.INTERVAL + 1
    found.update([])
    assert read_json(out)['runs'][0]['state'] == 'not finished'
    with open(os.path.join(out, 'evidence.md')) as file:
        assert 'rehearsed' not in file.read()
    assert not [name for name in os.listdir(out) if name.endswith('.tmp')]


# ---- mistakes

OWN = LISTS + ['--val', 'splits/tiny/all/labeled.txt', '--rehearse']


@pytest.mark.parametrize('arguments, parts', [
    (['--minutes', '-1', '--rehearse'], ['--minutes', "'-1' must be"]),
    (['--steps', '0'], ['--steps', 'at least 1']),
    (['--rehearse', '--labeled', 'l.txt'],
     ['--labeled: own images need', 'missing: --config, --unlabeled, --val', 'shapes']),
    (OWN + ['--all-labeled', 'none.txt'], ['--all-labeled none.txt: no such file', 'its path']),
    (OWN + ['--val', 'none.txt'], ['--val none.txt: no such file']),
    (OWN + ['--config', 'none.yaml'], ['--config none.yaml: no such file']),
    (OWN + ['--data-root', 'none'], ['--data-root none: no such folder']),
    (OWN + ['--weights', 'none.pth'], ['--weights none.pth: no such file']),
    (OWN + ['--weights', 'configs/tiny.yaml'], ['configs/tiny.yaml: not a']),
    (OWN + ['--set', 'epochs=4'], ['--set epochs=4', 'give --steps']),
    (OWN + ['--set', 'DSSN.epoch_steps=4'], ['--set DSSN.epoch_steps=4', 'give --steps']),
    (OWN + ['--set', 'gaet=4'], ["unknown key 'gaet'", "'gate'"]),
    (['weights.pth'] + OWN, ['OUT weights.pth: is a file', 'name a folder']),
    (['weights.pth/out'] + OWN, ['OUT weights.pth/out: cannot be written', 'another folder']),
    ([], ['no CUDA GPU is available', '--rehearse'])], ids=str)
def test_mistakes_are_named_before_anything_is_trained(here, monkeypatch, capsys, arguments, parts):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    try:
        status = main(['evidence', *arguments])
    except SystemExit as end:
        status = end.code
    out, error = capsys.readouterr()
    assert status in (1, 2) and all(part in error for part in parts), error
    assert 'Traceback' not in error and 'the probe' not in out
    assert status == 2 or len(error.splitlines()) == 1
