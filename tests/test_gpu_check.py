"""The GPU check: budget, crashes, files on disk at each moment, and the page."""
import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from commands import bench as main

from dssn import atomic
from dssn.tools.bench import budget, gpu_check, gpu_page, kth, memory, step
from dssn.tools.bench.budget import CUT_OFF, FAILED, LEFT_OUT, PASSED, TIMED_OUT, Budget, Part

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def part(name, code, needs=0.0, limit=60.0, **keys):
    return Part(name, [sys.executable, '-c', code], needs, limit, **keys)


def has_ended(process):
    """Whether a process ends within seconds. It may not be our child: zombies count as ended."""
    for _ in range(100):
        try:
            with open(f'/proc/{process}/stat') as file:
                if file.read().rsplit(')', 1)[1].split()[0] == 'Z':
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def text_of(path):
    with open(path) as file:
        return file.read()


def outcomes(folder, parts, seconds=60, **keys):
    return {outcome.part.name: outcome
            for outcome in Budget(seconds, str(folder), **keys).run(parts)}


# ---- the budget

def test_a_part_that_crashes_or_hangs_does_not_affect_others(tmp_path):
    missing = Part('missing', [str(tmp_path / 'no_program')], 0, 60)
    found = outcomes(tmp_path, [
        part('crash', 'print("before"); raise ValueError("the reason")'),
        part('killed', 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'),
        part('hang', 'import time; print("begun", flush=True); time.sleep(600)', limit=1.5),
        missing, part('good', 'print("done")')])
    assert [found[name].outcome for name in ('crash', 'killed', 'hang', 'missing', 'good')] == [
        FAILED, FAILED, TIMED_OUT, FAILED, PASSED]
    assert found['crash'].reason == 'exit status 1: ValueError: the reason'
    assert found['crash'].output.startswith('before\n')
    assert found['killed'].reason.startswith('killed by signal 11')
    assert found['hang'].reason == 'not finished after 2 s' and found['hang'].output == 'begun\n'
    assert found['missing'].reason.startswith('could not be started: ')
    assert found['good'].output == 'done\n' and found['good'].reason == ''
    assert budget.failures(found.values()) == ['crash', 'killed', 'hang', 'missing']


def test_processes_that_a_part_started_are_ended_with_it(tmp_path):
    code = ('import subprocess, sys, time\n'
            'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
            'print(child.pid, flush=True); time.sleep(600)')
    found = outcomes(tmp_path, [part('hang', code, limit=3)])
    child = int(found['hang'].output)
    assert found['hang'].outcome == TIMED_OUT
    assert has_ended(child)


def test_parts_that_do_not_fit_are_left_out_and_smaller_ones_still_run(tmp_path):
    found = outcomes(tmp_path, [part('large', 'print(1)', needs=500), part('small', 'print(2)'),
                                part('long', 'import time; time.sleep(600)', limit=500),
                                part('late', 'print(3)', needs=1)], seconds=4)
    assert found['large'].outcome == LEFT_OUT and found['large'].output == ''
    assert re.match(r'needs about 500 s, [0-4] s were left', found['large'].reason)
    assert found['small'].outcome == PASSED
    assert found['long'].outcome == CUT_OFF and found['long'].seconds < 6
    assert found['late'].outcome == LEFT_OUT
    assert budget.failures(found.values()) == []


def test_timed_parts_run_alone_and_others_at_once(tmp_path):
    code = 'import time; print(time.time()); time.sleep(1); print(time.time())'
    parts = [part('a', code, alone=False), part('b', code, alone=False),
             part('timed', code), part('c', code, alone=False)]
    found = outcomes(tmp_path, parts, at_once=2)
    begun, ended = [{name: float(outcome.output.split()[i]) for name, outcome in found.items()}
                    for i in (0, 1)]
    assert begun['b'] < ended['a'] and begun['a'] < ended['b']
    assert begun['timed'] >= max(ended['a'], ended['b']) and begun['c'] >= ended['timed']


def test_a_part_without_a_readable_result_fails(tmp_path):
    good, none, broken = [str(tmp_path / name) for name in ('good', 'none', 'broken')]
    found = outcomes(tmp_path, [
        part('good', f'open({good!r}, "w").write("[1, 2]")', result=good),
        part('none', 'pass', result=none),
        part('broken', f'open({broken!r}, "w").write("[1,")', result=broken)])
    assert found['good'].found == [1, 2] and found['good'].outcome == PASSED
    for name in ('none', 'broken'):
        assert found[name].outcome == FAILED and 'wrote no readable result' in found[name].reason


def test_the_environment_of_a_part_and_its_folder(tmp_path):
    code = 'import os; print(os.environ["MINE"], os.path.realpath(os.getcwd()))'
    found = outcomes(tmp_path, [part('a', code, environment={'MINE': 'here'})],
                     cwd=str(tmp_path))
    assert found['a'].output.split() == ['here', os.path.realpath(str(tmp_path))]


def test_the_callback_gets_results_after_each_part(tmp_path):
    seen = []
    outcomes(tmp_path, [part('a', 'pass'), part('b', 'exit(3)'), part('c', 'pass', needs=100)],
             seconds=20, on_end=lambda found: seen.append([o.outcome for o in found]))
    assert seen == [[PASSED], [PASSED, FAILED], [PASSED, FAILED, LEFT_OUT]]


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = str(tmp_path / 'file')
    atomic.write_atomically(path, 'old')
    with monkeypatch.context() as patch:
        def full(number):
            raise OSError(28, 'No space left on device')
        patch.setattr(os, 'fsync', full)
        with pytest.raises(OSError):
            atomic.write_atomically(path, 'new')
    assert text_of(path) == 'old'
    atomic.write_atomically(path, 'new')
    assert text_of(path) == 'new' and os.listdir(str(tmp_path)) == ['file']


# ---- the command

@pytest.fixture
def two_parts(monkeypatch, tmp_path):
    """Function of parts: the check runs only a card and these parts. Returns the folder OUT."""
    def make(*parts):
        facts = {'kind': 'bench'}
        monkeypatch.setattr(gpu_check, 'card', lambda folder, rehearse:
                            part('card', 'pass', facts=facts))
        monkeypatch.setattr(gpu_check, 'parts', lambda folder, rehearse:
                            [one._replace(facts=facts) for one in parts])
        return str(tmp_path / 'out' / 'folder')
    yield make
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def read(out, name='results.json'):
    with open(os.path.join(out, name)) as file:
        return json.load(file) if name.endswith('json') else file.read()


def test_a_part_that_fails_is_named_and_the_status_is_1(two_parts, capsys):
    out = two_parts(part('bad', 'print("words"); exit(5)'), part('good', 'pass'),
                    part('large', 'pass', needs=1e6))
    assert main(['gpu_check', out, '--rehearse']) == 1
    captured = capsys.readouterr()
    assert 'failed: bad;' in captured.err and 'good' not in captured.err
    found = read(out)
    assert [(one['name'], one['outcome']) for one in found['parts']] == [
        ('card', PASSED), ('bad', FAILED), ('good', PASSED), ('large', LEFT_OUT)]
    assert found['to_come'] == [] and found['parts'][1]['output'] == 'words\n'
    assert '| large | left out: needs about 1000000 s' in read(out, 'results.md')
    assert read(out, 'results.md') in captured.out and 'words' in read(out, 'log.txt')
    assert sorted(os.listdir(out)) == ['log.txt', 'results.json', 'results.md']


def test_parts_left_out_are_no_failure(two_parts):
    out = two_parts(part('large', 'pass', needs=1e6))
    assert main(['gpu_check', out]) == 0


def test_results_are_on_disk_while_the_next_part_runs(two_parts, tmp_path):
    copy, out = str(tmp_path / 'copy'), str(tmp_path / 'out' / 'folder')
    second = part('second', f'import shutil; shutil.copytree({out!r}, {copy!r})')
    out = two_parts(part('first', 'pass'), second, part('third', 'pass'))
    assert main(['gpu_check', out, '--rehearse']) == 0
    found = read(copy)
    assert [one['name'] for one in found['parts']] == ['card', 'first']
    assert found['to_come'] == ['second', 'third']
    page = read(copy, 'results.md')
    assert '| first | passed |' in page and '| third | not run |' in page
    assert gpu_page.REHEARSAL_NOTE in page


def test_without_a_gpu_no_other_part_is_run(two_parts, monkeypatch, capsys):
    out = two_parts(part('never', 'pass'))
    monkeypatch.setattr(gpu_check, 'card', lambda folder, rehearse: part(
        'card', 'print("no GPU here"); exit(1)', facts={'kind': 'bench'}))
    assert main(['gpu_check', out]) == 1
    assert 'failed: card' in capsys.readouterr().err
    assert read(out)['to_come'] == ['never']


def test_a_signal_ends_the_parts_and_leaves_the_results(tmp_path):
    out, begun = str(tmp_path / 'out'), str(tmp_path / 'begun')
    code = ('import sys\n'
            'from dssn.tools.bench import gpu_check\n'
            'from dssn.__main__ import main\n'
            'from dssn.tools.bench.budget import Part\n'
            'facts = {"kind": "bench"}\n'
            'gpu_check.card = lambda *_: Part("card", [sys.executable, "-c", "pass"], 0, 60, '
            'facts=facts)\n'
            f'code = "import os, time; open({begun!r}, \'w\').write(str(os.getpid())); '
            'time.sleep(600)"\n'
            'gpu_check.parts = lambda *_: [Part("long", [sys.executable, "-c", code], 0, 600, '
            'facts=facts)]\n'
            f'sys.exit(main(["bench", "gpu_check", {out!r}, "--rehearse"]))')
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.DEVNULL)
    for _ in range(600):
        if os.path.exists(begun) and text_of(begun):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert has_ended(int(text_of(begun)))
    assert read(out)['to_come'] == ['long']


@pytest.mark.parametrize('text', ['0', '-1', 'nan', 'inf', 'four'])
def test_invalid_minutes(capsys, text):
    with pytest.raises(SystemExit) as caught:
        main(['gpu_check', f'--minutes={text}'])
    assert caught.value.code == 2
    assert f"'{text}' must be a number above 0" in capsys.readouterr().err


def test_out_must_be_a_folder(tmp_path, capsys):
    path = tmp_path / 'file'
    path.write_text('')
    assert main(['gpu_check', str(path)]) == 1
    message = capsys.readouterr().err
    assert re.search(r'error: OUT = .*file: cannot be a folder for results \(File exists\); name a '
                     'new folder', message)


# ---- the parts

def test_each_test_for_a_gpu_is_in_one_part():
    assert gpu_check.ROOT == ROOT  # the parts are run there
    with open(os.path.join(ROOT, 'tests', 'test_gpu.py')) as file:
        tree = ast.parse(file.read())
    written = [node.name for node in tree.body
               if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')]
    listed = [f'test_{name}' for _, names in gpu_check.TESTS for name in names]
    assert sorted(listed) == sorted(written)


@pytest.mark.parametrize('rehearse', [False, True])
def test_the_commands_are_valid(rehearse, monkeypatch):
    """Each command line is parsed and its config resolved, without running it."""
    from dssn import config
    seen = []

    def take(program, run, args):
        seen.append(args)
        if hasattr(args, 'assignments'):
            config.load(args.config, None, args.assignments)
        return 0
    monkeypatch.setattr('dssn.__main__.exit_status', take)
    monkeypatch.chdir(ROOT)
    listed = [gpu_check.card('', rehearse)] + gpu_check.parts('', rehearse)
    for one in listed:
        if one.command[2:4] == ['dssn', 'bench']:
            assert main(one.command[4:]) == 0
            assert seen[-1].json == one.result
    assert len(seen) > 10 and len({one.name for one in listed}) == len(listed)
    assert len({one.result for one in listed}) == len(seen) + 1  # '' of the tests
    assert set(gpu_page.RATIO_OF) <= {one.name for one in listed}
    if not rehearse:
        assert all(one.alone for one in listed if one.facts['kind'] in ('step', 'kth'))


def test_parts_that_an_old_pytorch_cannot_run_are_left_out_and_named(monkeypatch):
    def names():
        return {one.name for one in gpu_check.parts('', False)}
    monkeypatch.setattr(torch, '__version__', '2.2.0')
    every = names()
    assert gpu_check.too_old() == []
    monkeypatch.setattr(torch, '__version__', '2.1.2+cu118')
    lines = gpu_check.too_old()
    assert every - names() == {line.split(': ')[0] for line in lines} and len(lines) == 2
    text = gpu_page.page_text(content(too_old=lines))
    assert all(f'- {line}' in text for line in lines) and 'this is 2.1.2+cu118' in text


def test_a_command_imports_only_its_own_module():
    code = ('import sys; from dssn.__main__ import main; main(["bench", "card", "--cpu"]); '
            'print("dssn.tools.bench.card" in sys.modules, '
            '"dssn.tools.bench.loader" in sys.modules)')
    printed = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                             check=True, universal_newlines=True).stdout
    assert printed.split('\n')[-2] == 'True False'


def test_without_a_gpu_there_is_one_error(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert main(['card']) == 1
    assert 'finds no GPU here; check the driver' in capsys.readouterr().err
    assert main(['card', '--cpu']) == 0
    assert 'torch: ' in capsys.readouterr().out


def test_the_ways_to_the_kth_smallest_agree(tmp_path, capsys):
    path = str(tmp_path / 'result.json')
    assert main(['kth', '--values', '400', '--k', '1', '90', '400', '--rounds', '1', '--device',
                 'cpu', '--json', path]) == 0
    with open(path) as file:
        lines = json.load(file)['lines']
    assert [line['k'] for line in lines] == [1, 90, 400] and all(line['same'] for line in lines)
    values = sorted(kth.random_values(400).tolist())
    for k in (1, 90, 400):
        for name, way in kth.WAYS.items():
            assert way(kth.random_values(400), k).item() == values[k - 1], name


def test_ways_that_disagree_are_reported(monkeypatch, capsys):
    monkeypatch.setitem(kth.WAYS, 'sort', lambda values, k: values.sort().values[k])
    assert main(['kth', '--values', '40', '--k', '9', '--rounds', '1', '--device', 'cpu']) == 1
    assert 'different values for k = [9]' in capsys.readouterr().out


def test_k_above_the_number_of_values(capsys):
    assert main(['kth', '--values', '40', '--k', '41']) == 1
    assert '--k: 41 is more than the number of values (40)' in capsys.readouterr().err


# ---- the benchmarks

def test_memory_on_a_gpu_is_that_of_one_more_step(monkeypatch):
    calls, mib = [], 2 ** 20
    peak = {'now': 900 * mib}
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats',
                        lambda device: (calls.append('reset'), peak.update(now=0)))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: peak['now'])
    monkeypatch.setattr(torch.cuda, 'max_memory_reserved', lambda device: 950 * mib
                        if not calls else 0)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: calls.append('wait'))
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (8000 * mib, 9200 * mib),
                        raising=False)
    bench = SimpleNamespace(
        world=SimpleNamespace(device=torch.device('cuda', 0)),
        step=lambda: (calls.append('step'), peak.update(now=700 * mib)))
    assert step.memory_of(bench, 5.0) == {
        'peak_memory_mib': 700, 'step_memory_mib': 700, 'reserved_memory_mib': 950,
        'card_memory_mib': 1200}
    assert calls == ['reset', 'step', 'wait']


def test_the_ends_of_the_memory_table_can_be_computed_and_measured(tiny_world, monkeypatch):
    cfg = tiny_world().load(batch_size=2)
    monkeypatch.setattr(memory, 'on_gpu', lambda cfg: True)

    def chosen(**keys):
        args = SimpleNamespace(**{'computed': False, 'ends': False, **keys})
        return memory.choose_lines(args, cfg)
    every = ['checkpoint_backbone=true', 'lean=true', 'accumulate=2']
    assert chosen()[-2:] == [['amp=bf16'], every + ['amp=bf16']]
    assert chosen(computed=True) == [[]] + [[key] for key in every] + [every]
    assert chosen(ends=True) == chosen(ends=True, computed=True) == [[], every]


def test_a_step_is_timed_without_its_parts(tiny_world, tmp_path, monkeypatch):
    def time_parts(*_):
        raise AssertionError('the loader starts')
    monkeypatch.setattr(step.StepBench, 'time_parts', time_parts)
    path = str(tmp_path / 'result.json')
    assert main(['step', '--config', tiny_world().config_path, '--rounds', '1', '--no-parts',
                 '--json', path]) == 0
    found = json.loads(text_of(path))
    assert found['parts'] == {} and found['step_over_floor'] > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.nn.Module, 'compile'), reason='compile needs PyTorch 2.2')
def test_networks_are_compiled_after_their_calls_are_recorded(tiny_world, monkeypatch):
    real, at = torch.nn.Module.compile, []

    def compile_eagerly(module):
        at.append(step.StepBench.recorded)
        return real(module, backend='eager')
    monkeypatch.setattr(torch.nn.Module, 'compile', compile_eagerly)
    monkeypatch.setattr(step.StepBench, 'recorded', False, raising=False)
    record_calls = step.StepBench.record_calls

    def watched(self):
        calls = record_calls(self)
        step.StepBench.recorded = True
        return calls
    monkeypatch.setattr(step.StepBench, 'record_calls', watched)
    bench = step.StepBench(tiny_world().load(batch_size=2, compile=True), step.World())
    assert at == [True, True]  # student and teacher
    bench.step()
    bench.floor()


# ---- the page

def step_part(name, seconds, over, **keys):
    return {'name': name, 'kind': 'step', 'outcome': PASSED, 'seconds': 1.0, 'reason': '',
            'command': 'c', 'found': {
                'seconds': {'step': [seconds, 9.0, 0.0]}, 'step_over_floor': over,
                'step_memory_mib': 123.4, 'reserved_memory_mib': 200.0,
                'config': {'batch_size': 8, 'labeled_batch_size': 0, 'method': 'DSSN',
                           'dataset': 'pascal', 'cutmix_partner': 'same', **keys}}}


def content(*parts, **keys):
    return {'date': 'today', 'command': 'sh scripts/gpu_check.sh', 'rehearsed': False,
            'not_rehearsed': [], 'too_old': [], 'parts': list(parts), 'to_come': [], **keys}


def test_the_page_shows_goals_and_the_rates_of_the_loader():
    half, tf32 = gpu_page.RATIO_OF
    loader = {'name': 'loader', 'kind': 'loader', 'outcome': PASSED, 'seconds': 1.0, 'reason': '',
              'command': 'c', 'found': {'samples': 12, 'seconds': {'ours': [2.0, 0.5, 0.6]}}}
    text = gpu_page.page_text(
        content(step_part(half, 0.2, 1.05), step_part(tf32, 0.4, 1.12), loader))
    # 8 images of each kind in 0.2 s, of three kinds, at 12 samples in 0.6 s by one core
    assert f'| {half} | 0.2000 | 1.050 | 123 | 200 | 40.0 | 120.0 | 2.0 |' in text
    assert f'| step over floor, the largest ({tf32}) | 1.120 | 1.10 | not met |' in text
    assert f'| {half} over {tf32} | 0.500 | 0.45 | not met |' in text
    # For 4 labeled and 8 unlabeled images 20 images are loaded.
    text = gpu_page.page_text(content(step_part(half, 0.2, 1.05, labeled_batch_size=4), loader))
    assert '| 200 | 20.0 and 40.0 | 100.0 | 2.0 |' in text
    text = gpu_page.page_text(content(step_part(half, 0.2, 1.05, cutmix_partner='batch'), loader))
    assert '| 200 | 40.0 | 80.0 |  |' in text  # no partner is loaded
    text = gpu_page.page_text(content(step_part(half, 0.1, 1.05), step_part(tf32, 0.4, 1.02)))
    assert '1.050 | 1.10 | met |' in text and '0.250 | 0.45 | met |' in text


def test_every_table_of_a_rehearsal_has_the_note():
    half, tf32 = gpu_page.RATIO_OF
    text = gpu_page.page_text(content(step_part(half, 0.1, 1), step_part(tf32, 0.4, 1),
                                      rehearsed=True, not_rehearsed=['NCCL']))
    tables = len(re.findall(r'^\| ---', text, re.MULTILINE))
    assert tables == 3 and text.count(gpu_page.REHEARSAL_NOTE) == tables + 1  # and in the head
    assert '- NCCL' in text and '| met |' not in text


def test_tests_that_did_not_pass_are_named(tmp_path):
    printed = ('tests/test_gpu.py::test_a[x-1] PASSED                                  [ 10%]\n'
               'tests/test_gpu.py::test_b SKIPPED (needs CUDA)                     [ 20%]\n'
               'tests/test_gpu.py::test_c FAILED                                   [ 30%]\n'
               'FAILED tests/test_gpu.py::test_c - AssertionError: 3 apart\n')
    one = gpu_check.tests(str(tmp_path), 'all', ['c'], True)
    found = gpu_check.part_entry(budget.PartOutcome(one, FAILED, 2.0, 'exit status 1', printed))
    assert [(test['name'], test['outcome']) for test in found['tests']] == [
        ('test_a[x-1]', 'passed'), ('test_b', 'skipped'), ('test_c', 'failed')]
    text = gpu_page.page_text(content(found))
    assert '| all | failed | 1 | 1 | 1 |' in text
    assert '- skipped: `test_b` needs CUDA' in text
    assert '- failed: `test_c` AssertionError: 3 apart' in text
