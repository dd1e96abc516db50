"""Does to a small training what machines do to long ones, and compares its end with a quiet one's.

    python -m tests.torture --kills 50

Every fault is a row of the table at the end: how often it was tried, survived (the run ended, by
the same command, with the weights, scores and log of the undisturbed run, or a damaged file was
noticed and the state before it taken) and lost, which must be 0. What this machine does not let
be tried (small disks need root) is said. The exit status is 0 if nothing was lost.
"""
import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import torch
import yaml

from dssn.errors import UserError
from dssn.models.weights import read_torch_file
from dssn.run import checkpoint
from dssn.tools.data.shapes import render_dataset

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = ('latest.pth', 'best.pth', 't_best.pth')
STATE = ('model', 'teacher', 'optimizer', 'best', 'epoch', 'step', 'miou', 'skips', 'watch')
CLOCKS = ('seconds', 'peak_memory_mib')


class Training:
    """A small training by `train.py`, in folders under `work`: 4 labeled images, 12 unlabeled."""

    def __init__(self, work, processes=1, python=sys.executable):
        self.work, self.processes, self.starts = work, processes, 0
        self.python = python
        self.data, self.config = os.path.join(work, 'data'), os.path.join(work, 'config.yaml')
        render_dataset(self.data, n_train=16, n_val=4)
        with open(os.path.join(self.data, 'train.txt')) as file:
            lines = file.readlines()
        paths = {}
        for name, part in (('labeled', lines[:4]), ('unlabeled', lines[4:])):
            paths[name] = os.path.join(work, name + '.txt')
            with open(paths[name], 'w') as file:
                file.writelines(part)
        with open(self.config, 'w') as file:
            yaml.safe_dump(dict(
                dataset='shapes', nclass=7, data_root=self.data, labeled_id_path=paths['labeled'],
                unlabeled_id_path=paths['unlabeled'], backbone='resnet10', base_channels=4,
                decoder_channels=8, val_id_path=os.path.join(self.data, 'val.txt'), crop_size=65,
                batch_size=2 // processes, epochs=4 // processes, workers=0, save_every=1,
                log_every=4, gate=0.1, ratio=0.5, device='cpu'), file)

    def start(self, folder, *assignments, before=()):
        """A process of train.py, or of `before` that starts it; its output goes to a file."""
        self.starts += 1
        command = [self.python, '-u', os.path.join(ROOT, 'train.py')]
        if self.processes > 1:
            command = [self.python, '-u', '-m', 'torch.distributed.run' if has_run() else
                       'torch.distributed.launch', '--nproc_per_node', str(self.processes),
                       '--master_port', str(free_port())]
            command += ([] if has_run() else ['--use_env']) + [os.path.join(ROOT, 'train.py')]
        self.output = os.path.join(self.work, f'output{self.starts}.txt')
        with open(self.output, 'w') as file:
            return subprocess.Popen(
                list(before) + command + ['--config', self.config, '--save-path', folder]
                + [word for text in assignments for word in ('--set', text)],
                cwd=self.work, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                # A caller in the background ignores Ctrl-C, and its children would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                env=dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''))

    def said(self):
        with open(self.output) as file:
            return file.read()

    def finish(self, folder, *assignments):
        """Runs to the end, or raises what it printed."""
        if self.start(folder, *assignments).wait() != 0:
            raise RuntimeError(self.said())


def has_run():
    return os.path.exists(os.path.join(os.path.dirname(torch.__file__), 'distributed', 'run.py'))


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def kill(process):
    """Ends all of a training at once, as the power does."""
    from tests.conftest import descendants
    everyone = descendants(process.pid)  # a launcher may give its workers sessions of their own
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for one in everyone:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def wait_for(process, condition, seconds=120):
    """Whether the condition comes true while the process runs."""
    end = time.time() + seconds
    while process.poll() is None and time.time() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def step_of(folder):
    """The step of the state in a folder; 0 without one."""
    try:
        content, _, _ = checkpoint.newest(folder)
    except UserError:
        return 0
    return content['step'] if content else 0


# ---- what is compared

def unlike(a, b, place):
    """Places at which two values differ, to the bit."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, dict) and isinstance(b, dict):
        if list(a) != list(b):
            return [place]
        return [text for key in a for text in unlike(a[key], b[key], f'{place}.{key}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [place]
        return [text for i, (x, y) in enumerate(zip(a, b))
                for text in unlike(x, y, f'{place}.{i}')]
    return [] if a == b else [place]


def records(folder):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS}
                for line in file]


def log_lines(folder):
    """train.log without times, measurements and the lines about stops and faults."""
    with open(os.path.join(folder, 'train.log')) as file:
        lines = [re.sub(r'^[-0-9]+ [:0-9]+ ', '', line) for line in file]
    left_out = ('undone: ', 'resuming ', 'stopped by ', 'peak memory', 'warning: step ',
                'warning: TensorBoard', 'warning: ' + folder,
                'save_path: ', 'workers: ')
    return [re.sub(r'images_per_second \S+|in \d+ s', '', line) for line in lines
            if not line.startswith(left_out) and 'lock: left behind' not in line]


def differences(folder, reference):
    """Names of what is otherwise than in the undisturbed run."""
    found = []
    for name in FILES:
        a, b = [read_torch_file(os.path.join(f, name)) for f in (folder, reference)]
        for key in STATE:
            found += unlike(a.get(key), b.get(key), f'{name} {key}')
    if records(folder) != records(reference):
        found.append('metrics.jsonl')
    lines, expected = log_lines(folder), log_lines(reference)
    if lines != expected:
        other = [line for line in lines if line not in expected] + ['in another order']
        found.append(f'train.log: {other[0]!r}')
    return found


class Table:
    def __init__(self):
        self.rows, self.notes = {}, []

    def count(self, fault, problems):
        """Takes note of a trial; `problems` are what was lost, none if it was survived."""
        tried, lost = self.rows.get(fault, (0, 0))
        self.rows[fault] = tried + 1, lost + bool(problems)
        for problem in problems[:5]:
            self.notes.append(f'{fault}: {problem}')

    def text(self):
        lines = ['{:<44}{:>7}{:>10}{:>6}'.format('fault', 'tried', 'survived', 'lost')]
        lines += [f'{fault:<44}{tried:>7}{tried - lost:>10}{lost:>6}'
                  for fault, (tried, lost) in self.rows.items()]
        return '\n'.join(lines + self.notes)

    @property
    def lost(self):
        return sum(lost for _, lost in self.rows.values())


# ---- the faults

def kills(training, table, reference, whole, number, rng):
    """kill -9 at random moments, until a run has ended; as many runs as it takes.

    Args:
        whole: seconds of an undisturbed run. number: of kills.
    """
    done, runs = 0, 0
    while done < number:
        runs += 1
        folder = os.path.join(training.work, f'killed{runs}')
        while True:
            process = training.start(folder)
            try:
                # Much of a start is Python's own; a moment beyond the end lets the run end.
                status = process.wait(rng.uniform(0.3, 1.05) * whole if done < number else None)
            except subprocess.TimeoutExpired:
                kill(process)
                done += 1
                continue
            if status != 0:
                table.count('kill -9', [training.said()])
                return
            break
        problems = differences(folder, reference)
        for _ in range(done - table.rows.get('kill -9', (0, 0))[0]):
            table.count('kill -9', problems)
        shutil.rmtree(folder)


def signals(training, table, reference, rng):
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        folder = os.path.join(training.work, f'signal{int(number)}')
        process = training.start(folder)
        place = rng.randrange(1, 5)
        wait_for(process, lambda folder=folder, place=place: step_of(folder) >= place)
        process.send_signal(number)
        found = process.wait()
        problems = [] if found == status else [f'{number}: status {found}']
        training.finish(folder)
        table.count('SIGTERM, SIGINT, SIGUSR1', problems + differences(folder, reference))


def damage(training, table, places, rng):
    """Truncated and bit-flipped checkpoints at random places, each noticed or harmless."""
    folder = os.path.join(training.work, 'damaged')
    process = training.start(folder)
    wait_for(process, lambda: os.path.exists(os.path.join(folder, checkpoint.PREVIOUS)))
    process.send_signal(signal.SIGTERM)
    process.wait()
    whole = {}
    for name in (checkpoint.LATEST, checkpoint.PREVIOUS):
        with open(os.path.join(folder, name), 'rb') as file:
            whole[name] = file.read()
    latest, before = [read_torch_file(os.path.join(folder, name)) for name in whole]
    for kind in ('truncated latest.pth', 'flipped bit in latest.pth'):
        for _ in range(places):
            data = bytearray(whole[checkpoint.LATEST])
            place = rng.randrange(len(data))
            if kind.startswith('truncated'):
                data = data[:place]
            else:
                data[place] ^= 1 << rng.randrange(8)
            with open(os.path.join(folder, checkpoint.LATEST), 'wb') as file:
                file.write(data)
            try:
                content, path, warning = checkpoint.newest(folder)
                same = latest if warning is None else before
                problems = unlike(content, same, f'byte {place} of')
            except Exception as error:  # whatever it is, it was to be survived
                problems = [f'byte {place}: {error!r}']
            table.count(kind, problems)
            with open(os.path.join(folder, checkpoint.PREVIOUS), 'wb') as file:
                file.write(whole[checkpoint.PREVIOUS])


def away(training, table, reference):
    """The data folder disappears in mid-training, and comes back."""
    folder = os.path.join(training.work, 'away')
    process = training.start(folder)
    wait_for(process, lambda: step_of(folder) >= 3)
    os.rename(training.data, training.data + '.away')
    status = process.wait()
    os.rename(training.data + '.away', training.data)
    # The last images may all have been read before.
    problems = [] if status in (0, 1) and 'Traceback' not in training.said() else [training.said()]
    training.finish(folder)
    table.count('data folder away for a while', problems + differences(folder, reference))


def workers(training, table, reference):
    """Processes that load data are killed."""
    folder = os.path.join(training.work, 'workers')
    process = training.start(folder, 'workers=2')
    wait_for(process, lambda: step_of(folder) >= 2)
    listed = subprocess.run(['ps', '-A', '-o', 'pid=,ppid='], stdout=subprocess.PIPE,
                            universal_newlines=True).stdout
    children = [int(pid) for pid, parent in map(str.split, listed.splitlines())
                if int(parent) == process.pid]
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    status = process.wait()
    problems = [] if status in (0, 1) and 'Traceback' not in training.said() else [training.said()]
    training.finish(folder)
    table.count('killed loader processes', problems + differences(folder, reference))


def full_disk(training, table, reference):
    """A small disk that is full for a while in mid-training."""
    mount = os.path.join(training.work, 'disk')
    os.mkdir(mount)
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'none', mount],
                          stderr=subprocess.PIPE, universal_newlines=True)
    if made.returncode:
        table.notes.append('not tried: full disk: ' + made.stderr.strip())
        return
    ballast = os.path.join(mount, 'ballast')
    try:
        unwritable(training, table, reference, 'full disk for a while', os.path.join(mount, 'run'),
                   lambda: fill(ballast), lambda: os.remove(ballast))
    finally:
        subprocess.run(['umount', '-l', mount])


def fill(path):
    with open(path, 'wb', buffering=0) as file:
        try:
            while file.write(b'\0' * 4096):
                pass
        except OSError:
            pass


def read_only(training, table, reference):
    """A folder that cannot be written for a while; rights do not bind root, who gives them up."""
    before = []
    if os.geteuid() == 0:
        before = ['setpriv', '--bounding-set=-dac_override,-dac_read_search']
        try:
            subprocess.run(before + ['true'], check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            table.notes.append(f'not tried: read-only folder: {error}')
            return
    folder = os.path.join(training.work, 'read-only')
    unwritable(training, table, reference, 'read-only folder for a while', folder,
               lambda: os.chmod(folder, 0o555), lambda: os.chmod(folder, 0o755), before)


def unwritable(training, table, reference, fault, folder, begin, end, before=()):
    process = training.start(folder, before=before)
    wait_for(process, lambda: step_of(folder) >= 2)
    begin()
    wait_for(process, lambda: 'could not be saved' in training.said())
    end()
    status = process.wait()
    problems = [] if status == 0 else [training.said()]
    if 'could not be saved' not in training.said():
        problems.append('nothing failed: not the trial it should be')
    table.count(fault, problems or differences(folder, reference))


def torture(work, number, places, seed=0, processes=1, kills_only=False):
    """All faults, of one process; several processes are only killed. Returns the `Table`."""
    rng = random.Random(seed)
    table = Table()
    training = Training(work, processes)
    reference = os.path.join(work, 'reference')
    started = time.time()
    training.finish(reference)
    kills(training, table, reference, time.time() - started, number, rng)
    if processes == 1 and not kills_only:
        signals(training, table, reference, rng)
        damage(training, table, places, rng)
        away(training, table, reference)
        workers(training, table, reference)
        full_disk(training, table, reference)
        read_only(training, table, reference)
    return table


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--places', type=int, default=200, help='of damage in a checkpoint')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=1)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix='torture ') as work:
        table = torture(work, args.kills, args.places, args.seed, args.processes)
    print(table.text())
    return 1 if table.lost else 0


if __name__ == '__main__':
    sys.exit(main())
