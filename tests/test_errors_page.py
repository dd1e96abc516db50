"""docs/errors.md says what is said: every mistake is made, and its message compared with the page."""
import os
import re

import pytest

from tests.errors_page import PAGE, ROOT, messages, page

REMEDY = re.compile(
    r'\b(write|set|give|name|did you mean|must|take|choose|use|run|leave|get|make|convert|allowed|keep|'
    r'correct|copy|save|missing|known|remove|divide|subtract|resize|lower|quote|fewer|turned|download|'
    r'expected|build|drop)\b', re.IGNORECASE)


@pytest.fixture(scope='module')
def found():
    return messages()


def test_the_page_is_up_to_date(found):
    with open(PAGE, encoding='utf-8') as file:
        written = file.read()
    assert written == page(found), 'run `python -m tests.errors_page`'


def test_there_are_many_and_each_is_made_once(found):
    assert len(found) >= 100
    assert len({(section, mistake) for section, mistake, _, _ in found}) == len(found)


def test_every_message_is_one_line_that_says_what_to_do(found):
    for _, mistake, command, message in found:
        assert message.isprintable() and ROOT not in message and '/tmp' not in message, mistake
        start = re.match(r'(train|eval)\.py: error: |python -m dssn\.data( \w+)?: error: ', message)
        assert start, message
        assert REMEDY.search(message[start.end():]), message


def test_nothing_ran_and_the_page_is_linked():
    assert not os.path.exists('ran')
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        assert '(docs/errors.md)' in file.read()
