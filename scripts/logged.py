"""Runs a command with its output on the terminal and in a log: python scripts/logged.py LOG COMMAND...

What `COMMAND 2>&1 | tee LOG` would do, but with the exit status of the command, and signals reach it.
"""
import os
import signal
import subprocess
import sys


def main(log_path, command):
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    on_signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    on_signal(signal.SIGHUP, lambda number, frame: child.send_signal(number))
    on_signal(signal.SIGINT, lambda number, frame: None)  # Ctrl-C: the terminal has told the child too
    outputs = [open(log_path, "ab"), open(sys.stdout.fileno(), "wb", closefd=False)]
    for chunk in iter(lambda: os.read(child.stdout.fileno(), 65536), b""):
        for output in list(outputs):
            try:
                output.write(chunk)
                output.flush()
            except OSError:  # the terminal is gone, or the disk is full: training goes on
                outputs.remove(output)
    status = child.wait()
    return status if status >= 0 else 128 - status


def on_signal(number, handler):
    """Sets a handler, except where the caller ignores the signal, as nohup does."""
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
