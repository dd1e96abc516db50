"""Shared fixtures: a world of a few small images, lists and a config that train in seconds."""
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys

# Several tests run at the same time, with trainings that they start: one thread each. PyTorch reads
# this when it is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402

# For the programs that tests start, see there.
os.environ['PYTHONPATH'] = os.pathsep.join(
    [os.path.join(os.path.dirname(os.path.abspath(__file__)), 'fast_imports')]
    + os.environ.get('PYTHONPATH', '').split(os.pathsep)).rstrip(os.pathsep)

# So that plain `pytest` finds the package too, not only `python -m pytest`.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Test files of what calls neither PyTorch nor NumPy nor Pillow in a way that differs by release:
# shell scripts, Slurm, lists, the order of runs, tables, pages and consoles. CI runs them on the
# current stack alone, and so the numbers of the published program (fidelity): they were made with
# its releases. The older stacks run all others, and import every module (test_imports.py).
ONE_STACK = ('append_log', 'console', 'error_cases', 'evidence', 'experiments', 'fidelity',
             'folders', 'gallery', 'gpu_check', 'groups', 'identity', 'lists', 'lock', 'platforms',
             'report', 'resume_evaluation', 'scripts', 'slurm', 'split', 'torture')
# Test files that one process runs whole: they share a Slurm cluster, large networks, or an exported
# file.
TOGETHER = ('dpt', 'export', 'fidelity', 'slurm')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests of `ONE_STACK` and `TOGETHER`, before `-m` chooses."""
    for item in items:
        name = item.path.stem[len('test_'):]
        if name in ONE_STACK:
            item.add_marker('one_stack')
        if name in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(name))
    # The longest first, so that no process is left with them at the end.
    items.sort(key=lambda item: item.path.stem[len('test_'):] not in TOGETHER + ('torture',))

CLASS_COLOURS = np.array([(40, 40, 40), (220, 50, 50), (50, 210, 60), (60, 70, 230),
                          (220, 210, 50), (60, 210, 210), (210, 60, 210)], np.uint8)


class World:
    """A tiny data set in a folder, with id lists and a config file that point at it."""

    def __init__(self, root, config_path, labeled, unlabeled, val, save_path):
        self.root, self.config_path, self.save_path = root, config_path, save_path
        self.labeled, self.unlabeled, self.val = labeled, unlabeled, val

    def load(self, **overrides):
        """The world's config; `overrides` win over its file."""
        from dssn.config import load
        return load(self.config_path, overrides)


def draw_pair(rng, size, nclass):
    """Noisy blocks, each class in its own colour: (image (H, W, 3), mask (H, W)), both uint8."""
    width, height = size
    cells = rng.integers(0, nclass, (3, 4))
    # Every class occurs, so that no image of the set is degenerate.
    cells.flat[rng.permutation(12)[:nclass]] = np.arange(nclass)
    mask = cells[np.arange(height)[:, None] * 3 // height, np.arange(width) * 4 // width]
    image = CLASS_COLOURS[mask] + rng.normal(0, 8, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """No launcher around the tests is taken for theirs."""
    for name in list(os.environ):
        if name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') or name.startswith('SLURM'):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def end_loaders():
    """A function that kills the loader processes of this process. It also runs after each test.

    A killed loader that is left behind would make PyTorch raise an error later, when any other
    process ends. `kill_loaders` takes PyTorch's handler of this signal away, so it is restored.
    """
    from dssn.data.workers import kill_loaders

    def end():
        before = hasattr(signal, 'SIGCHLD') and signal.getsignal(signal.SIGCHLD)
        kill_loaders()
        if before:
            signal.signal(signal.SIGCHLD, before)
    yield end
    end()


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch):
    """TensorBoard reads a folder's files by name: second, then the process's count of its files.

    Two runs of a test may share a second; counting from 0, file 10 does not come before file 9.
    """
    from tensorboard.summary.writer import event_file_writer
    monkeypatch.setattr(event_file_writer, '_global_uid', event_file_writer.AtomicCounter(0))


@pytest.fixture
def tiny_world(tmp_path):
    """Factory of `World`s; further keys go into the config file."""
    numbers = itertools.count()

    def make(n_labeled=5, n_unlabeled=9, n_val=3, size=(40, 30), nclass=3, **keys):
        base = tmp_path / f'world{next(numbers)}'
        root = base / 'data'
        for folder in ('images', 'masks'):
            (root / folder).mkdir(parents=True)
        rng = np.random.default_rng(7)
        lists = {}
        for part, count in (('labeled', n_labeled), ('unlabeled', n_unlabeled), ('val', n_val)):
            lines = []
            for i in range(count):
                # Every other image is portrait.
                image, mask = draw_pair(rng, size if i % 2 == 0 else size[::-1], nclass)
                names = [f'images/{part}{i}.jpg', f'masks/{part}{i}.png']
                Image.fromarray(image).save(str(root / names[0]), quality=95)
                # An unlabeled image has no mask file at all.
                if part == 'unlabeled':
                    names.pop()
                else:
                    Image.fromarray(mask).save(str(root / names[1]))
                lines.append(' '.join(names) + '\n')
            lists[part] = str(base / f'{part}.txt')
            with open(lists[part], 'w') as file:
                file.writelines(lines)
        save_path = str(base / 'run')
        content = dict(
            dataset='tiny', nclass=nclass, data_root=str(root), labeled_id_path=lists['labeled'],
            unlabeled_id_path=lists['unlabeled'], val_id_path=lists['val'], save_path=save_path,
            backbone='resnet10', base_channels=4, decoder_channels=8, crop_size=33, batch_size=2,
            workers=0, epochs=2, device='cpu')
        content.update(keys)
        config_path = str(base / 'config.yaml')
        with open(config_path, 'w') as file:
            yaml.safe_dump(content, file)
        return World(str(root), config_path, lists['labeled'], lists['unlabeled'], lists['val'],
                     save_path)
    return make


class Checkout:
    """A folder, with a space in its name, where the shell scripts train on a tiny world."""

    def __init__(self, root, world):
        source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.root, self.data = str(root), world.root
        self.run = str(root / 'exp/tiny/DSSN/drawn/all')
        for folder in ('configs', 'splits/tiny/all'):
            (root / folder).mkdir(parents=True)
        for name in ('scripts', 'dssn', 'train.py', 'requirements.txt'):
            (root / name).symlink_to(os.path.join(source, name))
        shutil.copy(world.config_path, str(root / 'configs/tiny.yaml'))
        shutil.copy(world.labeled, str(root / 'splits/tiny/all/labeled.txt'))
        shutil.copy(world.unlabeled, str(root / 'splits/tiny/all/unlabeled.txt'))
        launchers = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'NNODES',
                     'NODE_RANK')
        self.environment = {name: value for name, value in os.environ.items()
                            if name not in launchers and not name.startswith(('SLURM_', 'SBATCH_'))}
        self.environment.update(
            dataset='tiny', method='DSSN', exp='drawn', split='all', config='configs/tiny.yaml',
            VIRTUAL_ENV=sys.prefix, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
        self.processes = []

    def patch(self, rank, code):
        """Runs some code in one rank before train.py."""
        path = os.path.join(self.root, 'train.py')
        real = os.path.realpath(path)
        os.remove(path)
        with open(path, 'w') as file:
            file.write('import os, runpy, sys\n'
                       f'sys.path.insert(0, {os.path.dirname(real)!r})\n'
                       f'if os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == "{rank}":\n'
                       f'    {code}\n'
                       f'runpy.run_path({real!r}, run_name="__main__")\n')

    def start(self, script, *args, **environment):
        self.processes.append(subprocess.Popen(
            ['sh', os.path.join(self.root, 'scripts', script)] + [str(arg) for arg in args],
            cwd='/', env=dict(self.environment, **environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
            start_new_session=True,
            # A caller in the background ignores Ctrl-C, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)))
        return self.processes[-1]

    def logs(self):
        """The names of the scripts' logs: in order of machines, if there are several."""
        names = [name for name in os.listdir(self.run)
                 if name.endswith('.log') and name != 'train.log']
        return sorted(names, key=lambda name: name[len('20260131_235959'):])

    def read(self, name):
        with open(os.path.join(self.run, name)) as file:
            return file.read()


def descendants(process):
    """The ids of a process's children, their children and so on."""
    table = subprocess.run(['ps', '-A', '-o', 'pid=', '-o', 'ppid='], stdout=subprocess.PIPE,
                           check=True)
    parents = [[int(word) for word in line.split()] for line in table.stdout.splitlines()]
    found = [process]
    for one in found:
        found += [child for child, parent in parents if parent == one]
    return found[1:]


@pytest.fixture
def tiny_checkout(tiny_world, tmp_path):
    """Factory of a `Checkout`; further keys go into the config file. Its processes end with the
    test."""
    made = []

    def make(**keys):
        world = tiny_world(n_unlabeled=8, **keys)
        made.append(Checkout(tmp_path / 'a checkout', world))
        return made[-1]
    yield make
    for process in [process for checkout in made for process in checkout.processes]:
        if process.poll() is None:  # the training is in a session of its own
            for one in descendants(process.pid) + [process.pid]:
                try:
                    os.kill(one, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has ended by itself
        process.wait()
        process.stdout.close()


@pytest.fixture
def port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
