"""The house has floors: a module imports from lower floors and its own, and never in a circle."""
import ast
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# From top to bottom. A name stands for the module, or the package with all that is in it; modules
# of one floor may import each other, but not in a circle.
FLOORS = [
    ['train', 'eval', 'dssn.__main__', 'dssn.tools'],
    ['dssn.engine'],
    ['dssn.run'],
    ['dssn.update', 'dssn.networks', 'dssn.inference'],
    ['dssn.config'],
    ['dssn.data', 'dssn.methods'],
    ['dssn.precision', 'dssn.keys'],
    ['dssn.models', 'dssn.distributed'],
    ['dssn.losses', 'dssn.pseudo_labels', 'dssn.mixing', 'dssn.ema', 'dssn.optim', 'dssn.batch',
     'dssn.labels', 'dssn.yaml_text', 'dssn.atomic', 'dssn.errors', 'dssn'],
]


def modules():
    """{module: path} of the entry scripts and the package."""
    found = {'train': 'train.py', 'eval': 'eval.py'}
    for folder, _, files in os.walk(os.path.join(ROOT, 'dssn')):
        for name in files:
            if name.endswith('.py'):
                path = os.path.relpath(os.path.join(folder, name), ROOT)
                module = path[:-3].replace(os.sep, '.')
                found[module[:-9] if module.endswith('.__init__') else module] = path
    return found


MODULES = modules()


def imported(path):
    """The modules of the package that a file imports, at its top or inside a function."""
    with open(os.path.join(ROOT, path), encoding='utf-8') as file:
        tree = ast.parse(file.read())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} line {node.lineno}: a relative import'
            for alias in node.names:
                inner = f'{node.module}.{alias.name}'
                found.add(inner if inner in MODULES else node.module)
    return {name for name in found if name.split('.')[0] in ('dssn', 'train', 'eval')}


IMPORTS = {module: imported(path) for module, path in MODULES.items()}


def floor(module):
    """The number of a module's floor, from the top: that of the longest name that holds it."""
    parts = module.split('.')
    for end in range(len(parts), 0, -1):
        for number, names in enumerate(FLOORS):
            if '.'.join(parts[:end]) in names:
                return number
    raise AssertionError(f'{module} has no floor: add it to FLOORS')


@pytest.mark.parametrize('module', sorted(MODULES))
def test_imports_go_down(module):
    assert module.split('.')[0] != 'dssn' or '.' not in module or any(
        '.'.join(module.split('.')[:2]) in names for names in FLOORS), f'{module} has no floor'
    for other in IMPORTS[module]:
        assert other in MODULES, f'{module} imports {other}, which is not there'
        assert floor(other) >= floor(module), f'{module} imports {other}, from a higher floor'


def test_no_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle: {' -> '.join(path[path.index(module):] + [module])}"
        if module in done:
            return
        path.append(module)
        for other in sorted(IMPORTS[module]):
            visit(other)
        done.add(path.pop())
    for module in sorted(MODULES):
        visit(module)


def test_importing_a_package_imports_none_of_its_modules_that_import_it():
    # `from dssn.methods import Terms` inside a method is a circle only if the package imports it.
    for package in ('dssn', 'dssn.run', 'dssn.data', 'dssn.data.check', 'dssn.inference',
                    'dssn.tools'):
        assert not IMPORTS[package], package
