"""Every module, on every stack: its syntax, and what it imports at the top."""
import importlib
import os
import pkgutil

import pytest

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
