"""train.py and eval.py: flags, the dry run, and evaluation of our own and of public checkpoints."""
import glob
import json
import os

import numpy as np
import pytest
import torch

import eval as eval_script
import train as train_script
from dssn import config
from dssn.data.datasets import EvalSet
from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.inference.evaluation import evaluate, predictor
from dssn.models import build_model
from dssn.models.weights import network_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def shipped(name):
    return os.path.join(ROOT, 'configs', name + '.yaml')


# ---- train.py

@pytest.mark.parametrize('name, size', [('pascal', '59.5M'), ('shapes', 'resnet18')])
def test_dry_run_needs_no_data_and_leaves_nothing(tmp_path, monkeypatch, capsys, name, size):
    monkeypatch.chdir(str(tmp_path))  # no lists, data or weights here
    train_script.main(['--config', shipped(name), '--dry-run', '--labeled-id-path', 'no/list.txt'])
    out = capsys.readouterr().out
    resolved, network = out.rsplit('network:', 1)
    assert size in network and 'parameters' in network
    path = tmp_path / 'printed.yaml'
    path.write_text(resolved)
    expected = config.load(shipped(name), {'labeled_id_path': 'no/list.txt'})
    assert config.load(str(path)) == expected
    assert os.listdir(str(tmp_path)) == ['printed.yaml']


@pytest.mark.one_stack
@pytest.mark.parametrize('method', ['DSSN', 'unimatch_v2', 'fixmatch', 'supervised'])
@pytest.mark.parametrize('path', sorted(glob.glob(os.path.join(ROOT, 'configs', '*.yaml'))),
                         ids=os.path.basename)
def test_dry_run_of_every_shipped_config(capsys, path, method):
    with torch.device('meta'):  # without the seconds that large networks take to fill
        train_script.main(['--config', path, '--dry-run', '--method', method])
    out = capsys.readouterr().out
    assert f'method: {method}' in out and 'M parameters' in out


def test_dry_run_shows_what_is_changed_of_a_file(tmp_path, capsys):
    path = tmp_path / 'ade20k.yaml'
    path.write_text('dataset: ade20k\nnclass: 150\nmodel: dpt\nbackbone: dinov2_tiny\n'
                    'lock_backbone: True\n')
    train_script.main(['--config', str(path), '--dry-run'])
    out = capsys.readouterr().out
    assert 'lock_backbone: false' in out
    assert f'lock_backbone: {path} has true' in out and '--set lock_backbone=true' in out


def test_flags_reach_the_config(capsys):
    train_script.main(['--config', shipped('shapes'), '--dry-run', '--method', 'supervised',
                       '--labeled-id-path', 'l.txt', '--unlabeled-id-path', 'u.txt', '--save-path',
                       'exp/x', '--port', '1', '--set', 'lr=1e-3', 'epochs=3', '--set', 'seed=4'])
    out = capsys.readouterr().out.splitlines()
    for line in ('method: supervised', 'labeled_id_path: l.txt', 'unlabeled_id_path: u.txt',
                 'save_path: exp/x', 'lr: 0.001', 'epochs: 3', 'seed: 4'):
        assert line in out


@pytest.mark.parametrize('flag', [['--local_rank=0'], ['--local-rank=0'], ['--local-rank', '0'],
                                  ['--local_rank', '0']], ids=' '.join)
def test_the_flag_of_launchers_is_accepted(flag, capsys):
    train_script.main(flag + ['--config', shipped('shapes'), '--dry-run'])
    assert 'network:' in capsys.readouterr().out
    with pytest.raises(UserError, match='no/such.pth'):
        eval_script.main(flag + ['--checkpoint', 'no/such.pth'])


@pytest.mark.parametrize('method, shown', [('DSSN', True), ('supervised', False)])
def test_help_keys(capsys, method, shown):
    train_script.main(['--config', shipped('shapes'), '--help-keys', '--method', method])
    out = capsys.readouterr().out
    assert 'crop_size' in out and ('conf_thresh' in out) == shown
    for arguments in (['--method', method], ['--set', f'method={method}']):  # no --config
        train_script.main(['--help-keys', *arguments])
        assert capsys.readouterr().out == out


def test_help_keys_are_those_of_the_configs_method_or_dssns(tmp_path, capsys):
    path = tmp_path / 'c.yaml'
    path.write_text('method: unimatch\n')  # not complete: only its method matters
    printed = []
    for arguments in ([], ['--method', 'DSSN'], ['--config', str(path)], ['--method', 'unimatch']):
        train_script.main(['--help-keys', *arguments])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2] == printed[3]
    with pytest.raises(UserError, match="'unimach'.*unimatch"):
        train_script.main(['--help-keys', '--method', 'unimach'])
    with pytest.raises(SystemExit):
        train_script.main(['--method', 'DSSN'])
    assert capsys.readouterr().err.endswith('the following arguments are required: --config\n')


def test_the_same_command_trains_and_then_has_nothing_to_do(tiny_world, capsys):
    world = tiny_world(epochs=1, n_unlabeled=4)
    for expected in ('finished', 'already trained'):
        train_script.main(['--config', world.config_path, '--local_rank=0'])
        assert expected in capsys.readouterr().out


# ---- eval.py

@pytest.fixture
def networks(tiny_world, tmp_path):
    """(world, config, student, teacher): two untrained networks that predict different things."""
    world = tiny_world()
    cfg = world.load()
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(cfg).eval()
        model.classifier.weight.data.mul_(30)
        models.append(model)
    return (world, cfg) + tuple(models)


def public_state(model):
    return {'module.' + name: tensor for name, tensor in model.state_dict().items()}


def expected(model, cfg, **kwargs):
    return evaluate({'x': model}, cfg, read_list(cfg.val_id_path), World(), **kwargs)['x']


def run_eval(tmp_path, *arguments):
    path = str(tmp_path / 'scores.json')
    eval_script.main(list(arguments) + ['--json', path])
    with open(path) as file:
        return json.load(file)


@pytest.mark.parametrize('weights', [None, 'student', 'teacher'])
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_public_checkpoints_are_evaluated(networks, tmp_path, capsys, weights, legacy):
    world, cfg, student, teacher = networks
    path = str(tmp_path / 'published.pth')
    torch.save({'model': public_state(student), 'model_ema': public_state(teacher), 'epoch': 79,
                'optimizer': {'state': {}}, 'previous_best': np.float64(78.5)}, path,
               _use_new_zipfile_serialization=not legacy)
    got = run_eval(tmp_path, '--checkpoint', path, '--config', world.config_path,
                   *(['--weights', weights] if weights else []))
    score = expected(teacher if weights == 'teacher' else student, cfg)
    assert got['scores'][weights or 'student']['miou'] == pytest.approx(score.miou)
    assert expected(teacher, cfg).miou != expected(student, cfg).miou
    assert f'{score.miou:.2f}' in capsys.readouterr().out


@pytest.mark.parametrize('weights', ['student', 'teacher'])
def test_checkpoints_of_unimatch_v2_are_evaluated(tiny_world, tmp_path, weights):
    """Made from a description of its program: the originals were not seen."""
    world = tiny_world(model='dpt', backbone='dinov2_tiny', crop_size=28, base_channels=64,
                       decoder_channels=256)
    cfg, models = world.load(), {}
    for role in ('model', 'model_ema'):
        models[role] = build_model(cfg)
        models[role].head.scratch['output_conv'][2].weight.data.mul_(30)
    optimizer = torch.optim.AdamW(models['model'].head.projects.parameters())
    models['model'](torch.zeros(1, 3, 14, 14)).sum().backward()
    optimizer.step()
    path = str(tmp_path / 'ade20k_unimatch_v2.pth')
    torch.save({**{role: public_state(model) for role, model in models.items()},
                'optimizer': optimizer.state_dict(), 'epoch': 59, 'previous_best': 80.1,
                'previous_best_ema': 80.2, 'best_epoch': 3, 'best_epoch_ema': 5}, path)
    got = run_eval(tmp_path, '--checkpoint', path, '--config', world.config_path, '--weights',
                   weights)
    scores = {role: expected(model, cfg).miou for role, model in models.items()}
    assert got['scores'][weights]['miou'] == pytest.approx(
        scores['model_ema' if weights == 'teacher' else 'model'])
    assert scores['model'] != scores['model_ema']


def test_a_public_checkpoint_with_one_network(networks, tmp_path):
    world, cfg, student, _ = networks
    path = str(tmp_path / 'published.pth')
    torch.save({'model': public_state(student), 'miou': np.float64(78.5)}, path)
    for weights in ('student', 'teacher'):
        got = run_eval(tmp_path, '--checkpoint', path, '--config', world.config_path, '--weights',
                       weights)
        assert got['scores'][weights]['miou'] == pytest.approx(expected(student, cfg).miou)


def test_json_and_pictures_of_our_own_checkpoint(networks, tmp_path):
    world, cfg, student, _ = networks
    path, folder = str(tmp_path / 'best.pth'), str(tmp_path / 'pictures')
    torch.save({'model': network_weights(student), 'weights': 'student',
                'config': config.to_dict(cfg)}, path)
    got = run_eval(tmp_path, '--checkpoint', path, '--save-dir', folder)
    score = expected(student, cfg)
    assert set(got) == {'checkpoint', 'id_path', 'protocol', 'crop_size', 'scales', 'flip',
                        'absent', 'eval_amp', 'seconds', 'scores'}
    assert (got['checkpoint'], got['id_path']) == (path, cfg.val_id_path)
    assert (got['protocol'], got['absent']) == ('original', 'skip')
    assert (got['scales'], got['flip']) == ([1.0], False)
    assert list(got['scores']) == ['student']
    found = got['scores']['student']
    for key in ('miou', 'pixel_accuracy', 'mean_accuracy', 'fwiou', 'absent', 'images'):
        assert found[key] == getattr(score, key)
    assert found['images'] == 3
    assert [c['name'] for c in found['classes']] == ['class 0', 'class 1', 'class 2']
    for key in ('iou', 'recall', 'precision'):
        assert [c[key] for c in found['classes']] == getattr(score, key)
    stems = [os.path.splitext(os.path.basename(s.image))[0] for s in read_list(cfg.val_id_path)]
    assert sorted(os.listdir(folder)) == ['error', 'index.html', 'overlay', 'panel', 'prediction',
                                          'thumbnail']
    for kind in ('panel', 'prediction'):
        assert sorted(os.listdir(os.path.join(folder, kind))) == [
            '{:05d}_{}.png'.format(*p) for p in enumerate(stems)]


def test_eval_follows_its_flags(networks, tmp_path):
    world, cfg, student, _ = networks
    path = str(tmp_path / 'best.pth')
    torch.save({'model': network_weights(student), 'config': config.to_dict(cfg)}, path)
    got = run_eval(tmp_path, '--checkpoint', path, '--id-path', world.labeled, '--set',
                   'protocol=sliding_window', 'crop_size=24', '--absent', 'zero')
    changed = world.load(val_id_path=world.labeled, protocol='sliding_window', crop_size=24)
    assert (got['absent'], got['protocol']) == ('zero', 'sliding_window')
    found = got['scores']['student']
    assert found['images'] == 5
    assert found['miou'] == pytest.approx(expected(student, changed, absent='zero').miou)


def test_eval_with_scales_and_flip(networks, tmp_path, capsys):
    world, cfg, student, _ = networks
    path = str(tmp_path / 'best.pth')
    torch.save({'model': network_weights(student), 'config': config.to_dict(cfg)}, path)
    got = run_eval(tmp_path, '--checkpoint', path, '--scales', '0.5', '1.25', '--flip')
    how = predictor('original', 0, (0.5, 1.25), True)
    assert got['scores']['student']['miou'] == expected(student, cfg, predict=how).miou
    assert got['scores']['student']['miou'] != expected(student, cfg).miou
    assert (got['scales'], got['flip']) == ([0.5, 1.25], True)
    assert 'scales 0.5 1.25, flipped' in capsys.readouterr().out


@pytest.mark.parametrize('scale', ['0', '-1', 'nan', 'inf', 'big', '9'])
def test_impossible_scales(capsys, scale):
    with pytest.raises(SystemExit) as ended:
        eval_script.main(['--checkpoint', 'x.pth', '--scales=' + scale])
    assert ended.value.code == 2 and f"'{scale}'" in capsys.readouterr().err


def test_both_networks_of_a_file_in_one_pass(networks, tmp_path, monkeypatch):
    world, cfg, student, teacher = networks
    path = str(tmp_path / 'published.pth')
    torch.save({'model': public_state(student), 'model_ema': public_state(teacher)}, path)
    opened = []
    item = EvalSet.__getitem__
    monkeypatch.setattr(EvalSet, '__getitem__',
                        lambda self, i: opened.append(i) or item(self, i))
    got = run_eval(tmp_path, '--checkpoint', path, '--config', world.config_path, '--weights',
                   'both', '--set', 'workers=0')
    assert sorted(opened) == [0, 1, 2]
    for role, model in (('student', student), ('teacher', teacher)):
        assert got['scores'][role]['miou'] == expected(model, cfg).miou


def test_both_networks_of_a_file_with_one(networks, tmp_path):
    world, cfg, student, _ = networks
    path = str(tmp_path / 'best.pth')
    torch.save({'model': network_weights(student), 'weights': 'student',
                'config': config.to_dict(cfg)}, path)
    with pytest.raises(UserError, match='best.pth: does not contain both .*student.*latest'):
        eval_script.main(['--checkpoint', path, '--weights', 'both'])


@pytest.mark.parametrize('flag', [[], ['--absent', 'skip'], ['--absent', 'zero']], ids=' '.join)
def test_absent_classes_are_skipped_or_counted_as_zero(tiny_world, tmp_path, flag):
    cfg = tiny_world().load(nclass=6)  # its masks have three classes
    model, path = build_model(cfg), str(tmp_path / 'best.pth')
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.copy_(torch.arange(6, 0, -1).float())  # all pixels: class 0
    torch.save({'model': network_weights(model), 'config': config.to_dict(cfg)}, path)
    got = run_eval(tmp_path, '--checkpoint', path, *flag)
    found = got['scores']['student']
    first, counted = found['classes'][0]['iou'], 6 if 'zero' in flag else 3
    assert found['absent'] == 3 and found['miou'] == pytest.approx(first / counted)


def test_weights_of_the_other_network_are_refused(networks, tmp_path):
    world, cfg, student, _ = networks
    path = str(tmp_path / 'best.pth')
    torch.save({'model': network_weights(student), 'weights': 'student',
                'config': config.to_dict(cfg)}, path)
    with pytest.raises(UserError, match='best.pth.*student.*teacher'):
        eval_script.main(['--checkpoint', path, '--weights', 'teacher'])


def test_the_files_of_a_run_give_the_scores_of_its_log(tiny_world, tmp_path):
    world = tiny_world(epochs=1)
    train_script.main(['--config', world.config_path])
    with open(os.path.join(world.save_path, 'metrics.jsonl')) as file:
        line, _ = [json.loads(text) for text in file]
    for name, role in (('best.pth', 'student'), ('t_best.pth', 'teacher')):
        got = run_eval(tmp_path, '--checkpoint', os.path.join(world.save_path, name))
        assert {role: line[role]} == {r: found['miou'] for r, found in got['scores'].items()}
    latest = os.path.join(world.save_path, 'latest.pth')
    got = run_eval(tmp_path, '--checkpoint', latest, '--weights', 'both')
    assert {role: found['miou'] for role, found in got['scores'].items()} == {
        role: line[role] for role in ('student', 'teacher')}
