"""Benchmarks: that both ways are timed alike and do the same; never how long they take."""
import json
import os

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dssn.batch import STD, normalise
from dssn.bench import evaluation, loader, memory, pictures, step, timing
from dssn.bench.__main__ import main
from dssn.data import views
from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.models import build_model

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_ways_take_turns_and_the_first_round_is_not_counted(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock[0])

    def way(name, cost):
        def run():
            calls.append(name)
            clock[0] += 100 if calls.count(name) == 1 else cost
        return run
    seconds = timing.interleaved({'a': way('a', 2), 'b': way('b', 8)}, 3, torch.device('cpu'))
    assert calls == ['a', 'b'] * 4
    assert seconds == {'a': [2, 2, 2], 'b': [8, 8, 8]}


def test_another_clock():
    ticks = iter([0, 10, 13])
    seconds = timing.interleaved({'a': lambda: None}, 1, torch.device('cpu'), lambda: next(ticks))
    assert seconds == {'a': [3]}


def test_the_ratio_is_the_median_over_rounds():
    assert timing.ratio({'a': [4, 1, 9], 'b': [2, 1, 1]}, 'a', 'b') == 2


def test_an_unwritable_json(tmp_path):
    with pytest.raises(UserError, match='--json .*no/f.json: cannot be written'):
        timing.write_json(str(tmp_path / 'no' / 'f.json'), {})
    timing.write_json(None, {})


@pytest.mark.parametrize('keys', [{}, {'protocol': 'sliding_window', 'crop_size': 24}])
def test_the_plain_way_finds_what_ours_does(tiny_world, keys):
    cfg = tiny_world().load(workers=0, **keys)
    samples, networks = read_list(cfg.val_id_path), {}
    for seed, role in enumerate(('student', 'teacher')):
        torch.manual_seed(seed)
        networks[role] = build_model(cfg)
        networks[role].classifier.weight.data.mul_(30)
    found = evaluation.plain(networks, cfg, samples, torch.device('cpu'))
    assert found == pytest.approx(evaluation.ours(networks, cfg, samples, World()), abs=1e-9)
    assert 0 < found['student'] != found['teacher']


@pytest.mark.parametrize('kind', ['jpg', 'png'])
def test_drawn_files_and_their_masks(tmp_path, kind):
    samples = pictures.draw_list(str(tmp_path), 3, (50, 40), 2, kind)
    assert len(samples) == 3
    for sample in samples:
        with Image.open(str(tmp_path / sample.image)) as image:
            assert image.size == (50, 40) and image.format == {'jpg': 'JPEG', 'png': 'PNG'}[kind]
        mask = np.asarray(Image.open(str(tmp_path / sample.mask)))
        assert mask.shape == (40, 50) and set(np.unique(mask)) <= {0, 1}


def test_bench_eval(tiny_world, tmp_path, capsys):
    world, path = tiny_world(workers=0), str(tmp_path / 'result.json')
    assert main(['eval', '--config', world.config_path, '--images', '2', '--size', '40', '30',
                 '--rounds', '1', '--json', path]) == 0
    out = capsys.readouterr().out
    assert 'plain / ours' in out and 'the same scores' in out
    with open(path) as file:
        result = json.load(file)
    assert set(result['seconds']) == {'ours', 'plain'}
    assert result['plain_over_ours'] == pytest.approx(
        result['seconds']['plain'][0] / result['seconds']['ours'][0])
    with open(world.config_path) as file:
        assert result['config']['crop_size'] == yaml.safe_load(file)['crop_size']


def test_unlike_scores_are_said(tiny_world, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, 'plain', lambda *_: {'student': -1.0, 'teacher': -1.0})
    assert main(['eval', '--config', tiny_world(workers=0).config_path, '--images', '1', '--size',
                 '40', '30', '--rounds', '1']) == 1
    assert 'UNLIKE' in capsys.readouterr().out


# ---- step

@pytest.mark.parametrize('method', ['DSSN', 'supervised'])
def test_bench_step(tiny_world, tmp_path, capsys, method):
    world, path = tiny_world(method=method), str(tmp_path / 'result.json')
    compare = ['lean=true'] if method == 'DSSN' else ['channels_last=true']
    assert main(['step', '--config', world.config_path, '--rounds', '2', '--json', path,
                 '--compare'] + compare) == 0
    out = capsys.readouterr().out
    assert 'step / floor: ' in out and 'compared / step: ' in out and compare[0] in out
    with open(path) as file:
        result = json.load(file)
    assert {len(values) for values in result['seconds'].values()} == {2}
    parts = result['parts']
    assert set(parts) == set(step.PARTS)
    used = set(step.PARTS) - ({'teacher forward', 'EMA'} if method == 'supervised' else set())
    assert all(parts[part] > 0 for part in used)
    assert all(parts[part] == 0 for part in set(parts) - used)
    assert result['peak_memory_mib'] > result['step_memory_mib'] > 0


@pytest.mark.parametrize('lean', [False, True])
def test_the_floor_makes_the_passes_of_a_step_and_changes_no_weight(tiny_world, lean):
    subject = step.Subject(tiny_world().load(batch_size=2, lean=lean), World())
    calls = [(network is subject.student, tuple(args[0].shape[:1]), kwargs.get('perturb', 0), grad)
             for network, args, kwargs, grad in subject.calls]
    # Both weak views of the teacher, labeled and unlabeled with views, and the strong views.
    assert calls == [(False, (4,), 0, False), (True, (4,), 2, True), (True, (4,), 0, True)]
    before = {name: p.clone() for name, p in subject.student.named_parameters()}
    subject.floor()
    for name, parameter in subject.student.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    subject.step()
    assert not torch.equal(subject.student.classifier.weight, before['classifier.weight'])


def test_a_random_batch_is_what_the_loader_gives(tiny_world):
    from dssn.data.lists import read_list
    from dssn.data.loaders import TrainLoader
    cfg = tiny_world().load(workers=0)
    real = next(iter(TrainLoader(cfg, read_list(cfg.labeled_id_path),
                                 read_list(cfg.unlabeled_id_path, False)).batches(0)))
    for part, found in zip(real, step.random_batch(cfg, True)):
        for name, tensor in part._asdict().items():
            assert getattr(found, name).shape == tensor.shape, name
            assert getattr(found, name).dtype == tensor.dtype, name


# ---- memory

def test_every_option_alone_and_all_together(tiny_world):
    cfg = tiny_world().load(batch_size=4)
    if torch.cuda.is_available():
        pytest.skip('a GPU has one option more')
    assert memory.options(cfg) == [
        [], ['checkpoint_backbone=true'], ['lean=true'], ['accumulate=4'],
        ['checkpoint_backbone=true', 'lean=true', 'accumulate=4']]
    assert ['lean=true'] not in memory.options(tiny_world(method='supervised').load())


def test_bench_memory_is_a_table_of_processes(tiny_world, monkeypatch, tmp_path, capsys):
    world, path = tiny_world(batch_size=1), str(tmp_path / 'result.json')
    monkeypatch.setattr(memory, 'options', lambda cfg: [[], ['lean=true']])
    monkeypatch.chdir(ROOT)
    assert main(['memory', '--config', world.config_path, '--rounds', '1', '--json', path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert '| plain |' in lines[-2] and '| lean=true |' in lines[-1]
    with open(path) as file:
        plain, lean = json.load(file)['lines']
    assert plain['keys'] == [] and lean['keys'] == ['lean=true']
    assert plain['step_memory_mib'] > 0 and lean['seconds'] > 0


def test_a_process_that_fails_is_named(tiny_world, monkeypatch, capsys):
    monkeypatch.setattr(memory, 'options', lambda cfg: [['crop_size=none']])
    monkeypatch.chdir(ROOT)
    assert main(['memory', '--config', tiny_world().config_path]) == 1
    assert 'crop_size=none: the process ended with 1' in capsys.readouterr().err


# The loader.

@pytest.fixture
def both_ways(tiny_world, tmp_path):
    """Function of config keys and a size: batches of an epoch, ours and the plain way's."""
    def make(size=(50, 40), **keys):
        cfg = tiny_world(data_root=str(tmp_path), **keys).load()
        samples = pictures.draw_list(str(tmp_path), 6, size, cfg.nclass)
        return [list(way.batches(1)) for way in
                (loader.loader_of(cfg, samples), loader.PlainLoader(cfg, samples))]
    return make


@pytest.mark.parametrize('partner', ['same', 'other'])
def test_the_plain_order_gives_the_same_batches(both_ways, monkeypatch, partner):
    # Without the strong operations, which multiply a difference of a grey level.
    for module in (views, loader):
        monkeypatch.setattr(module, 'strong_operations', lambda *_: [])
    ours, plain = both_ways(cutmix_partner=partner, crop_size=49)
    assert len(ours) == len(plain) == 3
    for mine, other in zip(ours, plain):
        for a, b in zip(mine, other):
            assert a._fields == b._fields
            for name in a._fields:
                x, y = getattr(a, name), getattr(b, name)
                if x.dtype == torch.uint8:
                    assert (normalise(x) - y).abs().max() * 255 * max(STD) < 2.3
                else:
                    assert torch.equal(x, y), name
    assert loader.difference(ours, plain) <= 2


def test_the_plain_order_makes_the_same_strong_views(both_ways):
    # Of images of one pixel: there both ways resize alike.
    ours, plain = both_ways(size=(1, 1), num_aug=3)
    seen = 0
    for mine, other in zip(ours, plain):
        for name in ('strong1', 'strong2'):
            assert (normalise(getattr(mine.u, name)) - getattr(other.u, name)).abs().max() < 1e-5
            box = getattr(mine.v, 'box' + name[-1])
            for row in range(len(box)):
                if box[row].any():  # ours makes what is in the box alone
                    seen += 1
                    top, left, height, width = box[row].tolist()
                    a, b = (getattr(part, name)[row:row + 1, :, top:top + height, left:left + width]
                            for part in (mine.v, other.v))
                    assert (normalise(a) - b).abs().max() < 1e-5
    assert seen


def test_the_plain_strong_view_has_the_same_pixels():
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    for seed in range(100):
        plain = loader.plain_strong_view(image, views.generator(seed), 3, True)
        assert plain.tobytes() == views.strong_view(image, views.generator(seed), 3).tobytes()


def test_unlike_batches_are_told(both_ways):
    ours, plain = both_ways()
    assert loader.difference(ours, plain) <= 2
    ours[1].x.label[0, 0, 0] += 1
    assert loader.difference(ours, plain) == float('inf')
    ours[1].x.label[0, 0, 0] -= 1
    ours[2].v.weak[0, 1, 3, 3] ^= 64
    assert loader.difference(ours, plain) > 60
    ours[0].u.valid[0, 5, 5] ^= True
    assert loader.difference(ours, plain) == float('inf')


@pytest.mark.parametrize('method, options', [
    ('DSSN', ['--workers', '1']), ('DSSN', ['--format', 'png']), ('supervised', [])])
def test_bench_loader(tiny_world, tmp_path, capsys, method, options):
    path = str(tmp_path / 'result.json')
    assert main(['loader', '--config', tiny_world(method=method).config_path, '--samples', '4',
                 '--size', '40', '30', '--rounds', '1', '--json', path] + options) == 0
    assert 'plain / ours' in capsys.readouterr().out
    with open(path) as file:
        result = json.load(file)
    assert set(result['seconds']) - {'1 workers'} == {'ours', 'plain'}
    assert ('1 workers' in result['seconds']) == ('--workers' in options)
    assert result['plain_over_ours'] == pytest.approx(
        result['seconds']['plain'][0] / result['seconds']['ours'][0])
    assert result['levels'] <= 2 and result['samples'] == 4


def test_unlike_views_are_said(tiny_world, monkeypatch, capsys):
    monkeypatch.setattr(loader, 'difference', lambda *_: 3.0)
    assert main(['loader', '--config', tiny_world().config_path, '--samples', '2', '--size', '40',
                 '30', '--rounds', '1']) == 1
    assert 'differ by 3 ' in capsys.readouterr().out
