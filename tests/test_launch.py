"""scripts/train.sh with real processes: several machines, and what is shown when one process fails."""
import json
import os
import time

import pytest
import torch

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='shell scripts')


@pytest.mark.parametrize('num_gpu', [1, 2])
def test_two_machines_train_together(tiny_checkout, port, num_gpu):
    checkout = tiny_checkout(epochs=1, batch_size=2 // num_gpu)
    nodes = [checkout.start('train.sh', num_gpu, port, NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1')
             for rank in (0, 1)]
    outputs = [node.communicate(timeout=100)[0] for node in nodes]
    print(*outputs)  # whole, where this fails
    assert [node.returncode for node in nodes] == [0, 0]
    first, second = checkout.logs()
    assert first.endswith('_node0.log') and second.endswith('_node1.log')
    assert 'mIoU' in checkout.read(first) and 'mIoU' in outputs[0]
    assert 'mIoU' not in checkout.read(second)
    records = [json.loads(line) for line in checkout.read('metrics.jsonl').splitlines()]
    assert [record['kind'] for record in records] == ['evaluation', 'summary']
    assert records[0]['processes'] == 2 * num_gpu


def failed(checkout, port, **environment):
    """(output, seconds) of a training on two processes that fails."""
    started = time.time()
    process = checkout.start('train.sh', 2, port, **environment)
    output = process.communicate(timeout=100)[0]
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
    if torch.__version__.startswith('1.8.'):  # the launcher names the first process that it finds ended
        assert errors(lines) or any('exit status 9' in line for line in lines)
    else:
        assert any('exitcode' in line and '9' in line for line in lines)


def test_a_machine_that_fails_ends_the_other(tiny_checkout, port):
    checkout = tiny_checkout(epochs=1)
    checkout.patch(1, 'from dssn import update; update.seed_step = lambda *_: 1 / 0')
    nodes = [checkout.start('train.sh', 1, port, NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1')
             for rank in (0, 1)]
    outputs = [node.communicate(timeout=100)[0] for node in nodes]
    assert 0 not in [node.returncode for node in nodes]
    assert 'rank 0 of 2: lost another process' in outputs[0]
    assert 'ZeroDivisionError' in outputs[1]
