"""Submit a batch job, wait for its end, and show its log on the terminal:

    python scripts/submit.py LOG SBATCH...

SBATCH is the sbatch command with --wait and --parsable. LOG is the job's output file. The exit
status is that of the job, and not 0 if the job was cancelled or ran out of time. Ctrl-C and SIGTERM
cancel the job; after a second signal the script no longer waits for the job's end. If the terminal
closes, the job keeps running.
"""
import os
import re
import signal
import subprocess
import sys
import time

from logged import on_signal


def main(log_path, command):
    signals = []
    # sbatch inherits that Ctrl-C is ignored, so it keeps waiting for the end of the job.
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    sbatch = subprocess.Popen(command, stdout=subprocess.PIPE)
    signal.signal(signal.SIGINT, ignored)
    for number in (signal.SIGINT, signal.SIGTERM):
        on_signal(number, lambda number, frame: signals.append(number))
    job, _, cluster = sbatch.stdout.readline().decode().strip().partition(';')
    clusters = ['--clusters=' + cluster] if cluster else []
    if job:
        show(f'job: {job} (Ctrl-C cancels it)\n')
        wait(sbatch, log_path, ['scancel'] + clusters + [job], signals)
    else:  # refused; sbatch has printed the reason
        sbatch.wait()
        os.remove(log_path)
    status = sbatch.returncode or 0  # None if sbatch has not ended
    if job and not signals:
        state = state_of(job, clusters, signals)
        if state != 'COMPLETED':
            show(f'job: {job} {state}\n')
            status = status or 1
    if signals:
        return 128 + signals[0]
    return status if status >= 0 else 128 - status


def wait(sbatch, log_path, cancel, signals):
    """Show the output of the job until it has ended."""
    shown, cancelled, ended = 0, False, False
    while not ended and len(signals) < 2:
        time.sleep(0.2)
        ended = sbatch.poll() is not None
        if signals and not cancelled and not ended:
            show('cancelling the job: {}\n'.format(' '.join(cancel)))
            cancelled = True
            subprocess.call(cancel)
        # Open the file again each time: otherwise NFS does not show the writes of another machine.
        with open(log_path, 'rb') as file:
            file.seek(shown)
            written = file.read()
        shown += len(written)
        show(written)


def state_of(job, clusters, signals, patience=600):
    """The final state of the job. sbatch --wait returns 0 also for a cancelled job.

    The state is not known while Slurm cleans up after the job. Wait at most `patience` seconds.
    """
    end = time.time() + patience
    while True:
        found = subprocess.run(['scontrol'] + clusters + ['--oneliner', 'show', 'job', job],
                               stdout=subprocess.PIPE)
        state = re.search(r'\bJobState=(\S+)', found.stdout.decode('utf-8', 'replace'))
        if not state:
            return 'ended in a state that scontrol does not know'
        if state.group(1) != 'COMPLETING' or signals or time.time() > end:
            return state.group(1)
        time.sleep(0.5)


def show(written):
    try:
        sys.stdout.buffer.write(written if isinstance(written, bytes) else written.encode())
        sys.stdout.flush()
    except OSError:  # the terminal is closed: keep waiting for the job's status
        sys.stdout = open(os.devnull, 'w')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], sys.argv[2:]))
