"""Processes: what each launcher says, and two real processes that train and evaluate together."""
import json
import os
import socket
import stat
import subprocess
import sys

import pytest
import torch
from test_methods import network

from dssn import checkpoint, config, distributed
from dssn.data.lists import read_list
from dssn.distributed import World
from dssn.errors import UserError
from dssn.evaluation import evaluate
from dssn.models import build_model

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

    def join(variables, **kwargs):
        calls = []
        monkeypatch.setattr(torch.distributed, 'init_process_group',
                            lambda *args, **kw: calls.append((args, kw)))
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return distributed.start('cpu', **kwargs), calls
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


def test_a_process_without_a_gpu_of_its_own_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    for name, value in dict(RANK=2, WORLD_SIZE=3, LOCAL_RANK=2).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match='process 2.*2'):
        distributed.start('cuda')


def test_exit_of_a_world_of_one():
    with pytest.raises(SystemExit) as ended:
        distributed.exit(3)
    assert ended.value.code == 3


@pytest.mark.parametrize('error, kind, words', [
    (UserError('bad image'), UserError, 'rank 1 of 2: bad image'),
    (RuntimeError('[gloo/transport/tcp/pair.cc:5] Connection closed by peer [127.0.0.1]:9'), UserError,
     'rank 1 of 2: lost another process.*Connection closed by peer'),
    (RuntimeError('NCCL communicator was aborted\non rank 0'), UserError, 'aborted on rank 0'),
    (RuntimeError('sizes of tensors must match'), RuntimeError, '^sizes of tensors must match$'),
])
def test_an_error_of_one_of_several_says_whose_and_whether_it_is_the_first(
        monkeypatch, tmp_path, error, kind, words):
    summary = tmp_path / 'error.json'
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(summary))
    with pytest.raises(kind, match=words):
        with World(rank=1, size=2):
            raise error
    first = 'lost another' not in words and 'aborted' not in words
    assert summary.exists() == first
    if first:
        message = json.loads(summary.read_text())['message']
        assert message == '{}: {}'.format(type(error).__name__, error)


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
    with pytest.raises(UserError, match='rank 1 of 2: could not meet the others at first:7 .*timed out'):
        distributed.join(world)


# ---- two processes

PROGRAM = '''
import json, os, sys
import torch
torch.set_num_threads(1)
from dssn import checkpoint, config, distributed, engine, update
folder, path = sys.argv[1], sys.argv[2]
world = distributed.start('cpu')
seen, real = [], update.to
def to(batch, device):
    seen.append([part.index.tolist() for part in batch])
    return real(batch, device)
update.to = to
run = engine.Run(config.load(path), world)
kinds = type(run.student).__name__, type(run.teacher).__name__
before = world.sum(torch.tensor([float(world.rank + 1)])).item()
run.fit()
run.log.close()
torch.save({'student': checkpoint.weights(distributed.unwrap(run.student)),
            'teacher': checkpoint.weights(run.teacher)},
           os.path.join(folder, 'rank%d.pth' % world.rank))
with open(os.path.join(folder, 'rank%d.json' % world.rank), 'w') as file:
    json.dump({'seen': seen, 'best': run.best, 'kinds': kinds, 'sum': before}, file)
world.close()
distributed.exit()
'''


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
        [sys.executable, '-m'] + launcher + ['--nproc_per_node=%d' % processes,
                                             '--master_addr=127.0.0.1',
                                             '--master_port=%d' % port, str(script)]
        + list(arguments), env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True, timeout=200)
    assert done.returncode == 0, done.stdout


CLASSES = '''
import os, sys
import torch
from dssn import config, distributed
from dssn.logbook import Logbook
from dssn.methods import Terms
from dssn.pseudo_labels import PseudoLabels
from dssn.watching import Watch
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
'''


def test_a_class_counts_as_selected_if_any_process_selects_it(tiny_world, tmp_path):
    world = tiny_world()
    script = tmp_path / 'program.py'
    script.write_text(CLASSES)
    launch(script, world.config_path)
    with open(os.path.join(world.save_path, 'train.log')) as file:
        first, second = [line for line in file if 'warning' in line]
    for line, epoch, selected, not_selected in ((first, 1, 2, 0), (second, 3, 0, 2)):
        assert 'epoch {}: 2 of 3 classes'.format(epoch) in line
        assert 'never predicted: class 1;' in line
        assert 'never selected: class {}'.format(not_selected) in line
        assert 'class {}'.format(selected) not in line


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
        with open(str(tmp_path / 'rank{}.json'.format(rank))) as file:
            ranks.append(json.load(file))
        networks.append(checkpoint.read_torch_file(str(tmp_path / 'rank{}.pth'.format(rank))))
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
        content = checkpoint.read_torch_file(os.path.join(world.save_path, name))
        model = build_model(cfg)
        checkpoint.load_weights(model, content['model'], name)
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


def test_any_number_of_processes_workers_and_batches_gives_the_same_scores(tiny_world, tmp_path):
    """To the last digit, with real gloo processes; on CamVid's val list where there is one."""
    world = tiny_world(n_val=7)
    cfg = world.load(nclass=11, crop_size=64)
    torch.manual_seed(3)
    networks = [build_model(cfg), build_model(cfg)]
    for model in networks:
        model.classifier.weight.data.mul_(30)  # so that many classes are predicted
    path, camvid = str(tmp_path / 'latest.pth'), os.environ.get('DSSN_CAMVID')
    torch.save({'model': checkpoint.weights(networks[0]), 'config': config.to_dict(cfg),
                'teacher': checkpoint.weights(networks[1])}, path)
    data = ['--id-path', os.path.join(camvid, 'val.txt'), '--set', 'data_root=' + camvid] \
        if camvid else ['--set']
    found = []
    for processes, workers, batch in ((1, 0, 1), (2, 0, 4), (3, 1, 2)):
        scores = str(tmp_path / 'scores{}.json'.format(processes))
        launch(os.path.join(ROOT, 'eval.py'), '--checkpoint', path, '--weights', 'both', '--json',
               scores, *data, 'workers={}'.format(workers), 'eval_batch_size={}'.format(batch),
               processes=processes)
        with open(scores) as file:
            found.append(json.load(file))
        assert found[-1].pop('seconds') > 0
    assert found[0] == found[1] == found[2]
    for role in ('student', 'teacher'):
        assert found[0]['scores'][role]['images'] == (101 if camvid else 7)
        assert sum(c['precision'] is not None for c in found[0]['scores'][role]['classes']) > 3


FROZEN = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_methods import config, network, random_batch
from dssn import distributed, ema, methods
from dssn.batch import Batch
from dssn.distributed import unwrap
from dssn.models import deeplabv3plus
from dssn.optim import build_optimizer
from dssn.update import Update
# No dropout.
deeplabv3plus.perturbed = lambda features, views: [features, 0.5 * features][:views]
path, accumulate, method = sys.argv[1], int(sys.argv[2]), methods.find(sys.argv[3], 'here')
with distributed.start('cpu') as world:
    cfg = config(batch_size=4 // world.size, accumulate=accumulate, beta=0.9, conf_thresh=0.7)
    student, teacher = network(1), ema.make_teacher(network(2))
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    student = world.prepare_student(student, static=accumulate == 1)
    update = Update(cfg, world, method(cfg), student, teacher if method.uses_teacher else None,
                    build_optimizer(unwrap(student), 0.01, 2.0), 0.01, 100)
    for step in (5, 6, 7):
        parts = [random_batch(1, 33, 33, seed=10 * step + i) for i in range(4)]
        for x, u, v in parts:
            x.label[x.label == 255] = 0  # as many pixels count in each
        mine = parts[world.rank * cfg.batch_size:(world.rank + 1) * cfg.batch_size]
        batch = Batch(*[type(rows[0])(*map(torch.cat, zip(*rows))) for rows in zip(*mine)])
        student.eval()  # BN is frozen
        update(batch, 1, step)
    if world.is_main:
        torch.save([unwrap(student).state_dict(), teacher.state_dict()], path)
distributed.exit()
"""


@pytest.mark.parametrize('method, accumulate', [
    ('DSSN', 1), ('DSSN', 2), ('fixmatch', 1), ('unimatch', 1), ('unimatch', 2)])
def test_processes_times_batch_decides_and_not_which_of_them(tmp_path, method, accumulate):
    """1 x 4 and 2 x 2 give the same student and teacher."""
    script = tmp_path / 'program.py'
    script.write_text(FROZEN.format(tests=os.path.join(ROOT, 'tests')))
    found = []
    for processes in (1, 2):
        path = str(tmp_path / 'weights{}.pth'.format(processes))
        launch(script, path, str(accumulate), method, processes=processes)
        found.append(torch.load(path))
    start = network(1).state_dict()
    for one, two in list(zip(*found))[:2 if method == 'DSSN' else 1]:
        assert any(not torch.equal(one[name], start[name]) for name in start)
        for name, tensor in one.items():
            assert (tensor.double() - two[name].double()).abs().max() <= 1e-9, name


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
