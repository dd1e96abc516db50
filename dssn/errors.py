"""Errors that end a command early: a mistake of the user, or a signal to stop."""
import os
import select
import sys


class UserError(Exception):
    """A mistake in the input (config, list, image, mask, checkpoint, flag).

    Its message names the file, the key or line, the value, the legal values and the remedy. The
    entry scripts print it as one line without a traceback and exit with status 1.

    Unprintable characters are replaced by escapes, such as `\\n` for a line end. Otherwise the name
    of an untrusted file could control the terminal.
    """

    def __init__(self, message):
        super().__init__(''.join(
            sign if sign.isprintable() else sign.encode('unicode_escape').decode()
            for sign in str(message)))


class Stopped(Exception):
    """A signal stopped the run after its state was saved.

    Attributes:
        number: the signal's number. The process exits with status 128 + number.
    """

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def escape_output():
    """Have the terminal show characters that its encoding lacks as escapes, such as `\\u9053`.

    Without it, `print` raises an error for them. Every program calls this first.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # tests and other programs may replace the streams
            stream.reconfigure(errors='backslashreplace')


def exit_status(program, run, *args):
    """Return run(*args), or the exit status of an early end.

    It is 1 after a UserError, which is printed as one line, 130 after Ctrl-C, and 141 if the reader
    of the output has ended, such as `head`.
    """
    try:
        status = run(*args)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f'{program}: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return status_without_reader()


def status_without_reader():
    """The exit status 141, if the reader of standard output has ended, such as `head`.

    To be called after a BrokenPipeError, which is raised again if its cause is another pipe.
    """
    if not hasattr(select, 'poll'):  # Windows
        raise
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        raise
    # Python flushes the output at its end, and would report the error there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
