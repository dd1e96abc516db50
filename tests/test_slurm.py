"""scripts/slurm_train.sh with a real Slurm, which the tests start on this machine and stop."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from slurm_cluster import PARTITION, URGENT, CannotStart, Cluster

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = [pytest.mark.skipif(os.name != 'posix', reason='shell scripts'), pytest.mark.slow]


@pytest.fixture(scope='module')
def cluster():
    try:
        cluster = Cluster().__enter__()
    except CannotStart as error:
        pytest.skip(f'Slurm: {error}')
    yield cluster
    cluster.__exit__()


@pytest.fixture
def submit(cluster, tiny_checkout, port):
    """Starts slurm_train.sh on a tiny world: (checkout, process)."""
    def start(num_gpu=2, patch=None, keys=(), **environment):
        checkout = tiny_checkout(**dict(dict(epochs=1), **dict(keys)))
        checkout.environment.update(SLURM_CONF=cluster.environment['SLURM_CONF'],
                                    PATH=cluster.environment['PATH'], gres='', cpus_per_task='1')
        if patch:
            checkout.patch(*patch)
        return checkout, checkout.start('slurm_train.sh', num_gpu, port, PARTITION, **environment)
    return start


def finish(process):
    """(exit status, lines of output)"""
    output = process.communicate(timeout=300)[0]
    print(output)  # whole, where a test fails
    return process.returncode, output.splitlines()


def job_of(process):
    """The number of the job that a process has submitted."""
    for line in process.stdout:
        if line.startswith('job: '):
            return line.split()[1]
    raise AssertionError('no job')


def wait_for(condition):
    end = time.time() + 300
    while not condition():
        assert time.time() < end
        time.sleep(0.1)


def read(checkout):
    log, = checkout.logs()
    return checkout.read(log)


@pytest.mark.parametrize('nodes', ['1', '2'])
def test_two_processes_train_as_a_batch_job(submit, nodes):
    # A stale launcher's variables do not count.
    checkout, process = submit(nodes=nodes, RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')
    status, output = finish(process)
    assert status == 0, output
    log = read(checkout).splitlines()
    assert output == ['log: exp/tiny/DSSN/drawn/all/' + checkout.logs()[0], output[1]] + log
    assert output[1].startswith('job: ')
    names = {'1': '127.0.0.1', '2': '127.0.0.[1-2]'}[nodes]
    assert log[0] == f'slurm: job {output[1].split()[1]} on {names}, restart 0'
    assert sum(line.startswith('labeled list: ') for line in log) == 1  # one process writes
    evaluation, summary = [json.loads(line) for line in checkout.read('metrics.jsonl').splitlines()]
    assert (evaluation['processes'], summary['kind']) == (2, 'summary')


@pytest.mark.parametrize('code, expected, words', [
    ('exec("raise errors.UserError(\'bad image\')")', 1, 'train.py: error: rank 1 of 2: bad image'),
    ('os._exit(9)', 9, 'task 1: Exited with exit code 9'),
])
def test_a_process_that_fails_ends_the_job_with_its_status(submit, code, expected, words):
    checkout, process = submit(patch=(
        1, 'from dssn import errors, update; update.seed_step = lambda *_: ' + code))
    status, output = finish(process)
    assert status == expected, output
    errors = [line for line in output if line.startswith('train.py: error: ')]
    if words.startswith('train.py: error: '):
        assert errors[0].startswith(words)
    else:  # srun says it, before or after the other has lost it
        assert any(words in line for line in output)
        assert all('lost another process' in line for line in errors)
    assert output[-1].endswith(' FAILED')
    assert not os.path.exists(os.path.join(checkout.run, 'metrics.jsonl'))


# In the first run rank 0 waits in front of a step until somebody has stopped it.
HOLD = (0, 'import time; from dssn import engine; go_on = engine.Run.between_steps; '
           'hold = lambda run: [open("held", "w").close()] + [time.sleep(0.05) '
           'for _ in range(2000) if not run.signals.number]; '
           'engine.Run.between_steps = lambda run: (run.progress.step == 6 and not '
           'int(os.environ.get("SLURM_RESTART_COUNT", 0)) and hold(run), go_on(run))[1]')


def hold(submit, num_gpu, **environment):
    """(checkout, process, job) of a training that waits in its second epoch."""
    keys = dict(epochs=2, batch_size=2 // num_gpu)
    checkout, process = submit(num_gpu, patch=HOLD, keys=keys, **environment)
    job = job_of(process)
    wait_for(lambda: os.path.exists(os.path.join(checkout.root, 'held')))
    return checkout, process, job


def start_again(cluster, job):
    """Has a requeued job start without delay.

    Slurm holds it back for two minutes: in the second in which its credential was revoked, the node
    would refuse it. More than that second is not needed here.
    """
    wait_for(lambda: 'JobState=PENDING' in cluster.run('scontrol', 'show', 'job', job))
    wait_for(cluster.is_idle)
    time.sleep(2)
    cluster.run('scontrol', 'update', 'jobid=' + job, 'starttime=now')


def continued(checkout, process, stop):
    """Checks that a job has gone on from the step that it was stopped at; returns the steps saved
    then."""
    status, output = finish(process)
    assert status == 0, output
    log = read(checkout)
    assert (log.index('restart 0') < log.index(stop) < log.index('restart 1')
            < log.index('resuming '))
    saved = log[log.index('latest.pth: '):].split()[1]
    records = [json.loads(line) for line in checkout.read('metrics.jsonl').splitlines()]
    assert [(record['kind'], record['epoch']) for record in records] == [
        ('evaluation', 1), ('evaluation', 2), ('summary', 2)]
    # The log is shown to its end (the first lines were read before).
    assert log.endswith('\n'.join(output) + '\n')
    assert any(line.endswith(', restart 1') for line in output)
    return saved


def test_a_job_that_is_requeued_by_hand_continues(cluster, submit):
    checkout, process, job = hold(submit, 1)
    assert cluster.run('scontrol', 'requeue', job) == ''  # which sends SIGTERM, and SIGKILL later
    start_again(cluster, job)
    continued(checkout, process, 'SIGTERM: stopping')
    assert 'the job is requeued' not in read(checkout)


@pytest.mark.parametrize('num_gpu', [1, 2])
def test_a_job_that_gets_sigusr1_requeues_itself_and_goes_on_from_its_step(
        cluster, submit, num_gpu):
    checkout, process, job = hold(submit, num_gpu)
    cluster.run('scancel', '--signal=USR1', job)
    start_again(cluster, job)
    # Two processes agree one step later.
    assert continued(checkout, process, 'stopped by SIGUSR1 after step') == str(5 + num_gpu)
    assert 'slurm: the job is requeued, and training will continue' in read(checkout).splitlines()


def test_a_job_that_is_preempted_requeues_itself_and_goes_on_from_its_step(cluster, submit):
    checkout, process, job = hold(submit, 2)
    urgent = cluster.run('sbatch', '--parsable', '--partition=' + URGENT, '--nodes=2',
                         '--exclusive', '--output=/dev/null', '--wrap=true').strip()
    wait_for(lambda: 'JobState=PENDING' in cluster.run('scontrol', 'show', 'job', job))
    wait_for(lambda: 'JobState=COMPLETED' in cluster.run('scontrol', 'show', 'job', urgent))
    start_again(cluster, job)
    assert continued(checkout, process, 'stopped by SIGTERM after step') == '7'
    assert 'slurm: the job is requeued, and training will continue' in read(checkout).splitlines()


def test_a_job_whose_time_is_up_requeues_itself_before(cluster, submit):
    started = time.time()
    checkout, process, job = hold(submit, 1)
    # Between one minute and two are left: Slurm sends the signal when it next looks, every half
    # minute.
    minutes = int((time.time() - started) // 60) + 2
    assert cluster.run('scontrol', 'update', 'jobid=' + job, f'timelimit={minutes}') == ''
    start_again(cluster, job)
    assert continued(checkout, process, 'stopped by SIGUSR1 after step') == '6'


def test_a_job_that_gets_sigterm_from_a_person_ends_saved_with_its_status(cluster, submit):
    checkout, process, job = hold(submit, 2)
    cluster.run('scancel', '--signal=TERM', job)
    status, output = finish(process)
    assert status == 128 + signal.SIGTERM
    assert output[-1] == f'job: {job} FAILED'
    assert any(line.startswith('stopped by SIGTERM after step 7') for line in output)


@pytest.mark.parametrize('queued', [True, False])
def test_ctrl_c_cancels_the_job(cluster, submit, queued):
    checkout, process = submit(num_gpu=1, **({'SBATCH_HOLD': '1'} if queued else {}))
    job = job_of(process)
    if not queued:
        assert process.stdout.readline().startswith('slurm: job ' + job)
    os.killpg(process.pid, signal.SIGINT)
    status, output = finish(process)
    assert status == 128 + signal.SIGINT, output
    assert 'cancelling the job: scancel ' + job in output
    # Slurm may still be cleaning up.
    wait_for(lambda: 'JobState=CANCELLED' in cluster.run('scontrol', 'show', 'job', job))


def test_a_job_that_others_cancel_has_not_succeeded(cluster, submit):
    checkout, process = submit(num_gpu=1, SBATCH_HOLD='1')
    job = job_of(process)
    cluster.run('scancel', job)
    status, output = finish(process)
    assert (status, output[-1]) == (1, f'job: {job} CANCELLED')


def test_a_refused_job_is_an_error_and_leaves_no_log(submit):
    checkout, process = submit(num_gpu=1, gres='gpu:1')
    status, output = finish(process)
    assert status == 1
    assert output[0].startswith('log: ')
    assert all(line.startswith('sbatch: error: ') for line in output[1:])
    assert checkout.logs() == []


def test_an_experiment_as_an_array_job(cluster, tiny_checkout):
    checkout = tiny_checkout(epochs=1)
    os.mkdir(os.path.join(checkout.root, 'experiments'))
    with open(os.path.join(checkout.root, 'experiments/mine.yaml'), 'w') as file:
        yaml.safe_dump({'config': 'configs/tiny.yaml', 'splits': ['all'], 'seeds': [1],
                        'variants': {'supervised': {'method': 'supervised'}, 'DSSN': {}}}, file)
    checkout.environment.update(SLURM_CONF=cluster.environment['SLURM_CONF'],
                                PATH=cluster.environment['PATH'])
    process = subprocess.Popen(
        [sys.executable, '-m', 'dssn', 'experiments', 'run', 'experiments/mine.yaml', '--slurm',
         PARTITION, '--wait'], cwd=checkout.root, env=checkout.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        start_new_session=True)
    checkout.processes.append(process)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    for method in ('supervised', 'DSSN'):
        folder = f'exp/tiny/{method}/mine-{method}-seed1/all/metrics.jsonl'
        with open(os.path.join(checkout.root, folder)) as file:
            assert [json.loads(line)['kind'] for line in file] == ['evaluation', 'summary']
