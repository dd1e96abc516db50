"""Benchmarks: that both ways are timed alike and do the same; never how long they take."""
import json

import numpy as np
import pytest
import torch
import yaml

from dssn.bench import evaluation, timing
from dssn.bench.__main__ import main
from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.models import build_model


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


def test_drawn_masks_hold_classes_of_the_config(tmp_path):
    samples = evaluation.draw_list(str(tmp_path), 3, (50, 40), 2)
    assert len(samples) == 3
    for sample in samples:
        mask = np.asarray(evaluation.Image.open(str(tmp_path / sample.mask)))
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
