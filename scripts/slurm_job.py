"""The programs that Slurm runs: the batch job, and each training process.

    python scripts/slurm_job.py COMMAND...             the batch job, which may requeue itself
    python scripts/slurm_job.py --process COMMAND...   a training process, started by srun
"""
import os
import re
import signal
import subprocess
import sys

from logged import on_signal


def batch(command):
    """Train, and requeue the job if training had to stop before its end.

    That is so after SIGUSR1, which Slurm sends before the time limit, and after a pre-emption. A
    pre-emption comes as SIGTERM, which a person may send too. It is recognised by the job's record.
    """
    job = os.environ['SLURM_JOB_ID']
    report('job {} on {}, restart {}'.format(
        job, os.environ['SLURM_JOB_NODELIST'], os.environ.get('SLURM_RESTART_COUNT', '0')))
    before = saved(command)
    status = train(command)
    record = record_of(job)
    if status == 0 or record.get('JobState') != 'RUNNING':
        return status  # finished, cancelled, requeued, or out of time
    if record.get('PreemptTime', 'None') == 'None':
        if status != 128 + signal.SIGUSR1:
            return status
        if saved(command) == before:  # otherwise it could be requeued for ever
            report('nothing was saved since the job started, so it is not requeued; '
                   'SBATCH_SIGNAL=USR1@<seconds> sets how long before its time limit it stops')
            return status
    report('the job is requeued, and training will continue')
    answer = subprocess.run(['scontrol', 'requeue', job], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    if answer.returncode:
        said = answer.stdout.decode('utf-8', 'replace').strip()
        report(f'requeuing failed: {said}; the same command resumes the run')
    return status


def train(command):
    """Start the training processes with srun; returns their highest exit status."""
    # Ranks must come from Slurm, so remove variables of other launchers.
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        os.environ.pop(name, None)
    cpus = os.environ['SLURM_CPUS_PER_TASK']
    os.environ['OMP_NUM_THREADS'] = os.environ.get('OMP_NUM_THREADS') or cpus
    srun = subprocess.Popen(['srun', '--kill-on-bad-exit=1', '--cpus-per-task=' + cpus,
                             sys.executable, os.path.abspath(__file__), '--process'] + command)
    on_signal(signal.SIGUSR1, lambda number, frame: srun.send_signal(number))  # srun passes it on
    on_signal(signal.SIGTERM, lambda number, frame: None)  # srun gets it as well
    status = srun.wait()
    return status if status >= 0 else 128 - status


def process(command):
    """Run one training process; returns its exit status.

    srun returns the highest of all. So a process that was killed because another failed counts as
    1.
    """
    # Slurm sends signals to this process too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        on_signal(number, lambda number, frame: None)
    status = subprocess.call(command)
    if status == -signal.SIGTERM:
        return 1
    return status if status >= 0 else 128 - status


def saved(command):
    """{name: (inode, time)} of the checkpoints in the run's folder, to recognise new ones."""
    folder = command[len(command) - command[::-1].index('--save-path')]
    try:
        with os.scandir(folder) as entries:
            return {entry.name: (entry.inode(), entry.stat().st_mtime) for entry in entries
                    if entry.name.endswith('.pth')}
    except OSError:
        return {}


def record_of(job):
    """State and pre-emption time of a job, {name: value}; empty if Slurm does not answer."""
    found = subprocess.run(['scontrol', '--oneliner', 'show', 'job', job], stdout=subprocess.PIPE)
    return dict(re.findall(r'\b(JobState|PreemptTime)=(\S+)',
                           found.stdout.decode('utf-8', 'replace')))


def report(text):
    print('slurm: ' + text, flush=True)


if __name__ == '__main__':
    if sys.argv[1] == '--process':
        sys.exit(process(sys.argv[2:]))
    sys.exit(batch(sys.argv[1:]))
