"""Benchmarks: both ways are timed in the same way and give the same results. No times."""
import itertools
import json
import os
import tempfile
import time

import numpy as np
import pytest
import torch
import yaml
from commands import bench as main
from PIL import Image
from test_distributed import launch

from dssn import config
from dssn.batch import STD, normalise
from dssn.data import views
from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.methods.dssn import DSSNConfig
from dssn.models import build_model
from dssn.tools import output_files
from dssn.tools.bench import (
    computed_memory,
    evaluation,
    loader,
    memory,
    step,
    synthetic_images,
    timed_update,
    timing,
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_ways_take_turns_and_the_first_round_is_not_counted(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock[0])

    def way(name, cost):
        def run():
            calls.append(name)
            clock[0] += 100 if calls.count(name) == 1 else cost
        return run
    seconds = timing.time_in_turns({'a': way('a', 2), 'b': way('b', 8)}, 3, torch.device('cpu'))
    assert calls == ['a', 'b'] * 4
    assert seconds == {'a': [2, 2, 2], 'b': [8, 8, 8]}


def test_a_clock_can_be_given():
    ticks = iter([0, 10, 13])
    seconds = timing.time_in_turns({'a': lambda: None}, 1, torch.device('cpu'), lambda: next(ticks))
    assert seconds == {'a': [3]}


def test_the_ratio_is_the_median_over_rounds():
    assert timing.ratio({'a': [4, 1, 9], 'b': [2, 1, 1]}, 'a', 'b') == 2


def test_an_unwritable_json(tmp_path):
    with pytest.raises(UserError, match='--json .*no/f.json: cannot be written'):
        output_files.write_json(str(tmp_path / 'no' / 'f.json'), {})
    output_files.write_json(None, {})


@pytest.mark.parametrize('keys', [{}, {'protocol': 'sliding_window', 'crop_size': 24}])
def test_plain_evaluation_gives_the_same_scores(tiny_world, keys):
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
def test_synthetic_images_and_their_masks(tmp_path, kind):
    samples = synthetic_images.write_images(str(tmp_path), 3, (50, 40), 2, kind)
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


def test_different_scores_give_exit_status_1(tiny_world, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, 'plain', lambda *_: {'student': -1.0, 'teacher': -1.0})
    assert main(['eval', '--config', tiny_world(workers=0).config_path, '--images', '1', '--size',
                 '40', '30', '--rounds', '1']) == 1
    assert 'different scores' in capsys.readouterr().out


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
    spent = result['parts']
    assert set(spent) == set(timed_update.PARTS)
    used = set(timed_update.PARTS) - (
        {'teacher forward', 'EMA'} if method == 'supervised' else set())
    assert all(spent[part] > 0 for part in used)
    assert all(spent[part] == 0 for part in set(spent) - used)
    assert result['clock'] == 'wall' and 'step_over_alone' not in result
    # 0 if earlier tests of this process have needed more memory than the step.
    assert result['peak_memory_mib'] > result['step_memory_mib'] >= 0


@pytest.mark.parametrize('lean', [False, True])
def test_the_floor_makes_the_passes_of_a_step_and_changes_no_weight(tiny_world, lean):
    bench = step.StepBench(tiny_world().load(batch_size=2, lean=lean), World())
    calls = [(network is bench.student, tuple(args[0].shape[:1]), kwargs.get('perturb', 0), grad)
             for network, args, kwargs, grad in bench.calls]
    # Both weak views by the teacher; labeled and unlabeled with views, then the strong views.
    assert calls == [(False, (4,), 0, False), (True, (4,), 2, True), (True, (4,), 0, True)]
    before = {name: p.clone() for name, p in bench.student.named_parameters()}
    bench.floor()
    for name, parameter in bench.student.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    bench.step()
    assert not torch.equal(bench.student.classifier.weight, before['classifier.weight'])


def test_data_wait_is_the_time_of_the_loader(tiny_world, monkeypatch):
    bench = step.StepBench(tiny_world(workers=0).load(batch_size=2), World())
    real = bench.load_batches

    def slowly(*args):
        for batch in real(*args):
            time.sleep(0.2)
            yield batch
    monkeypatch.setattr(bench, 'load_batches', slowly)
    assert bench.time_parts(2, (40, 30))['data wait'] > 0.2
    # As many batches as requested, with the crop of the config.
    with tempfile.TemporaryDirectory() as root:
        batches = list(real(root, 3, (40, 30)))
    assert len(batches) == 3
    assert batches[0].unlabeled.weak.shape == bench.batch.unlabeled.weak.shape


def test_processor_time_does_not_include_waiting(tiny_world, monkeypatch, tmp_path):
    real, path = step.StepBench.step, str(tmp_path / 'result.json')

    def waits(bench, *args):
        time.sleep(3)
        return real(bench, *args)
    monkeypatch.setattr(step.StepBench, 'step', waits)
    assert main(['step', '--config', tiny_world(device='cpu').config_path, '--bare', '--rounds',
                 '1', '--processor-time', '--json', path]) == 0
    with open(path) as file:
        result = json.load(file)
    assert result['clock'] == 'processor' and 0 < result['seconds']['step'][0] < 2


@pytest.mark.slow
def test_two_processes_measure_the_cost_of_their_exchange(tiny_world, tmp_path):
    path, script = str(tmp_path / 'result.json'), tmp_path / 'bench.py'
    script.write_text('from dssn.__main__ import main\nfrom dssn.distributed import exit\n'
                      'import sys\nexit(main(["bench"] + sys.argv[1:]))\n')
    launch(script, 'step', '--config', tiny_world(workers=0).config_path, '--rounds', '2', '--json',
           path)
    with open(path) as file:
        result = json.load(file)
    assert result['processes'] == 2
    assert set(result['seconds']) == {'step', 'floor', 'alone'}
    assert result['step_over_alone'] == pytest.approx(
        timing.ratio(result['seconds'], 'step', 'alone'))


@pytest.mark.parametrize('labeled', [0, 1, 3])
def test_a_random_batch_has_the_shapes_of_the_loader(tiny_world, labeled):
    from dssn.data.lists import read_list
    from dssn.data.loaders import TrainLoader
    cfg = tiny_world().load(workers=0, labeled_batch_size=labeled)
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
    assert memory.option_lines(cfg) == [
        [], ['checkpoint_backbone=true'], ['lean=true'], ['accumulate=4'],
        ['checkpoint_backbone=true', 'lean=true', 'accumulate=4']]
    assert ['lean=true'] not in memory.option_lines(tiny_world(method='supervised').load())
    # The greatest common divisor, if it is not 1.
    assert ['accumulate=2'] in memory.option_lines(
        tiny_world().load(labeled_batch_size=6, batch_size=4))
    other = memory.option_lines(tiny_world().load(labeled_batch_size=3, batch_size=4))
    assert not any('accumulate' in key for keys in other for key in keys)


@pytest.mark.parametrize('method, labeled, batch, rates', [
    ('DSSN', 3, '3 and 2', '6.00 labeled, 4.00 unlabeled'),
    ('DSSN', 0, '2 and 2', '4.00 labeled, 4.00 unlabeled'),
    ('supervised', 3, '3', '6.00 labeled')])
def test_reports_name_the_images_of_each_kind(tiny_world, capsys, method, labeled, batch, rates):
    cfg = tiny_world(method=method).load(labeled_batch_size=labeled)
    step.print_report(cfg, {'machine': 'm', 'arithmetic': '', 'processes': 1, 'clock': 'wall',
                      'seconds': {'step': [0.5]}, 'parts': {}, 'peak_memory_mib': 1,
                      'step_memory_mib': 1})
    out = capsys.readouterr().out
    assert f', batch {batch}, processes: 1;' in out
    assert f'images a second: {rates}\n' in out
    memory.print_last_line(cfg, [{'machine': 'm', 'keys': [], 'seconds': None,
                                  'step_memory_mib': 1.0, 'step_tflop': 2.0}])
    assert f', batch {batch}\n' in capsys.readouterr().out


def test_a_step_is_timed_on_its_own_numbers_of_images(tiny_world):
    bench = step.StepBench(tiny_world(workers=0).load(labeled_batch_size=3), World())
    assert [len(args[0]) for _, args, _, _ in bench.calls] == [4, 5, 4]
    with tempfile.TemporaryDirectory() as root:
        batches = list(itertools.islice(bench.load_batches(root, 3, (40, 30)), 3))
    assert [(len(batch.labeled.image), len(batch.unlabeled.weak))
            for batch in batches] == 3 * [(3, 2)]


@pytest.mark.slow
def test_bench_memory_is_a_table_of_processes(tiny_world, monkeypatch, tmp_path, capsys):
    world, path = tiny_world(batch_size=1), str(tmp_path / 'result.json')
    monkeypatch.setattr(memory, 'option_lines', lambda cfg: [[], ['lean=true']])
    monkeypatch.chdir(ROOT)
    assert main(['memory', '--config', world.config_path, '--rounds', '1', '--json', path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert '| plain |' in lines[-2] and '| lean=true |' in lines[-1]
    with open(path) as file:
        plain, lean = json.load(file)['lines']
    assert plain['keys'] == [] and lean['keys'] == ['lean=true']
    assert plain['step_memory_mib'] > 0 and lean['seconds'] > 0


def test_a_process_that_fails_is_named(tiny_world, monkeypatch, capsys):
    monkeypatch.setattr(memory, 'option_lines', lambda cfg: [['crop_size=none']])
    monkeypatch.chdir(ROOT)
    assert main(['memory', '--config', tiny_world().config_path]) == 1
    assert 'crop_size=none: the process ended with 1' in capsys.readouterr().err


# ---- computed memory

COMPUTES = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 2)
computes = pytest.mark.skipif(not COMPUTES, reason='needs PyTorch 2.2')


@computes
def test_bytes_of_tensors_that_exist_at_the_same_time():
    with computed_memory.LiveBytes() as living:
        a = torch.empty(1024, device='meta')              # 4 KiB
        b = a.view(32, 32)                                # the same memory
        c = a + 1                                         # 8 KiB
        assert living.now == 8192
        c.add_(1)
        del a
        assert living.now == 8192
        del b
        assert living.now == 4096
        d = c.double()                                    # 12 KiB
        del c
        e = torch.empty(1, device='meta')                 # a block of the allocator
        assert (living.now, living.peak) == (8192 + 512, 8192 + 4096)
        del d, e
    assert (living.now, living.peak) == (0, 8192 + 4096)


@computes
def test_activations_live_until_the_backward_pass():
    with computed_memory.LiveBytes() as living:
        x = torch.empty(256, device='meta', requires_grad=True)
        y = x
        for _ in range(5):
            y = y.exp()
        assert living.now == 6 * 1024
        y.sum().backward()
        assert living.peak <= 6 * 1024 + 2 * 512 + 3 * 1024


@computes
def test_computed_memory_includes_weights_and_activations(tiny_world):
    world = tiny_world(batch_size=2)
    cfg = world.load()
    weights = sum(p.numel() for p in build_model(cfg).parameters()) * 4 / 2 ** 20
    plain, tflop = computed_memory.computed_step(cfg)
    assert plain > 4 * weights  # student, gradients, momenta, teacher
    larger = computed_memory.computed_step(world.load(crop_size=2 * cfg.crop_size))
    assert larger[0] > 2 * plain and larger[1] > 3 * tflop
    for key, value in (('accumulate', 2), ('checkpoint_backbone', True), ('lean', True)):
        assert computed_memory.computed_step(world.load(**{key: value}))[0] < plain


@computes
@pytest.mark.parametrize('side, encoder, head', [(518, 46.7, 10.2), (798, 167.2, 24.2)])
def test_operations_of_a_vision_transformer(side, encoder, head):
    """GMAC an image, counted by hand; attention keeps no weights of all pairs of tokens."""
    cfg = config.load(os.path.join(ROOT, 'configs/pascal_dinov2.yaml'), None, [
        'backbone=dinov2_small', 'method=unimatch_v2', 'batch_size=1', f'crop_size={side}'])
    peak, tflop = computed_memory.computed_step(cfg)
    # The teacher passes one image; the student three, forward and twice that backward. There fused
    # attention computes its products of all pairs once more, one of the two of the forward pass.
    tokens = 1 + (side / 14) ** 2
    pairs = 12 * 384 * tokens ** 2 / 1e9
    expected = (1 + 3 * 3) * (encoder + head) + 3 * pairs
    assert tflop == pytest.approx(2 * expected / 1e3, rel=0.005)
    # The weights of all pairs of tokens (float32, 12 blocks, 6 heads) would need more than this.
    assert side == 518 or peak * 2 ** 20 < 3 * 12 * 6 * 4 * tokens ** 2


@pytest.mark.slow
@computes
def test_bench_memory_computed(tiny_world, tmp_path, capsys):
    path = str(tmp_path / 'result.json')
    assert main(['memory', '--config', tiny_world(batch_size=1).config_path, '--computed', '--json',
                 path]) == 0
    out = capsys.readouterr().out
    assert '| plain | ' in out and 'seconds' not in out and 'TFLOP a step' in out
    with open(path) as file:
        lines = json.load(file)['lines']
    assert [line['keys'] for line in lines][:2] == [[], ['checkpoint_backbone=true']]
    assert lines[-1]['step_memory_mib'] < lines[0]['step_memory_mib']


def test_memory_that_cannot_be_computed(tiny_world, capsys):
    assert main(['memory', '--config', tiny_world().config_path, '--computed', '--set',
                 'amp=bf16']) == 1
    message = capsys.readouterr().err
    assert ('amp = bf16' if COMPUTES else 'needs PyTorch 2.2') in message


# The loader.

@pytest.fixture
def both_ways(tiny_world, tmp_path):
    """Function of config keys and a size: batches of an epoch, ours and plain."""
    def make(size=(50, 40), **keys):
        cfg = tiny_world(data_root=str(tmp_path), **keys).load()
        samples = synthetic_images.write_images(str(tmp_path), 6, size, cfg.nclass)
        return [list(way.batches(1)) for way in
                (loader.loader_of(cfg, samples), loader.PlainLoader(cfg, samples))]
    return make


@pytest.mark.parametrize('partner, labeled', [('same', 0), ('other', 0), ('same', 3), ('other', 1),
                                              ('batch', 0)])
def test_the_plain_loader_gives_the_same_batches(both_ways, monkeypatch, partner, labeled):
    # Without the strong operations, which would amplify a difference of one grey level.
    for module in (views, loader):
        monkeypatch.setattr(module, 'strong_operations', lambda *_: [])
    ours, plain = both_ways(cutmix_partner=partner, crop_size=49, labeled_batch_size=labeled)
    assert len(ours) == len(plain) == 3
    for mine, other in zip(ours, plain):
        assert (mine.partner is None) == (other.partner is None) == (partner == 'batch')
        for a, b in zip(mine, other):
            if a is None:
                continue
            assert a._fields == b._fields
            for name in a._fields:
                x, y = getattr(a, name), getattr(b, name)
                if name == 'label':  # the plain loader gives int64
                    assert torch.equal(x.long(), y)
                elif x.dtype == torch.uint8:
                    assert (normalise(x) - y).abs().max() * 255 * max(STD) < 2.3
                else:
                    assert torch.equal(x, y), name
    assert loader.difference(ours, plain) <= 2


@pytest.mark.parametrize('keys', [{}, dict(
    scale_range=[3.0, 4.0], jitter_strength=0.9, jitter_hue=0.5, grayscale_probability=0.0,
    blur_probability=1.0, blur_sigma=[2.0, 5.0], cutmix_probability=1.0, cutmix_area=[0.2, 0.2])],
    ids=['published', 'other'])
def test_the_plain_loader_makes_the_same_strong_views(both_ways, keys):
    # Images of one pixel, which both ways resize exactly.
    ours, plain = both_ways(size=(1, 1), num_aug=3, **keys)
    seen = 0
    for mine, other in zip(ours, plain):
        for name in ('strong1', 'strong2'):
            one, two = getattr(mine.unlabeled, name), getattr(other.unlabeled, name)
            assert (normalise(one) - two).abs().max() < 1e-5
            box = getattr(mine.partner, 'box' + name[-1])
            for row in range(len(box)):
                if box[row].any():  # ours makes only the pixels inside the box
                    seen += 1
                    top, left, height, width = box[row].tolist()
                    a, b = (getattr(part, name)[row:row + 1, :, top:top + height, left:left + width]
                            for part in (mine.partner, other.partner))
                    assert (normalise(a) - b).abs().max() < 1e-5
    assert seen


def test_the_plain_strong_view_has_the_same_pixels():
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    cfg = DSSNConfig(num_aug=3)
    for seed in range(100):
        plain = loader.plain_strong_view(image, views.generator(seed), cfg)
        assert plain.tobytes() == views.strong_view(image, views.generator(seed), cfg).tobytes()


def test_different_batches_are_detected(both_ways):
    ours, plain = both_ways()
    assert loader.difference(ours, plain) <= 2
    ours[1].labeled.label[0, 0, 0] += 1
    assert loader.difference(ours, plain) == float('inf')
    ours[1].labeled.label[0, 0, 0] -= 1
    ours[2].partner.weak[0, 1, 3, 3] ^= 64
    assert loader.difference(ours, plain) > 60
    ours[0].unlabeled.valid[0, 5, 5] ^= True
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


def test_different_views_give_exit_status_1(tiny_world, monkeypatch, capsys):
    monkeypatch.setattr(loader, 'difference', lambda *_: 3.0)
    assert main(['loader', '--config', tiny_world().config_path, '--samples', '2', '--size', '40',
                 '30', '--rounds', '1']) == 1
    assert 'differ by at most 3 ' in capsys.readouterr().out
