"""Processes: what each launcher says, and two real processes that train and evaluate together."""
import json
import os
import re
import socket
import stat
import subprocess
import sys

import pytest
import torch
from test_methods import network

from dssn import config, distributed
from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.inference.evaluation import evaluate
from dssn.models import build_model
from dssn.models.weights import load_weights, network_weights, read_torch_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAUNCHER_VARIABLES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture
def joined(monkeypatch, tmp_path):
    """Calls `start` under given variables; returns (world, arguments of the process group)."""
    for name in list(os.environ):
        if name in LAUNCHER_VARIABLES or name.startswith('SLURM'):
            monkeypatch.delenv(name)
    monkeypatch.setenv('PATH', str(tmp_path))  # no scontrol, unless a test puts one there
    # `start` may set these two: registered here, so that they go with the test.
    for name in ('MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)

    def join(variables, device='cpu', **kwargs):
        calls = []
        monkeypatch.setattr(torch.distributed, 'init_process_group',
                            lambda *args, **kw: calls.append((args, kw)))
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return distributed.start(device, **kwargs), calls
    return join


def place(world):
    return world.rank, world.size, world.local_rank


def test_plain_python_is_a_world_of_one(joined):
    world, calls = joined({})
    assert place(world) == (0, 1, 0) and world.is_main and calls == []
    model = torch.nn.Linear(1, 1)
    assert world.prepare_student(model) is model and distributed.unwrap(model) is model
    tensor = torch.ones(2)
    assert torch.equal(world.sum(tensor), tensor)
    world.share_buffers(model)
    world.close()


def test_torchrun(joined):
    world, calls = joined(dict(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2,
                               MASTER_ADDR='a', MASTER_PORT=5))
    assert place(world) == (3, 4, 1) and not world.is_main
    (args, kwargs), = calls
    assert args == ('gloo',) and (kwargs['rank'], kwargs['world_size']) == (3, 4)
    assert kwargs['timeout'] == distributed.TIMEOUT
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('a', '5')


def test_the_old_launcher_tells_the_local_rank_by_a_flag(joined):
    world, _ = joined(dict(RANK=5, WORLD_SIZE=8, MASTER_ADDR='a', MASTER_PORT=5), local_rank=1)
    assert place(world) == (5, 8, 1)


def test_the_variable_wins_over_the_flag(joined):
    world, _ = joined(dict(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1), local_rank=0)
    assert place(world) == (1, 2, 1)


def test_a_launcher_with_one_process(joined):
    world, calls = joined(dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0), local_rank=0)
    assert place(world) == (0, 1, 0) and calls == []


SRUN = dict(SLURM_STEP_NUM_TASKS=4, SLURM_PROCID=2, SLURM_LOCALID=1, SLURM_NTASKS=4,
            SLURM_STEP_NODELIST='gpu[07-08,11]')


def test_srun(joined):
    world, calls = joined(SRUN, port=4321)
    assert place(world) == (2, 4, 1) and len(calls) == 1
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('gpu07', '4321')


def test_torchrun_inside_srun_is_torchrun(joined):
    world, _ = joined(dict(SRUN, SLURM_STEP_NUM_TASKS=2, RANK=5, WORLD_SIZE=8, LOCAL_RANK=3))
    assert place(world) == (5, 8, 3)


def test_a_rendezvous_that_is_set_wins_over_slurms(joined):
    joined(dict(SRUN, MASTER_ADDR='chosen', MASTER_PORT='7'), port=4321)
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('chosen', '7')


@pytest.mark.parametrize('step', [{}, {'SLURM_STEP_NUM_TASKS': 1}], ids=['no step', 'step of one'])
def test_python_in_a_batch_script_is_one_process(joined, step):
    # sbatch -n 4 sets this for the script's shell, where nothing runs four times.
    world, calls = joined(dict(step, SLURM_NTASKS=4, SLURM_PROCID=0, SLURM_LOCALID=0))
    assert place(world) == (0, 1, 0) and calls == []


@pytest.mark.parametrize('nodes, first', [
    ('gpu7', 'gpu7'), ('gpu7,gpu9', 'gpu7'), ('gpu[07-09]', 'gpu07'), ('gpu[3,5-6]', 'gpu3'),
    ('a-b-[10-12],c[1-2]', 'a-b-10'), ('host.example.org', 'host.example.org'),
    ('a1,gpu[3-4]', 'a1'), ('gpu[3-4]-ib', 'gpu3-ib'), ('rack[1-2]node[3-4]', 'rack1node3'),
    ('', '127.0.0.1'),
])
def test_first_host_of_a_list_without_scontrol(joined, nodes, first):
    joined(dict(SRUN, SLURM_STEP_NODELIST=nodes))
    assert os.environ['MASTER_ADDR'] == first


def test_scontrol_is_asked_for_the_first_host(joined, tmp_path):
    program = tmp_path / 'scontrol'
    program.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames odd[1-2]x" ] && echo '
                       '"odd1x\nodd2x"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    joined(dict(SRUN, SLURM_STEP_NODELIST='odd[1-2]x'))
    assert os.environ['MASTER_ADDR'] == 'odd1x'


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='device = cuda.*cpu'):
        distributed.start('cuda')


TORCHRUN = dict(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, MASTER_ADDR='a', MASTER_PORT=5)


@pytest.fixture
def on_gpus(monkeypatch, joined):
    """Calls `start` where PyTorch finds some GPUs; returns (world, index of the current GPU)."""
    def start(variables, gpus):
        chosen = []
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
        world, _ = joined(variables, 'cuda')
        return world, chosen
    return start


@pytest.mark.parametrize('variables, gpus', [
    (TORCHRUN, 1), (dict(TORCHRUN, RANK=2, WORLD_SIZE=3, LOCAL_RANK=2), 2),
    (dict(SRUN, SLURM_LOCALID=2), 2),
    # torchrun inside a task of srun: its processes see the same GPU.
    (dict(SRUN, **TORCHRUN), 1),
    (dict(TORCHRUN, SLURM_STEP_NUM_TASKS=1), 1),
    # srun --gres=gpu:1: two tasks see the same one.
    (dict(SRUN, SLURM_GPUS_ON_NODE=1, SLURM_STEP_GPUS=0, CUDA_VISIBLE_DEVICES='0'), 1)])
def test_a_process_without_a_gpu_of_its_own_is_an_error(on_gpus, variables, gpus):
    local_rank = variables.get('LOCAL_RANK', variables.get('SLURM_LOCALID'))
    words = f'process {local_rank} of this machine.*finds {gpus};.*--gpus-per-task=1'
    with pytest.raises(UserError, match=words):
        on_gpus(variables, gpus)


@pytest.mark.parametrize('variables, gpus, expected', [
    (TORCHRUN, 2, 1), (SRUN, 4, 1), (SRUN, 2, 1), (dict(SRUN, SLURM_LOCALID=0), 1, 0),
    (SRUN, 1, 0),
    # As Slurm 22.05 sets them with --gpus-per-task=1: the GPUs of all tasks, and this task's.
    (dict(SRUN, SLURM_GPUS_ON_NODE=2, SLURM_STEP_GPUS=1, CUDA_VISIBLE_DEVICES='1'), 1, 0)])
def test_the_gpu_of_a_process_is_its_own(on_gpus, monkeypatch, variables, gpus, expected):
    """By its local rank, or the only one that srun shows it (--gpus-per-task=1)."""
    world, chosen = on_gpus(variables, gpus)
    assert chosen == [expected] and world.device == torch.device('cuda', expected)
    assert world.local_rank == variables.get('LOCAL_RANK', variables.get('SLURM_LOCALID'))
    wrapped = {}
    monkeypatch.setattr(distributed, 'DistributedDataParallel',
                        lambda model, **options: wrapped.update(options))
    monkeypatch.setattr(World, 'prepare_teacher', lambda self, model: model)
    world.prepare_student(torch.nn.Linear(1, 1))
    assert wrapped['device_ids'] == [expected]


def test_exit_of_a_world_of_one():
    with pytest.raises(SystemExit) as ended:
        distributed.exit(3)
    assert ended.value.code == 3


NCCL_2_0 = 'NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1275, '
NCCL_1_8 = 'NCCL error in: ../torch/lib/c10d/ProcessGroupNCCL.cpp:33, '
PAIR = '[../third_party/gloo/gloo/transport/tcp/pair.cc:598] '
# Messages as gloo, NCCL and the store write them: (message, what is reported of it).
LOST, SHARED, RAISED = 'lost another process', 'a GPU of its own', None
MESSAGES = [
    # One of two processes with gloo was killed, or slept, on PyTorch 1.8.1, 2.0.0 and 2.14.
    ('[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:575] Connection closed by peer '
     '[127.0.0.1]:26808', LOST),
    (PAIR + 'Connection closed by peer [127.0.0.1]:40368', LOST),
    ('[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer '
     '[127.0.0.1]:2983. This is typically caused by a remote worker crashing. Check the logs of '
     'the remote worker before reporting an error.', LOST),
    (PAIR + 'Read error [127.0.0.1]:40368: Connection reset by peer', LOST),
    ('[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting '
     '6000ms for recv operation to complete', LOST),
    # The store's, when rank 0 ends or the others do not come to make a group.
    ('Connection reset by peer', LOST), ('Broken pipe', LOST), ('Socket Timeout', LOST),
    ('failed to recv, got 0 bytes', LOST),
    ('wait timeout after 6000ms, keys: /default_pg/0//1//cpu//0/1', LOST),
    ('Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown '
     'or crash?', LOST),
    ("[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value "
     "store by key '0', but store->get('0') got error: Connection reset by peer", LOST),
    # NCCL's.
    (NCCL_2_0 + 'remote process exited or there was a network error, NCCL version 2.14.3\n'
     'ncclRemoteError: A call failed possibly due to a network error or a remote process exiting '
     'prematurely.\nLast error:\nNet : Connection closed by remote peer node2<42830>', LOST),
    (NCCL_2_0 + 'internal error, NCCL version 2.14.3\nncclInternalError: Internal check failed.\n'
     'Last error:\nNet : Connection closed by remote peer node2<47861>', LOST),
    ('NCCL communicator was aborted on rank 2.  Original reason for failure was: [Rank 2] Watchdog '
     'caught collective operation timeout: WorkNCCL(SeqNum=10, OpType=BROADCAST, '
     'Timeout(ms)=1800000) ran for 1805457 milliseconds before timing out.', LOST),
    ('NCCL communicator was aborted.', LOST),
    # Addresses that do not reach, with gloo on two hosts; an interface that is not there.
    ('[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:769] connect [127.0.1.1]:11685: '
     'Connection refused', RAISED),
    ('[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:898] Connect timeout '
     '[127.0.1.1]:32671', RAISED),
    ('[../third_party/gloo/gloo/transport/tcp/pair.h:324] Connect timeout [127.0.1.1]:56714',
     RAISED),
    ('Gloo connectFullMesh failed with [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:152] '
     'timed out connecting: SO_ERROR: Connection refused, remote=[127.0.1.1]:58794', RAISED),
    ('Gloo connectFullMesh failed with [/pytorch/third_party/gloo/gloo/transport/tcp/pair.h:311] '
     'Connect timeout [none]', RAISED),
    ('[../third_party/gloo/gloo/transport/tcp/device.cc:83] ifa != nullptr. Unable to find address '
     'for: eth9', RAISED),
    (NCCL_2_0 + 'unhandled system error, NCCL version 2.14.3\nncclSystemError: System call (e.g. '
     'socket, malloc) or external library call failed or device error. \nLast error:\n'
     'socketStartConnect: Connect to 10.0.0.2<45763> failed : Software caused connection abort',
     RAISED),
    # Its first sentences are in every message of this kind, and prove nothing.
    (NCCL_2_0 + 'unhandled system error, NCCL version 2.10.3\nncclSystemError: System call (e.g. '
     'socket, malloc) or external library call failed or device error. It can be also caused by '
     'unexpected exit of a remote peer, you can check NCCL warnings for failure reason and see if '
     'there is connection closure by a peer.', RAISED),
    (NCCL_1_8 + 'unhandled system error, NCCL version 2.7.8\nncclSystemError: System call (socket, '
     'malloc, munmap, etc) failed.', RAISED),
    (NCCL_2_0 + 'unhandled cuda error, NCCL version 2.14.3', RAISED),
    ('NCCL communicator was aborted on rank 1.  Original reason for failure was: NCCL error: '
     'unhandled cuda error, NCCL version 2.14.3', RAISED),
    ('Tensors must be CUDA and dense (NCCL)', RAISED),
    ('sizes of tensors must match', RAISED),
    # Two processes on one GPU; older NCCL does not say that it is this.
    (NCCL_2_0 + 'invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.20.5\n'
     'ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n'
     'Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 10', SHARED),
    (NCCL_1_8 + 'invalid usage, NCCL version 2.7.8\nncclInvalidUsage: This usually reflects '
     'invalid usage of NCCL library (such as too many async ops, too many collectives at once, '
     'mixing streams in a group, etc).', SHARED),
    (NCCL_2_0 + 'invalid usage, NCCL version 2.20.5\nncclInvalidUsage: This usually reflects '
     'invalid usage of NCCL library.\nLast error:\nTrying to use a communicator twice', RAISED),
]


@pytest.mark.parametrize('message, reported', MESSAGES, ids=lambda text: str(text)[-40:])
def test_what_is_raised_is_reported_and_lost_only_what_is(monkeypatch, tmp_path, message, reported):
    summary = tmp_path / 'error.json'
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(summary))
    error = RuntimeError(message)
    with pytest.raises((UserError, RuntimeError)) as caught:
        with World(rank=1, size=2):
            raise error
    shown, raised = str(caught.value), ' '.join(message.split())
    if reported is RAISED:
        assert caught.value is error
    else:
        assert isinstance(caught.value, UserError) and '\n' not in shown
        assert shown.startswith('rank 1 of 2: ') and reported in shown and raised in shown
    # The launcher's summary names the first error, not those that follow from it.
    assert summary.exists() == (reported is not LOST)
    if reported is not LOST:
        assert raised in ' '.join(json.loads(summary.read_text())['message'].split())


def test_a_mistake_of_one_of_several_says_whose_it_is(monkeypatch, tmp_path):
    summary = tmp_path / 'error.json'
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(summary))
    with pytest.raises(UserError, match='^rank 1 of 2: bad image$'):
        with World(rank=1, size=2):
            raise UserError('bad image')
    assert json.loads(summary.read_text())['message'] == 'UserError: bad image'


def test_an_error_of_a_single_process_is_left_as_it_is():
    with pytest.raises(UserError, match='^bad image$'):
        with World():
            raise UserError('bad image')


def test_others_that_cannot_be_met_are_one_error(joined, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('connect() timed out.\nOriginal timeout was 900000 ms.')
    world, _ = joined({})
    world.rank, world.size = 1, 2
    monkeypatch.setenv('MASTER_ADDR', 'first')
    monkeypatch.setenv('MASTER_PORT', '7')
    monkeypatch.setattr(torch.distributed, 'init_process_group', fail)
    with pytest.raises(UserError,
                       match='rank 1 of 2: could not meet the others at first:7 .*timed out'):
        distributed.join(world)


# ---- two processes

PROGRAM = """
import json, os, sys
import torch
torch.set_num_threads(1)
from dssn import config, distributed, engine, update
from dssn.models.weights import network_weights
folder, path = sys.argv[1], sys.argv[2]
world = distributed.start('cpu')
seen, real = [], update.to
def to(batch, device):
    seen.append([part.index.tolist() for part in batch])
    return real(batch, device)
update.to = to
run = engine.start(config.load(path), world)
kinds = type(run.networks.student).__name__, type(run.networks.teacher).__name__
before = world.sum(torch.tensor([float(world.rank + 1)])).item()
run.fit()
run.log.close()
torch.save({'student': network_weights(distributed.unwrap(run.networks.student)),
            'teacher': network_weights(run.networks.teacher)},
           os.path.join(folder, 'rank%d.pth' % world.rank))
with open(os.path.join(folder, 'rank%d.json' % world.rank), 'w') as file:
    json.dump({'seen': seen, 'best': run.progress.best, 'kinds': kinds, 'sum': before}, file)
world.close()
distributed.exit()
"""


def launch(script, *arguments, processes=2):
    """Processes of a script under this release's launcher."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    old = torch.__version__.startswith('1.8.')
    launcher = ['torch.distributed.launch', '--use_env'] if old else ['torch.distributed.run']
    env = {name: value for name, value in os.environ.items()
           if name not in LAUNCHER_VARIABLES and not name.startswith('SLURM')}
    env.update(PYTHONPATH=ROOT, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(
        [sys.executable, '-m'] + launcher + [f'--nproc_per_node={processes}',
                                             '--master_addr=127.0.0.1',
                                             f'--master_port={port}', str(script)]
        + list(arguments), env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True, timeout=200)
    assert done.returncode == 0, done.stdout


CLASSES = """
import os, sys
import torch
from dssn import config, distributed
from dssn.run.logbook import Logbook
from dssn.methods import Terms
from dssn.pseudo_labels import PseudoLabels
from dssn.run.diagnostics import Watch
world = distributed.start('cpu')
cfg = config.load(sys.argv[1])
if world.is_main:
    os.makedirs(cfg.save_path)
log = Logbook(cfg, world, 100)
log.open('', 0, 0)
watch = Watch(cfg, world, log, [])
label = torch.full((1, 4, 5), 2 * world.rank, dtype=torch.long)
for epoch, rank in ((1, 1), (2, 1), (3, 0)):
    # Class 0 on rank 0, class 2 on rank 1; one rank selects.
    selected = torch.full((1, 4, 5), world.rank == rank, dtype=torch.bool)
    terms = Terms({}, labels={'image1': PseudoLabels(label, selected, torch.ones_like(selected))})
    watch.step(epoch - 1, epoch, terms, None)
    watch.end_epoch(epoch)
log.close()
world.close()
distributed.exit()
"""


def test_a_class_counts_as_selected_if_any_process_selects_it(tiny_world, tmp_path):
    world = tiny_world()
    script = tmp_path / 'program.py'
    script.write_text(CLASSES)
    launch(script, world.config_path)
    with open(os.path.join(world.save_path, 'train.log')) as file:
        first, second = [line for line in file if 'warning' in line]
    for line, epoch, selected, not_selected in ((first, 1, 2, 0), (second, 3, 0, 2)):
        assert f'epoch {epoch}: 2 of 3 classes' in line
        assert 'never predicted: class 1;' in line
        assert f'never selected: class {not_selected}' in line
        assert f'class {selected}' not in line


def test_two_processes_train_and_evaluate_as_one(tiny_world, tmp_path):
    selecting = str(tmp_path / 'select.txt')
    world = tiny_world(n_labeled=5, n_unlabeled=9, n_val=6, epochs=1, cutmix_partner='other',
                       select_on=selecting)
    with open(world.val) as file:
        lines = file.readlines()
    for path, part in ((selecting, lines[:3]), (world.val, lines[3:])):
        with open(path, 'w') as file:
            file.writelines(part)
    script = tmp_path / 'program.py'
    script.write_text(PROGRAM)
    launch(script, str(tmp_path), world.config_path)
    ranks, networks = [], []
    for rank in (0, 1):
        with open(str(tmp_path / f'rank{rank}.json')) as file:
            ranks.append(json.load(file))
        networks.append(read_torch_file(str(tmp_path / f'rank{rank}.pth')))
    assert ranks[0]['kinds'] == ['DistributedDataParallel', 'DeepLabV3Plus']
    assert ranks[0]['sum'] == ranks[1]['sum'] == 3

    # One set of weights; BN's statistics differ during the epoch and are shared at its end.
    for name in ('student', 'teacher'):
        for key, tensor in networks[0][name].items():
            assert torch.equal(tensor, networks[1][name][key]), (name, key)

    # An epoch is a pass over the 9 unlabeled images in steps of 2 x 2: one is left out.
    steps = [rank['seen'] for rank in ranks]
    assert [len(seen) for seen in steps] == [2, 2]
    seen = {part: [i for rank in steps for step in rank for i in step[n]]
            for n, part in enumerate(('labeled', 'unlabeled', 'partner'))}
    assert len(seen['unlabeled']) == len(set(seen['unlabeled'])) == 8
    assert set(seen['unlabeled']) <= set(range(9))
    assert all(u != v for u, v in zip(seen['unlabeled'], seen['partner']))
    assert len(seen['labeled']) == 8 and set(seen['labeled']) == set(range(5))

    # Both ranks know the score that selects, and both scores are those that a single process finds.
    assert ranks[0]['best'] == ranks[1]['best']
    cfg = world.load()
    for name, role in (('best.pth', 'student'), ('t_best.pth', 'teacher')):
        content = read_torch_file(os.path.join(world.save_path, name))
        model = build_model(cfg)
        load_weights(model, content['model'], name)
        for path, got in ((cfg.val_id_path, content['miou']), (selecting, ranks[0]['best'][role])):
            alone = evaluate({role: model}, cfg, read_list(path), World())[role]
            assert got == pytest.approx(alone.miou, abs=1e-9)
    with open(os.path.join(world.save_path, 'metrics.jsonl')) as file:
        assert [json.loads(line)['kind'] for line in file] == ['evaluation', 'summary']


@pytest.mark.parametrize('status', [0, 7])
def test_exit_runs_what_is_registered_and_keeps_the_status(tmp_path, status):
    script = tmp_path / 'program.py'
    script.write_text('import atexit, sys\nfrom dssn import distributed\n'
                      'with distributed.start("cpu") as world:\n'
                      '    path = sys.argv[1] + str(world.rank)\n'
                      '    atexit.register(lambda: open(path, "w").close())\n'
                      'distributed.exit(int(sys.argv[2]))\n')
    if status:
        with pytest.raises(AssertionError, match='exitcode: 7|status 7'):
            launch(script, str(tmp_path / 'rank'), str(status))
    else:
        launch(script, str(tmp_path / 'rank'), str(status))
        assert (tmp_path / 'rank0').exists() and (tmp_path / 'rank1').exists()


@pytest.mark.parametrize('camvid', [None, pytest.param(os.environ.get('DSSN_CAMVID'), marks=[
    pytest.mark.slow, pytest.mark.skipif('DSSN_CAMVID' not in os.environ, reason='CamVid')])],
    ids=['tiny', 'camvid'])
def test_any_number_of_processes_workers_and_batches_gives_the_same_scores(
        tiny_world, tmp_path, camvid):
    """To the last digit, with real gloo processes."""
    world = tiny_world(n_val=7)
    cfg = world.load(nclass=11, crop_size=64)
    torch.manual_seed(3)
    networks = [build_model(cfg), build_model(cfg)]
    for model in networks:
        model.classifier.weight.data.mul_(30)  # so that many classes are predicted
    path = str(tmp_path / 'latest.pth')
    torch.save({'model': network_weights(networks[0]), 'config': config.to_dict(cfg),
                'teacher': network_weights(networks[1])}, path)
    data = ['--id-path', os.path.join(camvid, 'val.txt'), '--set', 'data_root=' + camvid] \
        if camvid else ['--set']
    found = []
    for processes, workers, batch in [(1, 0, 1), (3, 1, 2)] + [(2, 0, 4)] * bool(camvid):
        scores = str(tmp_path / f'scores{processes}.json')
        launch(os.path.join(ROOT, 'eval.py'), '--checkpoint', path, '--weights', 'both', '--json',
               scores, *data, f'workers={workers}', f'eval_batch_size={batch}',
               processes=processes)
        with open(scores) as file:
            found.append(json.load(file))
        assert found[-1].pop('seconds') > 0
    assert all(scores == found[0] for scores in found)
    for role in ('student', 'teacher'):
        assert found[0]['scores'][role]['images'] == (101 if camvid else 7)
        assert sum(c['precision'] is not None for c in found[0]['scores'][role]['classes']) > 3

SAVES = """
import json, os, signal, sys, types
import torch
torch.set_num_threads(1)
from dssn import config, distributed, engine, errors
from dssn.models.weights import read_torch_file
from dssn.run import checkpoint, saving
path, scenarios = sys.argv[1], json.loads(sys.argv[2])
# A step takes a second, of a clock that only steps move.
now = [0]
saving.time = types.SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
between_steps, save = engine.Run.between_steps, checkpoint.save
world = distributed.start('cpu')


def tick(run):
    now[0] = run.progress.step
    if [world.rank, run.progress.step] == signalled:
        os.kill(os.getpid(), signal.SIGTERM)
    between_steps(run)


def record(file, content, keep=None):
    if file.endswith('latest.pth'):
        step = content['step']
        if step == failing:
            saves.append([step, 'failed'])
            raise OSError('disk full')
        save(file, content, keep)
        older = keep and os.path.exists(keep) and read_torch_file(keep)['step']
        saves.append([step, older or 0])


engine.Run.between_steps, checkpoint.save = tick, record
found = []
for number, (keys, failing, retry, signalled) in enumerate(scenarios):
    saves, now[0], saving.RETRY = [], 0, retry
    cfg = config.load(path, dict(keys, save_path='{}-{}'.format(path, number)))
    run = engine.start(cfg, world)
    try:
        run.fit()
    except errors.Stopped:
        saves.append('stopped')
    found.append(saves)
if world.is_main:
    with open(path + '.json', 'w') as file:
        json.dump(found, file)
world.close()
distributed.exit()
"""

# (keys of the run, the step whose save fails, seconds until it is tried again, (rank, step) of a
# signal; then (the steps saved, the state that previous.pth holds then), for one process and two).
# Three seconds have passed at step 4; two processes agree at step 5. An epoch has 12 steps, and is
# saved before its evaluation and after it.
CLOCK, STEPS = {'save_every': '0.05 min'}, {'save_every': '6'}
SAVED = {
    'by the clock': (CLOCK, None, 0, None, [[4, 0], [8, 4], [12, 8], [12, 12]],
                     [[5, 0], [10, 5], [12, 10], [12, 12]]),
    'a request when the epoch ends': (
        {'save_every': '0.18 min'}, None, 0, None, [[11, 0], [12, 11], [12, 12]],
        [[12, 0], [12, 12]]),
    'a save that failed is tried again once': (
        CLOCK, 5, 2, None, [[4, 0], [8, 4], [12, 8], [12, 12]],
        [[5, 'failed'], [9, 0], [12, 9], [12, 12]]),
    'by their number': (STEPS, None, 0, None, [[6, 0], [12, 6], [12, 12]],
                        [[6, 0], [12, 6], [12, 12]]),
    'tried again at a step that is saved for its number': (
        {'save_every': '3'}, 3, 2, None,
        [[3, 'failed'], [6, 0], [9, 6], [12, 9], [12, 12]],
        [[3, 'failed'], [6, 0], [9, 6], [12, 9], [12, 12]]),
    'a signal at the step of the request': (CLOCK, None, 0, [1, 4], None, [[5, 0], 'stopped']),
    'a signal at the step of the save': (CLOCK, None, 0, [0, 5], None,
                                         [[5, 0], [6, 5], 'stopped']),
}


@pytest.mark.parametrize('processes', [1, 2])
def test_a_save_is_made_once_whoever_asks_for_it(tiny_world, tmp_path, processes):
    world = tiny_world(n_val=1, method='supervised', epoch_steps=12, epochs=1,
                       batch_size=2 // processes)
    script = tmp_path / 'program.py'
    script.write_text(SAVES)
    known = {name: row for name, row in SAVED.items() if row[3 + processes]}
    launch(script, world.config_path, json.dumps([row[:4] for row in known.values()]),
           processes=processes)
    with open(world.config_path + '.json') as file:
        found = dict(zip(known, json.load(file)))
    assert found == {name: row[3 + processes] for name, row in known.items()}


ENDS = """
import os, signal, sys, time
import torch
from dssn import distributed, errors
from dssn.run.signals import Agreement
way = sys.argv[1]
if way == 'interface at the start':
    os.environ['GLOO_SOCKET_IFNAME'] = 'missing0'
try:
    with distributed.start('cpu') as world:
        if way == 'interface of the second group':
            os.environ['GLOO_SOCKET_IFNAME'] = 'missing0'
        agreement = Agreement(world, 1)
        agreement([0])
        agreement.finish()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if way == 'agreement':
            for _ in range(20):
                agreement([0])
                time.sleep(0.1)
        elif way == 'sum':
            world.sum(torch.ones(3))
        elif way == 'value':
            world.on_main(lambda: 'a value')
            world.on_main(lambda: 'a value')
except errors.UserError as error:
    print('error:', error, flush=True)
except BaseException as error:
    print('not understood:', repr(error), flush=True)
os._exit(3)
"""


@pytest.mark.parametrize('way, words', [
    ('agreement', 'lost another process'), ('sum', 'lost another process'),
    ('value', 'lost another process'),
    ('interface at the start', 'GLOO_SOCKET_IFNAME is missing0.*/etc/hosts'),
    ('interface of the second group', 'GLOO_SOCKET_IFNAME is missing0.*/etc/hosts')])
def test_what_real_processes_report(tmp_path, port, way, words):
    """Where one is killed, and where gloo has no address to connect with."""
    script = tmp_path / 'program.py'
    script.write_text(ENDS)
    # Without a launcher, which would end one process because of the other.
    processes = [subprocess.Popen(
        [sys.executable, str(script), way], stdout=subprocess.PIPE, universal_newlines=True,
        env=dict(os.environ, PYTHONPATH=ROOT, RANK=str(rank), WORLD_SIZE='2', OMP_NUM_THREADS='1',
                 LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)))
        for rank in (0, 1)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert re.match(f'error: rank 0 of 2: .*{words}', outputs[0]), outputs
    assert ('lost another process' in outputs[0]) == (words == 'lost another process')


FROZEN = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_methods import CE, OHEM, config, network, random_batch
from dssn import distributed, ema, methods
from dssn.batch import Batch
from dssn.distributed import unwrap
from dssn.models import segmentation
from dssn.optim import build_optimizer
from dssn.update import Update
# No dropout.
segmentation.perturbed = lambda features, views, dropout: [features, 0.5 * features][:views]
cases, paths = json.loads(sys.argv[1]), json.loads(sys.argv[2])


def train(world, method, accumulate, ohem, labeled, path):
    method = methods.find(method, 'here')
    # A process of two is configured with half of the single one's parts and pixels.
    accumulate, labeled = 2 * accumulate // world.size, labeled // world.size
    criterion = dict(OHEM, kwargs=dict(OHEM['kwargs'], min_kept=400 // world.size, thresh=0.1)) \\
        if ohem else CE
    cfg = config(batch_size=4 // world.size, labeled_batch_size=labeled, accumulate=accumulate,
                 beta=0.9, conf_thresh=0.7, criterion=criterion)
    student, teacher = network(1), ema.make_teacher(network(2))
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    student = world.prepare_student(student, static=accumulate == 1)
    update = Update(cfg, world, method(cfg), student, teacher if method.uses_teacher else None,
                    build_optimizer(unwrap(student), 0.01, 2.0), 0.01, 100)
    for step in (5, 6, 7):
        parts = [random_batch(1, 33, 33, seed=10 * step + i) for i in range(8)]
        for i, (x, u, v) in enumerate(parts):  # other counts of pixels in each
            x.label[:, :4 * i], u.valid[:, :, :3 * i] = 255, False
        kinds = []
        for rows, count in zip(zip(*parts), (labeled, cfg.batch_size, cfg.batch_size)):
            mine = rows[world.rank * count:(world.rank + 1) * count]
            kinds.append(type(mine[0])(*map(torch.cat, zip(*mine))))
        batch = Batch(*kinds)
        student.eval()  # BN is frozen
        update(batch, 1, step)
    if world.is_main:
        torch.save([unwrap(student).state_dict(), teacher.state_dict()], path)


with distributed.start('cpu') as world:
    for case, path in zip(cases, paths):
        train(world, *case, path)
distributed.exit()
"""


CASES = [('DSSN', 1, False, 4), ('DSSN', 2, True, 4), ('fixmatch', 1, False, 4),
         ('unimatch', 2, False, 4), ('supervised', 1, True, 4), ('DSSN', 1, False, 6),
         ('DSSN', 2, True, 8), ('fixmatch', 1, False, 2), ('unimatch', 1, False, 6)]


@pytest.fixture(scope='module')
def trained_in_parts(tmp_path_factory):
    """{case: [student and teacher of 1 process, of 2]}; one launch trains all `CASES`."""
    folder = tmp_path_factory.mktemp('parts')
    script = folder / 'program.py'
    script.write_text(FROZEN.format(tests=os.path.join(ROOT, 'tests')))
    found = {case: [] for case in CASES}
    for processes in (1, 2):
        paths = [str(folder / f'weights{processes}_{i}.pth') for i in range(len(CASES))]
        launch(script, json.dumps(CASES), json.dumps(paths), processes=processes)
        for case, path in zip(CASES, paths):
            found[case].append(torch.load(path))
    return found


@pytest.mark.xdist_group('parts')
@pytest.mark.parametrize('case', CASES, ids=str)
def test_parts_are_worth_as_many_processes(trained_in_parts, case):
    """1 process with 2k parts and 2 with k give the same student and teacher.

    A case is (method, k, whether with OHEM, labeled images of all together); there are 4 unlabeled
    images.
    """
    start = network(1).state_dict()
    for one, two in list(zip(*trained_in_parts[case]))[:2 if case[0] == 'DSSN' else 1]:
        assert any(not torch.equal(one[name], start[name]) for name in start)
        for name, tensor in one.items():
            assert (tensor.double() - two[name].double()).abs().max() <= 1e-9, name


HOOKED = """
import json, os, sys
sys.path.insert(0, {tests!r})
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from test_methods import config, network, random_batch
from dssn import distributed, ema, methods
from dssn.batch import Batch
from dssn.distributed import unwrap
from dssn.optim import build_optimizer
from dssn.update import Update


def train(world, accumulate, method):
    method = methods.find(method, 'here')
    cfg = config(batch_size=4, accumulate=accumulate, beta=0.9, conf_thresh=0.7)
    student, teacher = network(1).train(), ema.make_teacher(network(2))
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    sizes = [p.numel() for p in student.parameters()]
    student = world.prepare_student(student, static=accumulate == 1)
    sent = []
    def hook(state, bucket):
        values = bucket.buffer() if hasattr(bucket, 'buffer') else bucket.get_tensors()[0]
        sent.append(values.numel())
        work = dist.all_reduce(values.div_(world.size), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])
    student.register_comm_hook(None, hook)
    update = Update(cfg, world, method(cfg), student, teacher if method.uses_teacher else None,
                    build_optimizer(unwrap(student), 0.01, 2.0), 0.01, 100)
    steps = []
    for step in (5, 6, 7):
        parts = [random_batch(1, 33, 33, seed=10 * step + i) for i in range(4)]
        batch = Batch(*[type(rows[0])(*map(torch.cat, zip(*rows))) for rows in zip(*parts)])
        sent.clear()
        update(batch, 1, step)
        steps.append(list(sent))
    return sum(sizes), steps


with distributed.start('cpu') as world:
    found = [train(world, *case) for case in json.loads(sys.argv[2])]
    if world.is_main:
        with open(sys.argv[1], 'w') as file:
            json.dump(found, file)
distributed.exit()
"""


def test_every_gradient_is_exchanged_once_a_step(tmp_path):
    if torch.__version__.startswith('1.8.'):
        pytest.skip('in PyTorch 1.8 gloo has no futures, which hooks are made of')
    script = tmp_path / 'program.py'
    script.write_text(HOOKED.format(tests=os.path.join(ROOT, 'tests')))
    path = str(tmp_path / 'sent.json')
    cases = [(1, 'DSSN'), (4, 'DSSN'), (4, 'fixmatch'), (4, 'supervised')]
    launch(script, path, json.dumps(cases))
    with open(path) as file:
        found = json.load(file)
    assert len(found) == len(cases)
    for case, (parameters, steps) in zip(cases, found):
        assert [sum(sent) for sent in steps] == [parameters] * 3, case


@pytest.mark.parametrize('visible, size, env, expected', [
    (16, 1, {}, 16), (16, 4, {}, 4), (2, 4, {}, 1), (7, 2, {}, 3),
    # Eight processes on two machines: four here.
    (16, 8, {'LOCAL_WORLD_SIZE': '4'}, 4),
    (16, 8, {'SLURM_STEP_TASKS_PER_NODE': '4(x2)'}, 4),
    # Slurm may show a task its own cores alone, or all of the machine.
    (8, 8, {'SLURM_CPUS_PER_TASK': '8', 'SLURM_STEP_TASKS_PER_NODE': '4(x2)'}, 8),
    (64, 8, {'SLURM_CPUS_PER_TASK': '8', 'SLURM_STEP_TASKS_PER_NODE': '4(x2)'}, 8)])
def test_the_cores_that_a_process_has_to_itself(monkeypatch, visible, size, env, expected):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(visible)), raising=False)
    assert distributed.cores_of_a_process(size, env) == expected
