"""Every module, on every stack: its syntax, and what it imports at the top."""
import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
import torch

import dssn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODULES = sorted(module.name for module in pkgutil.walk_packages(dssn.__path__, 'dssn.')
                 if not module.name.endswith('__main__'))
PROGRAMS = sorted(os.path.join(folder, name) for folder in ('.', 'scripts', 'tests')
                  for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith('.py'))


@pytest.mark.parametrize('name', MODULES)
def test_a_module_is_imported(name):
    importlib.import_module(name)


@pytest.mark.parametrize('path', PROGRAMS)
def test_a_program_compiles(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as file:
        compile(file.read(), path, 'exec')


def test_all_were_found():
    assert {'dssn.engine', 'dssn.methods.dssn', 'dssn.tools.data.prepare.camvid'} <= set(MODULES)
    assert {'./train.py', './eval.py', 'scripts/submit.py'} <= set(PROGRAMS)


STAND_IN = """
import importlib, sitecustomize, torch, torch.optim
torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1).step()
stands_in = torch._dynamo.utils
assert isinstance(stands_in, sitecustomize.StandIn)
answer = stands_in.get_optimize_ddp_mode()
module = importlib.import_module('torch._dynamo.utils')
assert not isinstance(module, sitecustomize.StandIn) and torch._dynamo.utils is module
assert answer == module.get_optimize_ddp_mode()
"""


def test_the_stand_in_for_dynamo_answers_as_the_module_does():
    """DistributedDataParallel acts on this answer (tests/fast_imports)."""
    with open(torch.nn.parallel.distributed.__file__, encoding='utf-8') as file:
        if 'get_optimize_ddp_mode' not in file.read():
            pytest.skip('this PyTorch does not ask')
    subprocess.run([sys.executable, '-c', STAND_IN], check=True, timeout=300)
