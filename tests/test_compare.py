"""`experiments compare`: a method and its baselines on a user's own config."""
import shlex
import shutil
import statistics
import subprocess

import pytest
from commands import experiments as main
from test_experiments import here, stand_in  # noqa: F401, fixtures

from dssn.errors import UserError
from dssn.tools.experiments import compare

SCORES = {
    ('40', 'supervised', 'student'): {1: 50.0, 2: 52.0, 3: 54.0},
    ('40', 'control', 'student'): {1: 53.0, 2: 54.0, 3: 55.0},
    ('40', 'control', 'teacher'): {1: 53.5, 2: 54.5, 3: 55.5},
    ('40', 'DSSN', 'student'): {1: 56.5, 2: 57.5, 3: 60.5},
    ('40', 'DSSN', 'teacher'): {1: 56.0, 2: 57.0, 3: 60.0}}


@pytest.fixture
def comparison(here, stand_in, monkeypatch):  # noqa: F811
    """Its command line as a function, in a checkout whose trainings are stand-ins."""
    checkout = here()
    for name, value in checkout.environment.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: main(['compare', 'configs/tiny.yaml', *arguments])


def test_a_comparison_trains_baselines_and_method_for_equal_steps(comparison, capfd):
    assert comparison('--split', 'all', '--list') == 0
    listed = capfd.readouterr().out.splitlines()
    assert len(listed) == 10 and listed[-1] == '9 runs: 0 done, 0 started, 9 to do'
    assert len({line.split(', ')[3].split(':')[0] for line in listed[:-1]}) == 1  # steps
    assert comparison('--split', 'all', '--seeds', '1', '2', '--methods', 'DSSN', 'fixmatch') == 0
    out = capfd.readouterr().out
    # The stand-in gives all students the same scores and all teachers lower ones.
    for method in ('DSSN', 'fixmatch'):
        assert f'- split all, {method}: 0.00 ± 0.00 (2 seeds, se 0.00) over supervised, the ' \
            'better baseline: neither gain nor loss' in out
    assert '| all | DSSN | teacher | 38.00 ± 0.00 | -4.00 ± 0.00 (2 seeds, se 0.00) |' in out
    comparison('--split', 'all', '--list')
    assert capfd.readouterr().out.splitlines()[-1] == '9 runs: 6 done, 0 started, 3 to do'


def test_the_tasks_of_an_array_job_have_the_same_runs(comparison, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(subprocess, 'call', lambda command: sent.append(command) or 0)
    monkeypatch.setattr(shutil, 'which', lambda _: '/bin/sbatch')
    given = ['--split', 'all', '--seeds', '4', '5', '--methods', 'unimatch', '--set', 'epochs=3']
    assert comparison(*given, '--slurm', 'gpu', '--time=1:00:00') == 0
    options = dict(word.lstrip('-').partition('=')[::2] for word in sent[0][1:])
    assert options['array'] == '0-5' and options['time'] == '1:00:00'
    words = shlex.split(options['wrap'])
    assert words[1:4] == ['-m', 'dssn', 'experiments'] and words[-2] == '--task'
    capsys.readouterr()
    main([*words[4:-2], '--list'])
    of_task = capsys.readouterr().out
    comparison(*given, '--list')
    assert capsys.readouterr().out == of_task and 'seed 5, 12 steps' in of_task


@pytest.mark.parametrize('change, expected', [
    # The teacher of the control is the better baseline: 3, 3, 5 above it.
    ({}, 'a gain'),
    ({('40', 'DSSN', 'student'): {1: 48.0, 2: 47.0, 3: 49.0},
      ('40', 'DSSN', 'teacher'): {1: 47.0, 2: 47.0, 3: 48.0}}, 'a loss'),
    ({('40', 'DSSN', 'student'): {1: 50.0, 2: 57.5, 3: 60.5},
      ('40', 'DSSN', 'teacher'): {1: 49.0, 2: 57.0, 3: 60.0}}, 'neither gain nor loss'),
    ({('40', 'DSSN', 'student'): {1: 56.5}, ('40', 'DSSN', 'teacher'): {1: 50.0}},
     'there is no spread'),
    ({('40', 'DSSN', 'student'): {7: 56.5}, ('40', 'DSSN', 'teacher'): {7: 50.0}},
     'no common seed'),
    ({('40', 'supervised', 'student'): {}}, 'runs are missing')])
def test_conclusions(change, expected):
    scores = {key: value for key, value in {**SCORES, **change}.items() if value}
    assert expected in compare.conclusion(scores, '40', 'DSSN')


def test_gains_are_those_of_the_same_seed():
    found = compare.differences(SCORES['40', 'DSSN', 'student'],
                                SCORES['40', 'control', 'teacher'])
    assert found == {1: 3.0, 2: 3.0, 3: 5.0}
    deviation = statistics.stdev([3, 3, 5])
    assert compare.gain_text(found) == \
        f'+3.67 ± {deviation:.2f} (3 seeds, se {deviation / 3 ** 0.5:.2f})'
    assert compare.gain_text({4: -1.0}) == '-1.00 (1 seed)' and compare.gain_text({}) == ''


@pytest.mark.parametrize('arguments, parts', [
    (['--split', 'all', 'all'], ['--split all all', 'once']),
    (['--split', 'all', '--seeds', '1', '1'], ['--seeds 1 1', 'once']),
    (['--split', 'all', '--methods', 'supervised'], ['--methods supervised', 'baseline']),
    (['--split', 'all', '--methods', 'DSN'], ["'DSN' is not known", "did you mean 'DSSN'?"]),
    (['--split', '../all'], ['--split', '../all'])])
def test_wrong_comparisons(comparison, capsys, arguments, parts):
    try:
        assert comparison(*arguments) == 1
        found = capsys.readouterr().err
    except UserError as error:
        found = str(error)
    assert all(part in found for part in parts), found
