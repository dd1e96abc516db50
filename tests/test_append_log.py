"""Append-only text files: a full disk delays text, but no text is written in part."""
import os

import pytest

from dssn.run import append_log
from dssn.run.append_log import AppendLog


def test_lines_are_added(tmp_path):
    path = str(tmp_path / 'log')
    for text in ('one\n', 'zwei \u00e4\n'):
        assert AppendLog(path).write(text) is None
    with open(path, encoding='utf-8') as file:
        assert file.read() == 'one\nzwei \u00e4\n'


def test_what_cannot_be_written_waits_whole_and_in_order(tmp_path, monkeypatch):
    path = str(tmp_path / 'log')
    log = AppendLog(path)
    log.write('one\n')

    class Full:
        """A file on a disk with room for two more bytes."""

        def __init__(self, *args):
            self.file = open(*args)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[:2])
            self.file.flush()
            raise OSError(28, 'No space left on device')
    monkeypatch.setattr(append_log, 'open', Full, raising=False)
    assert log.write('two\n').errno == 28
    assert log.write('three\n').errno == 28
    assert (tmp_path / 'log').read_text() == 'one\ntw'
    monkeypatch.undo()
    assert log.write('four\n') is None
    assert (tmp_path / 'log').read_text() == 'one\ntwo\nthree\nfour\n'
    assert log.size == os.path.getsize(path)


@pytest.mark.parametrize('size, expected', [
    (0, 'undone: a\nundone: b\n'), (2, 'a\nundone: b\n'), (4, 'a\nb\n'), (9, 'a\nb\n')])
def test_lines_that_come_again_are_marked(tmp_path, size, expected):
    path = tmp_path / 'log'
    path.write_text('a\nb\n')
    log = AppendLog(str(path))
    log.undo(size)
    assert path.read_text() == expected
    log.write('c\n')
    assert path.read_text() == expected + 'c\n'
