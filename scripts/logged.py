"""Run a command, copy its output to a log, and pass signals to the training processes:

    python scripts/logged.py LOG COMMAND...              the command is the training process
    python scripts/logged.py --launcher LOG COMMAND...   its children are the training processes

It works like `COMMAND 2>&1 | tee LOG`, but its exit status is that of the training. Ctrl-C, SIGTERM
and SIGUSR1 go to the training processes only: a launcher would kill them before they have saved,
and loader processes ignore these signals. A terminal that closes counts as SIGTERM.
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
# A launcher without children after this time is waiting for other machines.
PATIENCE = 5  # seconds


def main(log_path, command, has_launcher):
    # In its own session the command gets signals of the terminal only from this process.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)
    signals = []  # (number, time of arrival)
    for number in PASSED_ON:
        on_signal(number, lambda number, frame: signals.append((PASSED_ON[number], time.time())))
    outputs = [open(log_path, 'ab'), open(sys.stdout.fileno(), 'wb', closefd=False)]
    last_output = b''
    for chunk in read(child, lambda: pass_on(signals, child, has_launcher)):
        last_output = (last_output + chunk)[-65536:]
        write(outputs, chunk)
    status = child.wait()
    stopped = None
    if has_launcher and status:
        stopped = status_behind_launcher(last_output.decode('utf-8', 'replace'))
    if stopped:
        write(outputs, b"stopped by %s: exit status %d (the launcher's status differs)\n" % (
            signal.Signals(stopped - 128).name.encode(), stopped))
        return stopped
    return status if status >= 0 else 128 - status


def read(child, between):
    """Yield the output of a process and its children until all end; calls between() often."""
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
    """Send the signals to the training processes, once these exist."""
    while signals:
        number, since = signals[0]
        processes = children(child.pid) if has_launcher else [child.pid]
        if child.poll() is None and not processes:
            if time.time() - since < PATIENCE:
                return
            # All launchers handle SIGTERM, but not the other signals.
            processes, number = [child.pid], signal.SIGTERM
        for process in processes:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                pass  # the process has just ended
        del signals[0]


def children(parent):
    """The ids of a process's children."""
    if os.path.exists('/proc/self/stat'):
        found = []
        for process in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open(f'/proc/{process}/stat', errors='replace') as file:
                    # The name, in parentheses, may hold any character. State and parent follow it.
                    if int(file.read().rpartition(')')[2].split()[1]) == parent:
                        found.append(int(process))
            except OSError:
                pass  # the process has just ended
        return found
    table = subprocess.run(['ps', '-A', '-o', 'pid=', '-o', 'ppid='], stdout=subprocess.PIPE)
    words = table.stdout.split()
    return [int(process) for process, its_parent in zip(words[::2], words[1::2])
            if int(its_parent) == parent]


def status_behind_launcher(output):
    """128 + the number of the signal that stopped the training, or None for other failures.

    A launcher always fails with exit status 1. But its output names the exit status of the first
    process that failed: torchrun in its summary under "Root Cause", torch.distributed.launch in a
    CalledProcessError. After a second signal, that process may be one that lost its connection to
    the process that stopped at once. So the line of the latter counts first.
    """
    stopped = re.search(r'^(SIG\w+) again: stopped without saving$', output, re.MULTILINE)
    if stopped:
        return 128 + signal.Signals[stopped.group(1)]
    found = re.findall(
        r'(?:Root Cause.*?exitcode *:|CalledProcessError: .*? returned \S+ exit status) (-?\d+)'
        r'|CalledProcessError: .*? died with <Signals\.\w+: (\d+)>', output, re.DOTALL)
    if not found:
        return None
    status, number = found[-1]
    status = 128 + int(number) if number else int(status)
    status = status if status >= 0 else 128 - status
    return status if status - 128 in PASSED_ON.values() else None


def on_signal(number, handler):
    """Set a handler, unless the signal is ignored, as under nohup."""
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, handler)


if __name__ == '__main__':
    arguments = sys.argv[1:]
    launcher = arguments[0] == '--launcher'
    sys.exit(main(arguments[launcher], arguments[launcher + 1:], launcher))
