"""How a command ends before its end: a user's mistake, or a signal."""
import sys


class UserError(Exception):
    """A mistake in the input (config, list, image, mask, checkpoint, flag).

    Its message names the file, the key or line, the value, what is allowed and what to do. The
    entry scripts print it as one line without a traceback and exit with status 1.
    """


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
