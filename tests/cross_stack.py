"""Checkpoints across environments: saved by one PyTorch, resumed and finished by another.

    python -m tests.cross_stack .venv/bin/python .venv181/bin/python

Each interpreter trains a little and is stopped in the midst of an epoch; each of them then goes on
from the state of each, to the end, and reads the weights of the other's best checkpoint. Prints the
matrix, rows save and columns load; the exit status is 0 if every pair works.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from tests.torture import Training, step_of, wait_for

LOADS = """
import sys, torch
from dssn.models.weights import CHECKSUM, checksum, read_torch_file
content = read_torch_file(sys.argv[1])
print(torch.__version__, checksum(content))
if torch.__version__ >= '2.':
    plain = torch.load(sys.argv[1], weights_only=True)
    plain.pop(CHECKSUM)
    assert checksum(plain) == checksum(content)
"""


def loaded(python, path):
    """(PyTorch's version, checksum of the content) as an interpreter reads a checkpoint."""
    return subprocess.run([python, '-c', LOADS, path], check=True, stdout=subprocess.PIPE,
                          cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                          universal_newlines=True).stdout.split()


def matrix(pythons, work):
    """{(saver, loader): 'ok' or what went wrong}, by PyTorch's versions."""
    found, versions = {}, []
    for number, saver in enumerate(pythons):
        training = Training(os.path.join(work, str(number)), python=saver)
        folder = os.path.join(training.work, 'run')
        process = training.start(folder)
        wait_for(process, lambda folder=folder: step_of(folder) >= 8)
        process.send_signal(signal.SIGTERM)
        process.wait()
        latest = os.path.join(folder, 'latest.pth')
        version, checksum = loaded(saver, latest)
        versions.append(version)
        for loader in pythons:
            training.python = loader
            again = folder + '-again'
            shutil.copytree(folder, again)
            try:
                other, same = loaded(loader, latest)
                assert same == checksum, 'another content'
                # The config names the folder that is resumed.
                shutil.rmtree(folder)
                shutil.copytree(again, folder)
                training.finish(folder)
                loaded(saver, os.path.join(folder, 'best.pth'))
                said = training.said()
                warned = 'saved by PyTorch' in said
                assert 'resuming' in said and warned == (other != version), said
                found[version, other] = 'ok'
            except (AssertionError, RuntimeError, subprocess.CalledProcessError) as error:
                found[version, loader] = str(error)
            shutil.rmtree(folder)
            os.rename(again, folder)
    return found


def main(pythons):
    with tempfile.TemporaryDirectory(prefix='stacks ') as work:
        found = matrix([os.path.abspath(python) for python in pythons], work)
    for (saver, loader), outcome in found.items():
        print(f'saved by {saver:<14} loaded by {loader:<14} {outcome}')
    return int(any(outcome != 'ok' for outcome in found.values()))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
