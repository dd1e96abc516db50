"""docs/errors.md: mistakes that a user can make and the message that each gets, by making them.

    python -m tests.errors_page     writes the page anew

The cases are in `tests/error_cases.py`. Each runs in a folder of its own with a small data set, so
that messages show relative paths, and what a library says in its own words is put as `<...>`.
"""
import contextlib
import io
import os
import re
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, 'docs', 'errors.md')
HEAD = '''# Errors

What can go wrong with input, and what is then said. Every message is one line on stderr behind the
program's name, without a traceback, and the exit status is 1; a wrong command line gets status 2
and the usage too. Written by `python -m tests.errors_page`, which makes every mistake; a test does
the same and fails where this page is out of date. `<...>` stands for words of a library.

Input may come from strangers: no file runs code, and nothing is written but to the folders that
the command line names, or `save_path` in the config that it names: read a stranger's config, or
give `--save-path`. Links inside `data_root` are followed.
'''
# Words of libraries and of the system, which differ between releases.
FOREIGN = ((r'(not a readable checkpoint )\(.*?\)(?=; it may)', r'\1(<...>)'),
           (r'(cannot be read: )[A-Z]\w*(Error|Exception): .*?(?=; copy)', r'\1<...>'),
           (r'(is a |mode )I(?=[ )])', r'\1I;16'),  # Pillow's older name
           (r'(Known keys: accumulate), .*', r'\1, ...'))


def message_of(program, run, *arguments):
    """What a command says of a mistake: the last line on stderr, or the UserError it raises."""
    from dssn.errors import UserError
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, [program]  # argparse's name of the program
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(list(arguments))
        except UserError as error:
            return f'{program}: error: {error}'
        except SystemExit as end:
            status = end.code
        finally:
            sys.argv = before
    if not status:
        raise AssertionError(f'{program} {" ".join(arguments)} found nothing wrong')
    return err.getvalue().strip().split('\n')[-1]


def messages():
    """[(section, mistake, command, message)] of all cases."""
    from tests.error_cases import CASES, make_world
    found, here = [], os.getcwd()
    for section, mistake, function in CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                make_world()
                program, arguments, message = function()
            finally:
                os.chdir(here)
            if os.path.realpath(folder) in message or folder in message:
                raise AssertionError(f'{mistake}: the message shows a temporary folder: {message}')
        for pattern, replacement in FOREIGN:
            message = re.sub(pattern, replacement, message)
        found.append((section, mistake, ' '.join([program] + arguments), message))
    return found


def page(found):
    """The page's text."""
    lines, section = [HEAD], None
    for name, mistake, command, message in found:
        if name != section:
            lines.append(f'## {name}\n')
            section = name
        lines.append(f'**{mistake}**\n\n```\n$ {command}\n{message}\n```\n')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.path.insert(0, ROOT)
    text = page(messages())
    with open(PAGE, 'w', encoding='utf-8') as file:
        file.write(text)
    print(f'{PAGE}: written')
