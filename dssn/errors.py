"""How a command ends before its end: a user's mistake, or a signal."""
import sys


class UserError(Exception):
    """A mistake in the input (config, list, image, mask, checkpoint, flag).

    Its message names the file, the key or line, the value, what is allowed and what to do. The
    entry scripts print it as one line without a traceback and exit with status 1.

    What a terminal would obey instead of showing it, names of strangers' files among it, is written
    as an escape: a line end as `\\n`.
    """

    def __init__(self, message):
        super().__init__(''.join(
            sign if sign.isprintable() else sign.encode('unicode_escape').decode()
            for sign in str(message)))


class Stopped(Exception):
    """A run that was asked to stop has saved where it stands.

    Attributes:
        number: of the signal; the process ends with the status 128 + number.
    """

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def exit_status(program, run, *args):
    """What run(*args) returns; 1 after a UserError, printed as one line, and 130 after Ctrl-C."""
    try:
        return run(*args)
    except UserError as error:
        print(f'{program}: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
