"""Work on many files by several processes, ended by Ctrl-C and by the death of one of them."""
import collections
import contextlib
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dssn.errors import UserError

CHUNK = 8  # items that a process takes at once


def in_processes(work, items, workers):
    """Yield work(item) for each item, in order.

    Args:
        work: what pickle can carry. items: a list. workers: processes; 0 or 1: this one alone.

    Raises:
        UserError: a process was killed. And what `work` raises.
    """
    if workers < 2:
        yield from map(work, items)
        return
    # Started anew, not forked: threads of this process (progress bar, PyTorch) cannot be copied.
    context = multiprocessing.get_context('spawn')
    # Without a lock: a process that is killed cannot leave it locked.
    abandoned = context.RawValue('b', 0)
    with ProcessPoolExecutor(workers, context, initializer=share, initargs=(abandoned,)) as pool:
        waiting = collections.deque()
        try:
            for start in range(0, len(items), CHUNK):
                # A call starts a process while there are too few; Ctrl-C is for this one.
                with interrupts_later():
                    waiting.append(pool.submit(work_on, work, items[start:start + CHUNK]))
                # No more than what keeps all busy, so that results do not pile up.
                if len(waiting) > 4 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError('one of the processes was killed, perhaps for its memory; use fewer '
                            '--workers (1 works in one process)') from None
        finally:
            # After an error nobody waits for the rest. Not by cancelling it: up to Python 3.10 the
            # executor hangs where all that waits is cancelled and nothing is being worked on.
            abandoned.value = 1


def share(abandoned):
    """Keep the flag that ends all work, in a process that works."""
    work_on.abandoned = abandoned


def work_on(work, items):
    results = []
    for item in items:
        if work_on.abandoned.value:
            break
        results.append(work(item))
    return results


@contextlib.contextmanager
def interrupts_later():
    """Ctrl-C takes effect at the end; a process started meanwhile never sees it.

    A signal that is blocked when a process starts stays so in it, from its first moment.
    """
    caught = []
    handler = signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        if caught and callable(handler):
            handler(*caught[0])
