"""Submits a batch job and waits for it, with its log on the terminal: python scripts/submit.py LOG SBATCH...

SBATCH is the command, with --wait and --parsable; LOG is the job's output file. The exit status is
sbatch's, which is that of the job. Ctrl-C and SIGTERM cancel the job, a second one does not wait for
its end. A terminal that goes away leaves the job running.
"""
import os
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
    if job:
        show(b"job: %s (Ctrl-C cancels it)\n" % job.encode())
        wait(sbatch, log_path, ["scancel"] + ["--clusters=" + cluster] * bool(cluster) + [job], signals)
    else:  # refused: sbatch has said why
        sbatch.wait()
        os.remove(log_path)
    if signals:
        return 128 + signals[0]
    return sbatch.returncode if sbatch.returncode >= 0 else 128 - sbatch.returncode


def wait(sbatch, log_path, cancel, signals):
    """Shows what the job writes until it has ended."""
    shown, cancelled, ended = 0, False, False
    while not ended and len(signals) < 2:
        time.sleep(0.2)
        ended = sbatch.poll() is not None
        if signals and not cancelled and not ended:
            show(b"cancelling the job: %s\n" % " ".join(cancel).encode())
            cancelled = True
            subprocess.call(cancel)
        # Opened anew each time, since only then NFS looks at what another machine has written.
        with open(log_path, "rb") as file:
            file.seek(shown)
            written = file.read()
        shown += len(written)
        show(written)


def show(written):
    try:
        sys.stdout.buffer.write(written)
        sys.stdout.flush()
    except OSError:  # the terminal is gone: the job goes on, and so does the wait for its status
        sys.stdout = open(os.devnull, "w")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
