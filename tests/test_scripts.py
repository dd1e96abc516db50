"""The shell scripts, in a copy of the repository with a stand-in train.py and made-up environments.

A made-up environment is a folder whose bin/python is this Python without its site-packages; folders
NAME-VERSION.dist-info are all that the scripts look at, so none of this imports or installs
anything.
"""
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / 'scripts').glob('*.sh'))
RUN_TIME = dict.fromkeys('torchvision numpy pillow pyyaml tqdm tensorboard'.split(), '1.0')

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='shell scripts')

TRAIN = """
import json, os, signal, sys, time
LOADER = '''
import signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, frame: print(int(number)))
print("ready")
time.sleep(60)
'''
print(json.dumps({"args": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}))
print("to stderr", file=sys.stderr)
print("last line")
if "SAVES" in os.environ:
    open(os.path.join(sys.argv[sys.argv.index("--save-path") + 1], "latest.pth"), "w").close()
if "KILLED" in os.environ:
    os.kill(os.getpid(), int(os.environ["KILLED"]))
if "sleep" in sys.argv:
    import subprocess
    loader = subprocess.Popen([sys.executable, "-Suc", LOADER], stdout=subprocess.PIPE)
    loader.stdout.readline()
    got = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: [
            got.append(int(number)), print("got signal", int(number))])
    print("ready")
    end = time.time() + 300
    while len(got) < int(os.environ.get("SIGNALS", 1)) and time.time() < end:
        time.sleep(0.05)
    loader.kill()
    print("the loader got", loader.stdout.read().decode().split())
    sys.exit(int(os.environ.get("STATUS") or 128 + got[0]))
sys.exit(int(os.environ.get("STATUS", 0)))
"""

# One process of the training, however many are asked for. Words and exit status are those of the
# real ones.
LAUNCHER = """
import os, subprocess, sys, time
own = sys.argv.index("train.py")
print("launcher", os.path.basename(__file__), *sys.argv[1:own])
time.sleep(float(os.environ.get("LAUNCH_AFTER", 0)))
command = [sys.executable, "-S", "-u"] + sys.argv[own:]
status = subprocess.call(command)
if status and "launch.py" in __file__:
    raise subprocess.CalledProcessError(status, command)
elif status:
    print("Failures:\\n  exitcode  : 143 (pid: 17)\\n"
          "Root Cause (first observed failure):\\n  rank      : 0")
    print("  exitcode  : %d (pid: 18)" % status)
    sys.exit(1)
"""

# Stand-ins for a Slurm that runs a job at once. A copy of the job's script runs, as there.
SLURM = {
    'sbatch': """#!/bin/sh
folder=$(dirname "$0")
for word; do echo "$word" >>"$folder/sbatch.words"; done
[ -z "${REFUSED-}" ] || { echo "sbatch: error: $REFUSED" >&2; exit 1; }
echo "17${CLUSTER:+;$CLUSTER}"
while case $1 in -*) ;; *) false ;; esac; do
    case $1 in
    --chdir=*) chdir=${1#*=} ;;
    --output=*) output=$(echo "${1#*=}" | sed "s/%%/%/g") ;;
    --cpus-per-task=*) export SLURM_CPUS_PER_TASK="${1#*=}" ;;
    esac
    shift
done
cp "$1" "$folder/slurm_script"
shift
cd "$chdir"
export SLURM_JOB_ID=17 SLURM_JOB_NODELIST=node7
setsid sh "$folder/slurm_script" "$@" >>"$output" 2>&1 &
echo $! >"$folder/job.pid"
wait $!
""",
    'srun': """#!/bin/sh
for word; do echo "srun: $word"; done
while case $1 in -*) ;; *) false ;; esac; do shift; done
exec "$@"
""",
    'scancel': """#!/bin/sh
echo "scancel $*"
kill -- "-$(cat "$(dirname "$0")/job.pid")"
""",
    'scontrol': """#!/bin/sh
folder=$(dirname "$0")
if [ "$1" = requeue ]; then
    echo "$2" >>"$folder/requeued"
    [ -z "${NO_REQUEUE-}" ] || { echo "slurm_requeue error: $NO_REQUEUE"; exit 1; }
elif [ -n "${SLURM_JOB_ID-}" ]; then  # the job asks
    state=${JOB_STATE-RUNNING} preempted=${PREEMPTED-None}
    echo "JobId=17 JobState=$state Reason=None PreemptEligibleTime=2026 PreemptTime=$preempted"
elif [ -n "${CLEAN_UP-}" ] && [ ! -e "$folder/clean" ]; then
    : >"$folder/clean"
    echo "JobId=17 JobState=COMPLETING Reason=None"
else
    echo "JobId=17 JobState=${STATE-COMPLETED} Reason=None"
fi
""",
}

# The Python that makes .venv: its pip writes the dist-info folders of everything in the list (in
# their names - is _), or gives up half way while a file pip_fails is there.
BASE_PYTHON = """#!/bin/sh
case "$*" in
"-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo made ;;
"-m pip --version") [ "$0" != "${0%%.venv/bin/python}" ] ;;
"-m pip install "*)
    for list; do :; done
    mkdir -p .venv/site
    for pin in $(grep == "$list"); do
        folder=.venv/site/$(echo "${pin%%%%==*}" | tr - _)-${pin##*==}.dist-info
        mkdir -p "$folder"
        echo "Version: ${pin##*==}" >"$folder/METADATA"
    done
    [ ! -e pip_fails ] || exit 7
    echo "installed $list" ;;
"-m pytest"*) echo "$@" ;;
*) PYTHONPATH=${0%%/bin/python}/site exec %r -S "$@" ;;
esac
"""


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def make_environment(folder, packages):
    for name, version in packages.items():
        info = folder / 'site' / f'{name}-{version}.dist-info'
        write(info / 'METADATA', f'Version: {version}\n')
    site = str(folder / 'site')
    wrapper = f'#!/bin/sh\nPYTHONPATH={site!r} exec {sys.executable!r} -S "$@"\n'
    write(folder / 'bin' / 'python', wrapper, 0o755)
    return folder


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / 'a checkout')


class World:
    """A checkout with a space in its path, and an active environment that has everything."""

    def __init__(self, root):
        self.root = root
        shutil.copytree(str(ROOT / 'scripts'), str(root / 'scripts'))
        for name in ('requirements.txt', 'tests/requirements.txt'):
            write(root / name, (ROOT / name).read_text())
        write(root / 'train.py', TRAIN)
        active = make_environment(root.parent / 'active env', dict(RUN_TIME, torch='2.0.0'))
        write(active / 'site' / 'torch' / '__init__.py', "print('torch was imported')")
        write(active / 'site' / 'torch' / 'distributed' / 'launch.py', LAUNCHER)
        write(active / 'site' / 'torch' / 'distributed' / '__init__.py', '')
        self.active = active
        path = os.pathsep.join([str(root.parent / 'bin'), '/usr/local/bin', '/usr/bin', '/bin'])
        self.environment = {'PATH': path, 'HOME': str(root.parent), 'VIRTUAL_ENV': str(active)}
        # no Python of the machine is found by accident
        for name in ('python', 'python3'):
            write(root.parent / 'bin' / name, '#!/bin/sh\nexit 127\n', 0o755)

    def start(self, script, *args, **environment):
        settings = dict(self.environment, **environment)
        settings = {key: value for key, value in settings.items() if value is not None}
        cwd = settings.pop('cwd', str(self.root.parent))
        return subprocess.Popen(
            ['sh', str(self.root / 'scripts' / script)] + [str(arg) for arg in args],
            cwd=cwd, env=settings, start_new_session=True, universal_newlines=True,
            # A caller in the background ignores Ctrl-C, and its children would inherit that.
            preexec_fn=lambda: [
                signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script, *args, **environment):
        process = self.start(script, *args, **environment)
        out, err = process.communicate(timeout=300)
        return Result(process.returncode, out, err)

    def source(self, call, **environment):
        """Calls a function of env.sh and prints the Python it chose."""
        write(self.root / 'scripts' / 'caller.sh',
              f'cd "$(dirname "$0")/.." && . scripts/env.sh && {call} && echo "chose $python"\n')
        return self.run('caller.sh', **environment)

    def log(self):
        logs = list(self.root.glob('exp/*/*/*/*/*.log'))
        assert len(logs) == 1
        return logs[0]


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def train(self):
        """What the stand-in train.py was started with."""
        return json.loads(next(line for line in self.out.splitlines() if line.startswith('{')))

    def option(self, name):
        args = self.train['args']
        return args[args.index(name) + 1]


# train.sh


@pytest.mark.parametrize('status', [0, 3])
def test_the_exit_status_and_the_output_survive_the_log(world, port, status):
    result = world.run('train.sh', 1, port, STATUS=str(status))
    assert result.status == status, result.err
    lines = [line for line in result.out.splitlines() if not line.startswith('log: ')]
    assert lines[1:] == ['to stderr', 'last line']
    assert world.log().read_text().splitlines() == lines
    assert world.log().parent == world.root / 'exp/shapes/DSSN/resnet18/20'


def test_the_defaults_and_the_arguments_after_the_port_reach_train_py(world, port):
    result = world.run('train.sh', 1, port, '--set', 'epochs=1', 'two words', '')
    assert result.train['args'] == [
        '--method', 'DSSN', '--config', 'configs/shapes.yaml',
        '--labeled-id-path', 'splits/shapes/20/labeled.txt',
        '--unlabeled-id-path', 'splits/shapes/20/unlabeled.txt',
        '--save-path', 'exp/shapes/DSSN/resnet18/20', '--port', str(port),
        '--set', 'epochs=1', 'two words', '']


def test_the_environment_overrides_the_names_of_the_run(world, port):
    result = world.run('train.sh', 1, port, dataset='pascal', method='supervised',
                       exp='resnet101', split='1_16')
    assert result.option('--method') == 'supervised'
    assert result.option('--config') == 'configs/pascal.yaml'
    assert result.option('--labeled-id-path') == 'splits/pascal/1_16/labeled.txt'
    assert result.option('--unlabeled-id-path') == 'splits/pascal/1_16/unlabeled.txt'
    assert result.option('--save-path') == 'exp/pascal/supervised/resnet101/1_16'
    result = world.run('train.sh', 1, port, config='configs/mine.yaml')
    assert result.option('--config') == 'configs/mine.yaml'


def test_runs_may_lie_below_another_folder(world, port):
    result = world.run('train.sh', 1, port, exp_root='other runs')
    assert result.status == 0, result.err
    assert result.option('--save-path') == 'other runs/shapes/DSSN/resnet18/20'
    assert result.out.startswith('log: other runs/shapes/DSSN/resnet18/20/')


def test_it_runs_in_the_repository_root_from_anywhere(world, port, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    result = world.run('train.sh', 1, port, cwd=str(elsewhere), CDPATH=str(tmp_path))
    assert os.path.realpath(result.train['cwd']) == os.path.realpath(str(world.root))


@pytest.mark.parametrize('devices', [None, '', '1,3'])
def test_the_choice_of_devices_is_left_alone(world, port, devices):
    result = world.run('train.sh', 1, port, CUDA_VISIBLE_DEVICES=devices)
    assert result.train['env'].get('CUDA_VISIBLE_DEVICES') == devices


def test_threads_are_shared_among_several_processes_only(world, port):
    assert 'OMP_NUM_THREADS' not in world.run('train.sh', 1, port).train['env']
    assert world.run('train.sh', 1000, port).train['env']['OMP_NUM_THREADS'] == '1'
    result = world.run('train.sh', 2, port, OMP_NUM_THREADS='7')
    assert result.train['env']['OMP_NUM_THREADS'] == '7'


def test_several_processes_are_launched_by_the_launcher_that_is_there(world, port):
    result = world.run('train.sh', 2, port, 'extra', STATUS='3')
    assert result.status == 1, result.err
    words = f'--nnodes 1 --nproc_per_node 2 --master_port {port}'
    assert world.log().name[15:] == '.log'
    assert 'launcher launch.py --use_env ' + words in result.out.splitlines()
    assert result.train['args'][-1] == 'extra'

    write(world.active / 'site' / 'torch' / 'distributed' / 'run.py', LAUNCHER)
    assert 'launcher run.py ' + words in world.run('train.sh', 2, port).out.splitlines()


@pytest.mark.parametrize('address', ['', '127.0.0.1'])
@pytest.mark.parametrize('num_gpu', [1, 2])
def test_a_port_in_use_stops_it_before_the_launch(world, num_gpu, address):
    with socket.socket() as server:
        server.bind((address, 0))
        server.listen(1)
        used = server.getsockname()[1]
        result = world.run('train.sh', num_gpu, used)
    assert result.status == 1
    assert result.out == ''
    assert len(result.err.splitlines()) == 1
    assert f'port {used} is in use' in result.err
    words = result.err.split()
    offered = int(words[words.index('port', words.index('port') + 1) + 1])
    with socket.socket() as probe:
        probe.bind(('', offered))


def nodes(rank, number=2):
    return {'NNODES': str(number), 'NODE_RANK': str(rank), 'MASTER_ADDR': 'first'}


@pytest.mark.parametrize('num_gpu', [1, 2])
def test_several_machines_are_launched_with_their_number_and_the_first_ones_address(
        world, port, num_gpu):
    result = world.run('train.sh', num_gpu, port, **nodes(2, 3))
    assert result.status == 0, result.err
    assert ('launcher launch.py --use_env --node_rank 2 --master_addr first --nnodes 3 '
            f'--nproc_per_node {num_gpu} --master_port {port}') in result.out.splitlines()
    assert world.log().name[15:] == '_node2.log'


def test_one_machine_of_one_needs_no_address(world, port):
    assert 'launcher' not in world.run('train.sh', 1, port, NNODES='1', NODE_RANK='0').out
    result = world.run('train.sh', 1, port, NNODES='', NODE_RANK='', MASTER_ADDR='left over')
    assert 'launcher' not in result.out


def test_only_the_first_machine_needs_the_port(world):
    with socket.socket() as server:
        server.bind(('', 0))
        server.listen(1)
        used = server.getsockname()[1]
        assert world.run('train.sh', 1, used, **nodes(1)).status == 0
        result = world.run('train.sh', 1, used, **nodes(0))
    assert result.status == 1
    assert f'port {used} is in use' in result.err


@pytest.mark.parametrize('changed, words', [
    ({'NNODES': None}, ['NODE_RANK=1', 'without NNODES']),
    ({'NODE_RANK': None}, ['NNODES=2', 'without NODE_RANK']),
    ({'MASTER_ADDR': None}, ['NNODES=2', 'without MASTER_ADDR']),
    ({'NODE_RANK': '2'}, ['NODE_RANK=2', 'from 0 to 1']),
    ({'NODE_RANK': '-1'}, ['NODE_RANK', "'-1'"]),
    ({'NODE_RANK': 'one'}, ['NODE_RANK', "'one'"]),
    ({'NNODES': '0'}, ['NNODES', "'0'"]),
    ({'NNODES': '1:2'}, ['NNODES', "'1:2'"]),
])
def test_machines_that_do_not_fit_together_are_one_error(world, port, changed, words):
    result = world.run('train.sh', 2, port, **dict(nodes(1), **changed))
    assert result.status == 2
    assert result.out == ''
    assert len(result.err.splitlines()) == 1
    assert all(word in result.err for word in words)
    assert not (world.root / 'exp').exists()


WRONG = [[], [1], ['two', 29500], [0, 29500], [-1, 29500], [1, 'p'], [1, 0], [1, 65536],
         [1, 10 ** 20], ['', '']]
WRONG_SLURM = [[], [1], [1, 29500], ['gpu', 1, 29500], [1, 0, 'gpu']]


@pytest.mark.parametrize('script, args', [('train.sh', args) for args in WRONG]
                         + [('slurm_train.sh', args) for args in WRONG_SLURM])
def test_wrong_arguments_are_told_with_the_usage(world, script, args):
    result = world.run(script, *args)
    assert result.status == 2
    assert result.out == ''
    assert f'usage: sh scripts/{script} <num_gpu> <port>' in result.err
    assert len(result.err.splitlines()) == 1
    assert not (world.root / 'exp').exists()


def test_a_folder_that_cannot_be_made_is_one_error(world, port):
    write(world.root / 'exp', 'a file')
    result = world.run('train.sh', 1, port)
    assert result.status == 1
    assert result.out == ''
    assert 'cannot write to exp/shapes/DSSN/resnet18/20' in result.err
    assert len(result.err.splitlines()) == 1


LAUNCHERS = [(1, None), (2, 'launch.py'), (2, 'run.py')]


def start_and_wait(world, num_gpu, port, launcher=None, **environment):
    if launcher == 'run.py':
        write(world.active / 'site' / 'torch' / 'distributed' / 'run.py', LAUNCHER)
    process = world.start('train.sh', num_gpu, port, 'sleep', **environment)
    for line in process.stdout:
        if line == 'ready\n':
            return process
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize('num_gpu, launcher', LAUNCHERS)
@pytest.mark.parametrize('number, passed_on', [
    (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGUSR1, signal.SIGUSR1), (signal.SIGHUP, signal.SIGTERM)])
def test_a_signal_reaches_the_training_alone_and_is_the_exit_status(
        world, port, num_gpu, launcher, number, passed_on):
    process = start_and_wait(world, num_gpu, port, launcher)
    os.killpg(process.pid, number)  # as a terminal does
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + passed_on
    assert out.splitlines()[:2] == [f'got signal {int(passed_on)}', 'the loader got []']
    assert world.log().read_text().endswith(out)
    last = (f'stopped by {passed_on.name}: exit status {128 + passed_on} '
            "(the launcher's status differs)")
    assert (out.splitlines()[-1] == last) is (launcher is not None)


@pytest.mark.parametrize('num_gpu, launcher', LAUNCHERS)
def test_a_second_signal_reaches_the_training_too(world, port, num_gpu, launcher):
    process = start_and_wait(world, num_gpu, port, launcher, SIGNALS='2')
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'got signal 2\n'
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out.splitlines()[0]) == (130, 'got signal 15')


@pytest.mark.parametrize('words, status', [
    ("SIGTERM again: stopped without saving\n"
     "train.py: error: rank 1 of 2: lost another process\n"
     "subprocess.CalledProcessError: Command '[]' returned non-zero exit status 1.\n", 143),
    ("train.py: error: SIGTERM again: stopped without saving is a name\n"
     "subprocess.CalledProcessError: Command '[]' returned non-zero exit status 1.\n", None),
    ("subprocess.CalledProcessError: Command '[]' returned non-zero exit status 130.\n", 130)])
def test_after_a_second_signal_a_lost_connection_does_not_decide(monkeypatch, words, status):
    monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
    logged = importlib.import_module('logged')
    assert logged.status_behind_launcher(words) == status


@pytest.mark.parametrize('num_gpu, launcher', LAUNCHERS)
def test_a_training_that_fails_after_a_signal_keeps_its_own_status(world, port, num_gpu, launcher):
    process = start_and_wait(world, num_gpu, port, launcher, STATUS='7')
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == (1 if launcher else 7)
    assert 'stopped by' not in out


def test_a_signal_waits_for_a_launcher_to_launch(world, port):
    process = world.start('train.sh', 2, port, 'sleep', LAUNCH_AFTER='2')
    for line in process.stdout:
        if line.startswith('launcher'):
            break
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGUSR1


def test_a_launcher_that_does_not_launch_is_ended(world, port):
    process = world.start('train.sh', 2, port, LAUNCH_AFTER='60')
    for line in process.stdout:
        if line.startswith('launcher'):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM


def test_what_a_background_job_ignores_stays_ignored(world, port):
    script = write(world.root / 'scripts' / 'background.sh',
                   "trap '' INT HUP; exec sh \"$(dirname \"$0\")/train.sh\" \"$@\"\n")
    process = world.start(script.name, 1, port, 'sleep')
    for line in process.stdout:
        if line == 'ready\n':
            break
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out.splitlines()[0]) == (128 + signal.SIGUSR1, 'got signal 10')


def test_the_training_outlives_its_terminal(world, port):
    process = start_and_wait(world, 1, port)
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 128 + signal.SIGTERM
    process.stderr.close()
    assert f'got signal {int(signal.SIGTERM)}\n' in world.log().read_text()


def test_children_are_found_without_a_proc_file_system(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
    import logged
    parents = [subprocess.Popen(['sh', '-c', 'sleep 600 & wait'], start_new_session=True)
               for _ in range(2)]
    try:
        end = time.time() + 300
        while not all(logged.children(parent.pid) for parent in parents) and time.time() < end:
            time.sleep(0.1)
        found = [logged.children(parent.pid) for parent in parents]
        assert [len(one) for one in found] == [1, 1] and found[0] != found[1]
        assert {parent.pid for parent in parents} <= set(logged.children(os.getpid()))
        if shutil.which('ps'):
            monkeypatch.setattr(logged.os.path, 'exists', lambda path: False)
            assert [logged.children(parent.pid) for parent in parents] == found
    finally:
        for parent in parents:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait()


# slurm_train.sh


def put_slurm(world):
    for name, text in SLURM.items():
        write(world.root.parent / 'bin' / name, text, 0o755)


def slurm(world, *args, **environment):
    put_slurm(world)
    result = world.run('slurm_train.sh', *args, **environment)
    words = world.root.parent / 'bin' / 'sbatch.words'
    result.sbatch = words.read_text().splitlines() if words.exists() else []
    result.srun = [line[len('srun: '):] for line in result.out.splitlines()
                   if line.startswith('srun: ')]
    return result


def test_sbatch_gets_the_job_and_train_py_the_same_arguments_as_without_it(world, port):
    result = slurm(world, 8, port, 'gpu', '--set', 'epochs=1', 'two words', '', nodes='2',
                   STATUS='3')
    assert result.status == 3, result.err
    assert result.sbatch[:14] == [
        '--wait', '--requeue', '--parsable', '--partition=gpu', '--nodes=2', '--ntasks=8',
        '--ntasks-per-node=4', '--gres=gpu:4', '--cpus-per-task=8',
        '--job-name=shapes-DSSN-resnet18-20', f'--chdir={world.root}',
        f'--output={world.log()}', '--open-mode=append', 'scripts/slurm_train.sh']
    assert result.srun[:2] == ['--kill-on-bad-exit=1', '--cpus-per-task=8']
    assert os.path.realpath(result.train['cwd']) == os.path.realpath(str(world.root))
    assert result.train['env']['OMP_NUM_THREADS'] == '8'
    without = world.run('train.sh', 1, port, '--set', 'epochs=1', 'two words', '')
    assert result.train['args'] == without.train['args']


def test_the_log_of_the_job_is_shown(world, port):
    result = slurm(world, 1, port, 'gpu', exp='100%j')
    assert result.status == 0, result.err
    log = world.log()
    assert log.parent == world.root / 'exp/shapes/DSSN/100%j/20'
    shown = result.out.splitlines()
    assert shown[:3] == [f'log: {log.relative_to(world.root)}', 'job: 17 (Ctrl-C cancels it)',
                         'slurm: job 17 on node7, restart 0']
    assert shown[2:] == log.read_text().splitlines()
    assert shown[-1] == 'last line'


def test_a_launchers_variables_do_not_reach_the_processes(world, port):
    result = slurm(world, 2, port, 'gpu', RANK='0', WORLD_SIZE='1', LOCAL_RANK='0',
                   OMP_NUM_THREADS='3')
    env = result.train['env']
    assert not {'RANK', 'WORLD_SIZE', 'LOCAL_RANK'} & set(env)
    assert env['OMP_NUM_THREADS'] == '3'


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 1), (signal.SIGKILL, 137)])
def test_a_process_that_slurm_stops_does_not_hide_the_status_of_the_one_that_failed(
        world, port, number, status):
    assert slurm(world, 1, port, 'gpu', KILLED=str(int(number))).status == status


PREEMPTED = '2026-11-25T08:33:24'


@pytest.mark.parametrize('environment, requeued', [
    (dict(STATUS='138', SAVES=''), True),
    (dict(STATUS='138'), False),
    (dict(STATUS='138', SAVES='', JOB_STATE='COMPLETING'), False),
    (dict(STATUS='143', SAVES=''), False),
    (dict(STATUS='143', SAVES='', PREEMPTED=PREEMPTED), True),
    (dict(STATUS='143', PREEMPTED=PREEMPTED), True),
    (dict(STATUS='143', SAVES='', PREEMPTED=PREEMPTED, JOB_STATE='CANCELLED'), False),
    (dict(KILLED='15', PREEMPTED=PREEMPTED), True),
    (dict(STATUS='0', SAVES='', PREEMPTED=PREEMPTED), False),
    (dict(STATUS='1', SAVES=''), False),
])
def test_a_job_that_stops_because_it_must_leave_is_requeued(world, port, environment, requeued):
    result = slurm(world, 1, port, 'gpu', **environment)
    assert result.status == (1 if 'KILLED' in environment else int(environment['STATUS']))
    assert (world.root.parent / 'bin' / 'requeued').exists() is requeued
    line = 'slurm: the job is requeued, and training will continue'
    assert (line in result.out.splitlines()) is requeued
    nothing_saved = environment == dict(STATUS='138')
    line = 'nothing was saved since the job started, so it is not requeued'
    assert (line in result.out) is nothing_saved


def test_a_job_that_saves_over_an_earlier_state_has_saved(world, port):
    write(world.root / 'exp/shapes/DSSN/resnet18/20/latest.pth', '')
    assert 'not requeued' in slurm(world, 1, port, 'gpu', STATUS='138').out
    assert not (world.root.parent / 'bin' / 'requeued').exists()
    assert slurm(world, 1, port, 'gpu', STATUS='138', SAVES='').status == 138
    assert (world.root.parent / 'bin' / 'requeued').read_text() == '17\n'


def test_a_requeue_that_slurm_refuses_is_told(world, port):
    result = slurm(world, 1, port, 'gpu', STATUS='138', SAVES='',
                   NO_REQUEUE='Job is not requeueable')
    assert result.status == 138
    assert result.out.splitlines()[-1] == (
        'slurm: requeuing failed: slurm_requeue error: Job is not requeueable; '
        'the same command resumes the run')


@pytest.mark.parametrize('given, expected', [(None, 'USR1@120'), ('USR1@600', 'USR1@600')])
def test_slurm_is_asked_for_a_signal_before_the_time_is_up(world, port, given, expected):
    result = slurm(world, 1, port, 'gpu', SBATCH_SIGNAL=given)
    assert result.train['env']['SBATCH_SIGNAL'] == expected


@pytest.mark.parametrize('state, status', [('COMPLETED', 0), ('FAILED', 3)])
def test_a_job_is_judged_once_slurm_has_cleaned_up(world, port, state, status):
    result = slurm(world, 1, port, 'gpu', CLEAN_UP='1', STATE=state, STATUS=str(status))
    assert result.status == status
    assert 'COMPLETING' not in result.out


@pytest.mark.parametrize('state, status', [('CANCELLED', '0'), ('TIMEOUT', '0'), ('FAILED', '4')])
def test_a_job_that_did_not_complete_has_not_succeeded(world, port, state, status):
    result = slurm(world, 1, port, 'gpu', STATE=state, STATUS=status)
    assert result.status == (int(status) or 1)
    assert result.out.splitlines()[-1] == 'job: 17 ' + state


def test_a_refused_job_is_sbatchs_error_and_leaves_no_log(world, port):
    result = slurm(world, 1, port, 'nowhere', REFUSED='invalid partition specified: nowhere')
    assert result.status == 1
    assert result.err == 'sbatch: error: invalid partition specified: nowhere\n'
    assert not list(world.root.glob('exp/*/*/*/*/*.log'))


@pytest.mark.parametrize('cluster', ['', 'far'])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_cancel_the_job(world, port, number, cluster):
    put_slurm(world)
    process = world.start('slurm_train.sh', 1, port, 'gpu', 'sleep', CLUSTER=cluster)
    for line in process.stdout:
        if line == 'ready\n':
            break
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert 'scancel %s17' % ('--clusters=far ' if cluster else '') in out.splitlines()


@pytest.mark.parametrize('gres, expected', [
    (None, ['--gres=gpu:2']), ('', []), ('gpu:a100:2', ['--gres=gpu:a100:2'])])
def test_gres_can_be_changed_or_left_out(world, port, gres, expected):
    result = slurm(world, 2, port, 'gpu', gres=gres, cpus_per_task='3')
    assert [word for word in result.sbatch if word.startswith('--gres')] == expected
    assert '--cpus-per-task=3' in result.sbatch and '--cpus-per-task=3' in result.srun


@pytest.mark.parametrize('num_gpu, settings', [
    (3, {'nodes': '2'}), (1, {'nodes': '2'}), (2, {'nodes': '0'}), (2, {'nodes': 'two'}),
    (2, {'cpus_per_task': '0'}), (2, {'cpus_per_task': 'many'})])
def test_settings_that_make_no_job_are_an_error(world, port, num_gpu, settings):
    result = slurm(world, num_gpu, port, 'gpu', **settings)
    assert result.status == 2
    assert list(settings)[0] in result.err
    assert len(result.err.splitlines()) == 1
    assert result.sbatch == []


@pytest.mark.skipif(shutil.which('sbatch') is not None, reason='Slurm is here')
def test_a_machine_without_slurm_is_one_error(world, port):
    result = world.run('slurm_train.sh', 1, port, 'gpu')
    assert result.status == 1
    assert 'sbatch' in result.err
    assert len(result.err.splitlines()) == 1


def test_both_scripts_name_the_run_alike():
    def names(script):
        return [line for line in (ROOT / 'scripts' / script).read_text().splitlines()
                if line.split('=')[0] in ('dataset', 'method', 'exp', 'split', 'config')]

    assert names('train.sh') == names('slurm_train.sh')
    assert len(names('train.sh')) == 5


# env.sh


def test_an_active_environment_with_everything_is_used(world):
    chosen = f'chose {world.active}/bin/python\n'
    assert world.source('find_python').out == chosen
    result = world.source('find_python', VIRTUAL_ENV=None, CONDA_PREFIX=str(world.active))
    assert result.out == chosen
    assert world.source('set_up_python').out.endswith(chosen)
    assert not (world.root / '.venv').exists()


@pytest.mark.parametrize('torch, good', [
    ('1.7.1', False), ('1.8.0', False), ('1.8.1', True), ('1.8.1+cu102', True),
    ('1.13.0a0+936e930', True), ('2.10', True)])
def test_torch_may_be_any_version_from_1_8_1(world, torch, good):
    environment = make_environment(world.root.parent / 'other', dict(RUN_TIME, torch=torch))
    result = world.source('find_python', VIRTUAL_ENV=str(environment))
    assert result.status == (0 if good else 1)
    assert good or f'lacks: torch>=1.8.1 ({torch} is there)' in result.err


def test_the_order_is_active_environment_then_venv_then_path(world):
    everything = dict(RUN_TIME, torch='2.0.0')
    poor = make_environment(world.root.parent / 'poor', {})
    on_path = make_environment(world.root.parent / 'on_path', everything)
    path = str(on_path / 'bin') + os.pathsep + world.environment['PATH']

    def chosen(**environment):
        return world.source('find_python', PATH=path, **environment).out
    assert chosen(VIRTUAL_ENV=str(poor)) == f'chose {on_path}/bin/python\n'
    venv = make_environment(world.root / '.venv', everything)
    assert chosen(VIRTUAL_ENV=str(poor)) == f'chose {venv}/bin/python\n'
    assert chosen(VIRTUAL_ENV=None) == f'chose {venv}/bin/python\n'
    assert chosen() == f'chose {world.active}/bin/python\n'


def test_missing_packages_are_named(world, port):
    some = make_environment(world.root.parent / 'some',
                            {'numpy': '1.0', 'pillow': '1.0', 'torch': '2.0.0'})
    result = world.run('train.sh', 1, port, VIRTUAL_ENV=str(some))
    assert result.status == 1
    assert 'some/bin/python lacks: torchvision pyyaml tqdm tensorboard;' in result.err
    assert '`pip install -r requirements.txt` or `sh scripts/quickstart.sh`' in result.err
    assert len(result.err.splitlines()) == 1


@pytest.fixture
def bare(world):
    """A world without packages; $PYTHON can make environments."""
    world.environment['VIRTUAL_ENV'] = str(world.root.parent / 'deactivated')
    base = write(world.root.parent / 'base' / 'python', BASE_PYTHON % sys.executable, 0o755)
    world.environment['PYTHON'] = str(base)
    return world


needs_new_python = pytest.mark.skipif(
    sys.version_info < (3, 11), reason='requirements.txt needs Python 3.11')


@needs_new_python
def test_set_up_makes_venv_once(bare):
    result = bare.source('set_up_python')
    assert result.status == 0, result.err
    assert 'creating .venv' in result.out and 'installed requirements.txt' in result.out
    assert result.out.endswith(f'chose {bare.root}/.venv/bin/python\n')
    result = bare.source('set_up_python')
    assert 'made' not in result.out and 'installed' not in result.out
    assert bare.source('find_python', PYTHON=None).status == 0


@needs_new_python
def test_an_interrupted_set_up_is_completed(bare):
    marker = write(bare.root / 'pip_fails', '')
    result = bare.source('set_up_python')
    assert result.status == 1
    assert 'run this again' in result.err
    # Every package is there by name, but who knows in what state.
    result = bare.source('find_python')
    assert result.status == 1 and 'did not finish' in result.err
    marker.unlink()
    result = bare.source('set_up_python')
    assert result.status == 0, result.err
    assert 'made' not in result.out and 'installed requirements.txt' in result.out
    assert not (bare.root / '.venv/incomplete').exists()


@needs_new_python
def test_test_sh_adds_only_its_own_list_to_a_complete_venv(bare):
    assert bare.source('set_up_python').status == 0
    result = bare.run('test.sh', '-k', 'two words')
    assert result.status == 0, result.err
    assert 'installed tests/requirements.txt' in result.out
    assert 'installed requirements.txt' not in result.out
    assert re.search(r'-m pytest -n \S+ --dist loadgroup --max-worker-restart 0 '
                     r'-m not slow -k two words\n$',
                     result.out)
    assert 'installed' not in bare.run('test.sh').out


def test_an_old_or_broken_base_python_is_one_error(bare):
    def answers(text):
        return str(write(bare.root.parent / 'old' / 'python', f'#!/bin/sh\n{text}\n', 0o755))

    old = answers('case $2 in import*version_info*) echo 3.9;; *) exit 1;; esac')
    result = bare.source('set_up_python', PYTHON=old)
    assert result.status == 1
    assert len(result.err.splitlines()) == 1
    for part in ('Python 3.9', '3.11 or newer', 'PYTHON=python3.11', 'env200.txt', 'env181.txt',
                 'activate'):
        assert part in result.err
    result = bare.source('set_up_python', PYTHON=answers('echo no such version >&2; exit 127'))
    assert result.status == 1
    assert len(result.err.splitlines()) == 1
    assert 'does not run' in result.err and 'PYTHON=python3.11' in result.err
    assert not (bare.root / '.venv').exists()


# quickstart.sh


EVAL = """
import json, os, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("eval", sys.argv[1:])
role = args.get("--weights", "student")
scores = {"miou": 71.5 if role == "teacher" else 70.256, "images": 60}
json.dump({"scores": {role: scores}}, open(args["--json"], "w"))
sys.exit(int(os.environ.get("EVAL_STATUS", 0)))
"""


def quickstart(world, *args, **environment):
    write(world.root / 'dssn' / '__init__.py', '')
    write(world.root / 'dssn' / '__main__.py', "import sys; print('tools', sys.argv[1:])")
    write(world.root / 'eval.py', EVAL)
    return world.run('quickstart.sh', *args, **environment)


def test_quickstart_draws_trains_and_evaluates(world):
    result = quickstart(world, '--set', 'epochs=1',
                        dataset='pascal', method='supervised', exp='x', split='y', config='z')
    assert result.status == 0, result.err
    assert "tools ['shapes']" in result.out
    assert result.option('--save-path') == 'exp/shapes/DSSN/resnet18/20'
    assert result.option('--method') == 'DSSN'
    assert result.option('--config') == 'configs/shapes.yaml'
    assert result.train['args'][-2:] == ['--set', 'epochs=1']
    run = 'exp/shapes/DSSN/resnet18/20'
    student, teacher = [line for line in result.out.splitlines() if line.startswith('eval ')]
    assert run + '/best.pth' in student and run + '/eval_student.json' in student
    assert run + '/pictures' in student
    assert run + '/t_best.pth' in teacher and run + '/eval_teacher.json' in teacher
    assert 'teacher' in teacher
    words = result.out.splitlines()[-1].split()
    assert ' '.join(words[:-2]) == (
        'quickstart: student mIoU 70.26, teacher mIoU 71.50 on 60 images in')
    assert words[-2].isdigit() and words[-1] == 's'


def test_quickstart_takes_another_port_and_stops_at_a_failure(world):
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(('', 29500))
            server.listen(1)
        except OSError:
            pass  # in use already
        result = quickstart(world, STATUS='3')
    assert result.status == 3
    assert int(result.option('--port')) > 29500
    assert 'eval' not in result.out.split('last line')[1]
    result = quickstart(world, EVAL_STATUS='4')
    assert result.status == 4
    assert 'mIoU' not in result.out


def test_quickstart_waits_for_a_training_that_ctrl_c_stops(world):
    write(world.root / 'dssn' / '__init__.py', '')
    write(world.root / 'dssn' / '__main__.py', '')
    process = world.start('quickstart.sh', 'sleep')
    for line in process.stdout:
        if line == 'ready\n':
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=300) == 128 + signal.SIGINT
    assert process.communicate()[0].startswith('got signal 2\n')


@pytest.mark.skipif(shutil.which('shellcheck') is None, reason='shellcheck is not installed')
def test_shellcheck_finds_nothing():
    files = [str(path.relative_to(ROOT)) for path in SCRIPTS]
    result = subprocess.run(['shellcheck', '-x', '-S', 'warning'] + files, cwd=str(ROOT),
                            stdout=subprocess.PIPE)
    assert result.returncode == 0, result.stdout.decode()
