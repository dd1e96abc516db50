"""scripts/train.sh with real processes: several machines, and what is shown when one process
fails."""
import json
import os
import signal
import time

import pytest
import torch

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='shell scripts')


def test_two_machines_train_together(tiny_checkout, port):
    checkout = tiny_checkout(epochs=1, batch_size=1)
    nodes = [checkout.start('train.sh', 2, port, NNODES='2', NODE_RANK=str(rank),
                            MASTER_ADDR='127.0.0.1') for rank in (0, 1)]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    print(*outputs)  # whole, where this fails
    assert [node.returncode for node in nodes] == [0, 0]
    first, second = checkout.logs()
    assert first.endswith('_node0.log') and second.endswith('_node1.log')
    assert 'mIoU' in checkout.read(first) and 'mIoU' in outputs[0]
    assert 'mIoU' not in checkout.read(second)
    records = [json.loads(line) for line in checkout.read('metrics.jsonl').splitlines()]
    assert [record['kind'] for record in records] == ['evaluation', 'summary']
    assert records[0]['processes'] == 4


def failed(checkout, port, **environment):
    """(output, seconds) of a training on two processes that fails."""
    process = checkout.start('train.sh', 2, port, **environment)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0, output
    assert checkout.read(checkout.logs()[0]) in output
    return output.splitlines()


def errors(lines):
    return [line for line in lines if line.startswith('train.py: error: ')]


def test_an_image_that_one_process_cannot_read_ends_all_with_its_name_first(tiny_checkout, port):
    checkout = tiny_checkout(epochs=1, batch_size=2, max_bad_samples=0)
    with open(os.path.join(checkout.data, 'images/unlabeled3.jpg'), 'wb') as file:
        file.write(b'no picture')
    lines = failed(checkout, port)
    first, rest = errors(lines)[0], errors(lines)[1:]
    assert 'unlabeled3.jpg' in first and first.split()[2] == 'rank' and first.split()[4] == 'of'
    # The launcher may have stopped the other before it noticed.
    assert len(rest) < 2 and all('lost another process' in line for line in rest)
    assert not any(line.startswith('Traceback') for line in lines[:lines.index(first)])
    if not torch.__version__.startswith('1.8.'):  # the launcher ends with a summary
        root = [line.startswith('Root Cause') for line in lines].index(True)
        assert any('unlabeled3.jpg' in line for line in lines[root:])


def test_a_process_that_vanishes_ends_all(tiny_checkout, port):
    checkout = tiny_checkout(epochs=1)
    checkout.patch(1, 'from dssn import update; update.seed_step = lambda *_: os._exit(9)')
    lines = failed(checkout, port)
    assert all('lost another process' in line for line in errors(lines))
    # The launcher of PyTorch 1.8 names the first process that it finds ended.
    if torch.__version__.startswith('1.8.'):
        assert errors(lines) or any('exit status 9' in line for line in lines)
    else:
        assert any('exitcode' in line and '9' in line for line in lines)


@pytest.mark.slow
def test_a_machine_that_fails_ends_the_other(tiny_checkout, port):
    checkout = tiny_checkout(epochs=1)
    checkout.patch(1, 'from dssn import update; update.seed_step = lambda *_: 1 / 0')
    nodes = [checkout.start('train.sh', 1, port, NNODES='2', NODE_RANK=str(rank),
                            MASTER_ADDR='127.0.0.1') for rank in (0, 1)]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert 0 not in [node.returncode for node in nodes]
    assert 'rank 0 of 2: lost another process' in outputs[0]
    assert 'ZeroDivisionError' in outputs[1]


# Where it is told to, rank 0 waits in the middle of a run until a signal has come.
HOLD = ('import time; from dssn import engine; go_on = engine.Run.between_steps; '
        'hold = lambda run: [open("held", "w").close()] + [time.sleep(0.02) for _ in range(3000) '
        'if {until}]; '
        'engine.Run.between_steps = lambda run: (run.progress.step == '
        'int(os.environ.get("HOLD", -1)) and hold(run), go_on(run))[1]')


def start_and_hold(checkout, port, num_gpu, step):
    """A training that waits before a step."""
    held = os.path.join(checkout.root, 'held')
    if os.path.exists(held):
        os.remove(held)
    process = checkout.start('train.sh', num_gpu, port, HOLD=str(step), SLURM_PROCID='0')
    end = time.time() + 300
    while not os.path.exists(held):
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(0.05)
    return process


def end_of(process):
    """(exit status, output)"""
    output = process.communicate(timeout=300)[0]
    print(output)  # whole, where a test fails
    return process.returncode, output


def final(checkout, exp):
    """What a finished run has saved, as a flat {name: value}."""
    def flat(value, name):
        if isinstance(value, dict):
            for key in value:
                yield from flat(value[key], f'{name}/{key}')
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                yield from flat(item, f'{name}/{i}')
        else:
            yield name, value
    path = os.path.join(os.path.dirname(os.path.dirname(checkout.run)), exp, 'all/latest.pth')
    saved = torch.load(path, map_location='cpu')
    return {part: dict(flat(saved[part], '')) for part in ('model', 'teacher', 'optimizer')}


@pytest.mark.parametrize('num_gpu', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_signals_stop_goes_on_as_if_they_had_not(tiny_checkout, port, num_gpu):
    checkout = tiny_checkout(epochs=2, batch_size=2 // num_gpu, workers=2 - num_gpu)
    checkout.patch(0, HOLD.format(until='not run.signals.number'))
    # Within an epoch, at the end of one, and where the next has begun.
    stops = ((2, signal.SIGINT), (4, signal.SIGTERM), (5, signal.SIGUSR1))
    for step, number in stops if num_gpu == 2 else stops[1:2]:
        process = start_and_hold(checkout, port, num_gpu, step)
        os.killpg(process.pid, number)  # as a terminal does
        status, output = end_of(process)
        assert status == 128 + number
        # On several processes the next step, or the evaluation, has begun before all know.
        assert f'stopped by {number.name} ' in output
        last = f"stopped by {number.name}: exit status {status} (the launcher's status differs)"
        assert (output.splitlines()[-1] == last) is (num_gpu > 1)
    for exp in 'drawn', 'undisturbed':
        assert end_of(checkout.start('train.sh', num_gpu, port, exp=exp))[0] == 0
    stopped, undisturbed = final(checkout, 'drawn'), final(checkout, 'undisturbed')
    for part in undisturbed:
        assert stopped[part].keys() == undisturbed[part].keys()
        assert sum(isinstance(value, torch.Tensor) for value in undisturbed[part].values()) > 10
        for name, value in undisturbed[part].items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(stopped[part][name], value), (part, name)


@pytest.mark.parametrize('num_gpu', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_signal_ends_a_training_at_once(tiny_checkout, port, num_gpu):
    checkout = tiny_checkout(epochs=1, batch_size=2 // num_gpu)
    checkout.patch(0, HOLD.format(until='True'))
    process = start_and_hold(checkout, port, num_gpu, 2)
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if 'stopping after this step is saved' in line:
            break
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    status, output = end_of(process)
    assert 'SIGTERM again: stopped without saving' in output
    assert status == 128 + signal.SIGTERM
