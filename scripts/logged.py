"""Runs a command with its output on the terminal and in a log, and passes signals to the training:

    python scripts/logged.py LOG COMMAND...              the command is the training
    python scripts/logged.py --launcher LOG COMMAND...   its children are

What `COMMAND 2>&1 | tee LOG` would do, but with the exit status of the training. Ctrl-C, SIGTERM
and SIGUSR1 go to the training's processes and to no other: a launcher would kill them before they
have saved, and their loaders' processes leave signals to them. A terminal that goes away is a
SIGTERM.
"""
import os
import re
import select
import signal
import subprocess
import sys
import time

PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM,
             signal.SIGUSR1: signal.SIGUSR1, signal.SIGHUP: signal.SIGTERM}
# A launcher that still has no children after this time waits for other machines.
PATIENCE = 5  # seconds


def main(log_path, command, has_launcher):
    # In a session of its own the terminal reaches the command through us alone.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)
    signals = []  # (number, when it came)
    for number in PASSED_ON:
        on_signal(number, lambda number, frame: signals.append((PASSED_ON[number], time.time())))
    outputs = [open(log_path, "ab"), open(sys.stdout.fileno(), "wb", closefd=False)]
    last_words = b""
    for chunk in read(child, lambda: pass_on(signals, child, has_launcher)):
        last_words = (last_words + chunk)[-65536:]
        write(outputs, chunk)
    status = child.wait()
    stopped = None
    if has_launcher and status:
        stopped = status_behind_launcher(last_words.decode("utf-8", "replace"))
    if stopped:
        write(outputs, b"stopped by %s: exit status %d, whatever the launcher says\n" % (
            signal.Signals(stopped - 128).name.encode(), stopped))
        return stopped
    return status if status >= 0 else 128 - status


def read(child, between):
    """What a process and its children write, to the end of the last; calls between() meanwhile."""
    while True:
        between()
        if select.select([child.stdout], [], [], 0.2)[0]:
            chunk = os.read(child.stdout.fileno(), 65536)
            if not chunk:
                return
            yield chunk


def write(outputs, chunk):
    for output in list(outputs):
        try:
            output.write(chunk)
            output.flush()
        except OSError:  # the terminal is gone, or the disk is full: training goes on
            outputs.remove(output)


def pass_on(signals, child, has_launcher):
    """Sends what has come to the training's processes, once they are there."""
    while signals:
        number, since = signals[0]
        processes = children(child.pid) if has_launcher else [child.pid]
        if child.poll() is None and not processes:
            if time.time() - since < PATIENCE:
                return
            processes, number = [child.pid], signal.SIGTERM  # the only one that all launchers know
        for process in processes:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                pass  # it has just ended
        del signals[0]


def children(parent):
    """The ids of a process's children."""
    if os.path.exists("/proc/self/stat"):
        found = []
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/stat" % process, errors="replace") as file:
                    # The name, in parentheses, may hold anything; state and parent follow it.
                    if int(file.read().rpartition(")")[2].split()[1]) == parent:
                        found.append(int(process))
            except OSError:
                pass  # it has just ended
        return found
    table = subprocess.run(["ps", "-A", "-o", "pid=", "-o", "ppid="], stdout=subprocess.PIPE)
    words = table.stdout.split()
    return [int(process) for process, its_parent in zip(words[::2], words[1::2])
            if int(its_parent) == parent]


def status_behind_launcher(words):
    """128 + the number of the signal that training stopped for, by a launcher's words, or None.

    A launcher has exit status 1 whatever its processes had, but it names that of the first that
    failed: torchrun in its summary under "Root Cause", torch.distributed.launch in a
    CalledProcessError.
    """
    found = re.findall(
        r"(?:Root Cause.*?exitcode *:|CalledProcessError: .*? returned \S+ exit status) (-?\d+)"
        r"|CalledProcessError: .*? died with <Signals\.\w+: (\d+)>", words, re.DOTALL)
    if not found:
        return None
    status, number = found[-1]
    status = 128 + int(number) if number else int(status)
    status = status if status >= 0 else 128 - status
    return status if status - 128 in PASSED_ON.values() else None


def on_signal(number, handler):
    """Sets a handler, except where the caller ignores the signal, as nohup does."""
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    launcher = arguments[0] == "--launcher"
    sys.exit(main(arguments[launcher], arguments[launcher + 1:], launcher))
