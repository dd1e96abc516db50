"""Submits a batch job and waits for it, with its log on the terminal: python scripts/submit.py LOG SBATCH...

SBATCH is the command, with --wait and --parsable; LOG is the job's output file. The exit status is
that of the job, and never 0 if it was cancelled or ran out of time. Ctrl-C and SIGTERM cancel the
job; a second one does not wait for its end. A terminal that goes away leaves the job running.
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
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # and sbatch inherits it: it is to wait for the end
    sbatch = subprocess.Popen(command, stdout=subprocess.PIPE)
    signal.signal(signal.SIGINT, ignored)
    for number in (signal.SIGINT, signal.SIGTERM):
        on_signal(number, lambda number, frame: signals.append(number))
    job, _, cluster = sbatch.stdout.readline().decode().strip().partition(";")
    clusters = ["--clusters=" + cluster] if cluster else []
    if job:
        show("job: %s (Ctrl-C cancels it)\n" % job)
        wait(sbatch, log_path, ["scancel"] + clusters + [job], signals)
    else:  # refused, and sbatch has said why
        sbatch.wait()
        os.remove(log_path)
    status = sbatch.returncode or 0  # it has none where we did not wait for it
    if job and not signals:
        state = state_of(job, clusters, signals)
        if state != "COMPLETED":
            show("job: %s %s\n" % (job, state))
            status = status or 1
    if signals:
        return 128 + signals[0]
    return status if status >= 0 else 128 - status


def wait(sbatch, log_path, cancel, signals):
    """Shows what the job writes until it has ended."""
    shown, cancelled, ended = 0, False, False
    while not ended and len(signals) < 2:
        time.sleep(0.2)
        ended = sbatch.poll() is not None
        if signals and not cancelled and not ended:
            show("cancelling the job: %s\n" % " ".join(cancel))
            cancelled = True
            subprocess.call(cancel)
        # Opened anew each time, since only then NFS looks at what another machine has written.
        with open(log_path, "rb") as file:
            file.seek(shown)
            written = file.read()
        shown += len(written)
        show(written)


def state_of(job, clusters, signals, patience=600):
    """How the job ended: sbatch --wait has 0 for one that was cancelled.

    Slurm does not tell while it cleans up behind the job; that is waited for `patience` seconds.
    """
    end = time.time() + patience
    while True:
        found = subprocess.run(["scontrol"] + clusters + ["--oneliner", "show", "job", job],
                               stdout=subprocess.PIPE)
        state = re.search(r"\bJobState=(\S+)", found.stdout.decode("utf-8", "replace"))
        if not state:
            return "ended in a state that scontrol does not know"
        if state.group(1) != "COMPLETING" or signals or time.time() > end:
            return state.group(1)
        time.sleep(0.5)


def show(written):
    try:
        sys.stdout.buffer.write(written if isinstance(written, bytes) else written.encode())
        sys.stdout.flush()
    except OSError:  # the terminal is gone: the job goes on, and so does the wait for its status
        sys.stdout = open(os.devnull, "w")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
