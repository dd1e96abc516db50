"""More than a hundred mistakes, each made in a small world: one line that tells what to do."""
import os
import re

import pytest

from tests.error_cases import CASES, make_world

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REMEDY = re.compile(
    r'\b(write|set|give|name|did you mean|must|take|choose|use|run|leave|get|make|convert|allowed|'
    r'keep|correct|copy|save|missing|known|remove|divide|subtract|resize|lower|quote|fewer|turned|'
    r'download|expected|export|build|drop)\b', re.IGNORECASE)


@pytest.mark.parametrize('function', [pytest.param(function, id=f'{section}: {mistake}')
                                      for section, mistake, function in CASES])
def test_a_mistake_gets_one_line_that_says_what_to_do(tmp_path, monkeypatch, function):
    monkeypatch.chdir(tmp_path)
    make_world()
    _, _, message = function()
    assert message.isprintable() and ROOT not in message and str(tmp_path) not in message
    start = re.match(r'(train|eval)\.py: error: |python -m dssn( \w+)*: error: ', message)
    assert start, message
    assert REMEDY.search(message[start.end():]), message
    assert not os.path.exists('ran')  # nothing in a file was run as code


def test_no_mistake_is_made_twice():
    assert len({(section, mistake) for section, mistake, _ in CASES}) == len(CASES) >= 100
