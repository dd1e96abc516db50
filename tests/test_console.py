"""Consoles that cannot print a class name or a path: escapes in their place, files in UTF-8."""
import json
import os
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMES = ['道路', '\U0001f600', 'Straße']
PRINTED = {'cp1252': ['\\u9053\\u8def', '\\U0001f600', 'Straße'],
           'ascii': ['\\u9053\\u8def', '\\U0001f600', 'Stra\\xdfe']}


def run(encoding, *arguments, status=0):
    """What a program printed on a console with this encoding: (standard output, errors)."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        timeout=300, env=dict(os.environ, PYTHONIOENCODING=encoding, PYTHONWARNINGS='ignore'))
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == status, err
    assert 'Traceback' not in err
    return out, err


@pytest.mark.parametrize('encoding', ['cp1252', pytest.param('ascii', marks=pytest.mark.slow)])
def test_programs_print_escapes_for_what_the_console_lacks(tiny_world, tmp_path, encoding):
    world = tiny_world(classes=NAMES, method='supervised', epochs=1, n_labeled=2)
    folder = str(tmp_path / 'läufe 道路')
    escaped = 'l\\xe4ufe \\u9053'
    shutil.move(world.root, folder)
    config = ['--config', world.config_path, '--set', f'data_root={folder}', f'save_path={folder}']

    out, _ = run(encoding, '-m', 'dssn', 'check', *config)
    assert all(name in out for name in PRINTED[encoding])

    if encoding != 'ascii':
        return  # what follows is the same for both
    out, _ = run(encoding, 'train.py', *config)
    assert escaped in out and all(name in out for name in PRINTED[encoding])
    with open(os.path.join(folder, 'train.log'), encoding='utf-8') as file:
        log = file.read()
    assert all(name in log for name in NAMES) and '\\u9053' not in log
    with open(os.path.join(folder, 'config.yaml'), encoding='utf-8') as file:
        assert '道路' in file.read()

    scores = os.path.join(folder, '\U0001f600.json')
    out, _ = run(encoding, 'eval.py', '--checkpoint', os.path.join(folder, 'best.pth'), '--json',
                 scores, '--save-dir', os.path.join(folder, 'pictures'))
    assert escaped in out and all(name in out for name in PRINTED[encoding])
    with open(scores, encoding='utf-8') as file:
        found = json.load(file)['scores']['student']['classes']
    assert [known['name'] for known in found] == NAMES
    with open(os.path.join(folder, 'pictures', 'index.html'), encoding='utf-8') as file:
        assert '道路' in file.read()

    out, _ = run(encoding, '-m', 'dssn', 'report', folder)
    assert 'supervised' in out
    _, err = run(encoding, '-m', 'dssn', 'report', os.path.join(folder, '\U0001f600'), status=1)
    assert '\\U0001f600' in err and len(err.splitlines()) == 1
    _, err = run(encoding, 'train.py', '--config', os.path.join(folder, '道.yaml'), status=1)
    assert '\\u9053.yaml: no such config file' in err and len(err.splitlines()) == 1
