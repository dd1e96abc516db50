"""Memory in evaluation: measured, estimated, and explained in one line when it has run out."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dssn import engine
from dssn.distributed import World
from dssn.errors import UserError
from dssn.inference import evaluation, memory
from dssn.inference.memory import Estimate, explained_memory, free_memory, peak_growth

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
linux = pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='Linux')


@linux
def test_the_growth_of_the_peak():
    found = peak_growth(lambda: np.ones(80 << 20, np.uint8))
    assert 75 << 20 < found < 90 << 20  # the system counts in groups of pages
    # An earlier, higher peak is not counted again.
    assert peak_growth(lambda: np.ones(20 << 20, np.uint8)) < 30 << 20


@linux
def test_memory_that_is_free_inside_the_process_counts():
    """Small blocks come from a heap, which keeps what was freed."""
    def work():
        return [np.ones(1 << 13, np.uint8) for _ in range(5000)]
    hole = work()
    last = np.ones(1 << 13, np.uint8)  # the heap cannot shrink below it
    del hole
    assert peak_growth(work) > 35 << 20
    assert last.all()


@linux
@pytest.mark.parametrize('constant, per_pixel', [
    (0, 800), pytest.param(120 << 20, 200, marks=pytest.mark.slow)])
def test_the_estimate_of_a_large_image(monkeypatch, constant, per_pixel):
    """Work that takes a known memory is estimated to within 15 %."""
    sides = []

    def predict(side):
        sides.append(side)
        np.ones(constant + per_pixel * side * side, np.uint8)
    need = constant + per_pixel * 8000 * 8000
    for free, refused in ((0.85 * need, True), (1.15 * need, False)):
        monkeypatch.setattr(memory, 'free_memory', lambda free=free: free)
        estimate = Estimate(predict)
        if refused:
            with pytest.raises(UserError, match='image a/b.png of 8000x8000 pixels: about'):
                estimate.check('a/b.png', (8000, 8000), 'remedies')
        else:
            estimate.check('a/b.png', (8000, 8000), 'remedies')
    count = len(sides)
    estimate.check('c.png', (8001, 8000), '')  # estimated from the same measurement
    assert len(sides) == count


def test_small_images_and_unknown_memory_are_not_estimated(monkeypatch):
    def fail(side):
        raise AssertionError
    monkeypatch.setattr(memory, 'free_memory', lambda: 1)
    Estimate(fail).check('a.png', (2048, 2048), '')
    monkeypatch.setattr(memory, 'free_memory', lambda: None)
    Estimate(fail).check('a.png', (9000, 9000), '')


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {'proc/meminfo': 'MemTotal: 999 kB\nMemAvailable: 500 kB\nSwapFree: 100 kB\n'}


@pytest.mark.parametrize('files, expected', [
    ({}, None),
    (MACHINE, 600 * 1024),
    ({**MACHINE, 'proc/self/cgroup': '0::/my/job\n',
      'sys/fs/cgroup/my/job/memory.max': '400000\n',
      'sys/fs/cgroup/my/job/memory.current': '300000\n',
      'sys/fs/cgroup/my/job/memory.stat': 'anon 5\ninactive_file 7\n'}, 100007),
    ({**MACHINE, 'proc/self/cgroup': '0::/\n', 'sys/fs/cgroup/memory.max': 'max\n',
      'sys/fs/cgroup/memory.current': '300000\n', 'sys/fs/cgroup/memory.stat': ''}, 600 * 1024),
    ({**MACHINE, 'sys/fs/cgroup/memory/memory.limit_in_bytes': '400000\n',
      'sys/fs/cgroup/memory/memory.usage_in_bytes': '500000\n',
      'sys/fs/cgroup/memory/memory.stat': 'inactive_file 7\ntotal_inactive_file 100\n'}, 0)])
def test_free_memory(tmp_path, files, expected):
    write(tmp_path, files)
    assert free_memory(str(tmp_path)) == expected


@pytest.mark.parametrize('error', [
    RuntimeError('CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has ...'), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't allocate memory: "
                 'you tried to allocate 12884901888 bytes. Error code 12')])
def test_errors_of_memory_name_the_image(error):
    with pytest.raises(UserError, match='evaluate the image a.png of 30x20 pixels: .*; smaller'), \
            explained_memory('a.png', (20, 30), 'smaller'):
        raise error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match='shape'), explained_memory('a.png', (2, 3), ''):
        raise RuntimeError('shape mismatch')


@linux
def test_training_stops_before_a_large_image_and_keeps_its_steps(tiny_world, monkeypatch):
    world = tiny_world()
    monkeypatch.setattr(memory, 'LARGE', 40 * 30 - 1)
    monkeypatch.setattr(memory, 'free_memory', lambda: 1000)
    with pytest.raises(UserError) as error:
        engine.start(world.load(), World()).fit()
    text = str(error.value)
    assert 'evaluate the image images/val0.jpg of 40x30 pixels' in text
    assert '--set protocol=sliding_window' in text and 'training up to step 4 is saved' in text
    monkeypatch.undo()
    run = engine.start(world.load(), World())
    assert run.resumed and run.progress.step == 4
    run.fit()


@linux
@pytest.mark.one_stack  # old releases may crash instead
def test_a_memory_that_ends_while_predicting(tiny_world):
    """A real error of PyTorch, under a limit of the process: one line that names the image."""
    world = tiny_world(epochs=1)
    engine.start(world.load(), World()).fit()
    rng = np.random.default_rng(0)
    for name, size in (('images/val1.jpg', (2000, 2000, 3)), ('masks/val1.png', (2000, 2000))):
        Image.fromarray(rng.integers(0, 3, size, np.uint8)).save(os.path.join(world.root, name))
    code = ('import resource, runpy, sys\n'
            'from dssn.inference import evaluation\n'
            'made = evaluation.predictor\n'
            'def predictor(*args):\n'
            '    used = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status")\n'
            '                       if line.startswith("VmSize"))\n'
            '    resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20),) * 2)\n'
            '    return made(*args)\n'
            'evaluation.predictor = predictor\n'
            'sys.argv = ["eval.py", "--checkpoint", sys.argv[1]]\n'
            'runpy.run_path("eval.py", run_name="__main__")\n')
    found = subprocess.run([sys.executable, '-c', code,
                            os.path.join(world.save_path, 'latest.pth')], cwd=ROOT,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                           env=dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1',
                                    PYTHONWARNINGS='ignore'))
    assert found.returncode == 1 and 'Traceback' not in found.stderr, found.stderr
    assert 'evaluate the image images/val1.jpg of 2000x2000 pixels' in found.stderr


def test_what_saves_memory(tiny_world):
    cfg = tiny_world().load(protocol='sliding_window')
    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    assert evaluation.what_saves_memory(cfg, cpu) == \
        'these need less: smaller images (python -m dssn shrink)'
    text = evaluation.what_saves_memory(tiny_world().load(eval_batch_size=4), gpu)
    assert 'eval_batch_size=1' in text and 'eval_amp=bf16' in text and 'sliding_window' in text
