"""Work on many files in several processes. All end if one is killed, and after Ctrl-C."""
import collections
import contextlib
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dssn.errors import UserError

CHUNK = 8  # items that a process takes at a time


def in_processes(work, items, workers):
    """Yield work(item) for each item, in order.

    Args:
        work: a function that pickle can carry. items: a list. workers: number of processes; with 0
            or 1 this process does the work.

    Raises:
        UserError: a process was killed. Errors of `work` are raised, too.
    """
    if workers < 2:
        yield from map(work, items)
        return
    # Processes are spawned, not forked: threads of this process (progress bar, PyTorch) would not
    # survive a fork.
    context = multiprocessing.get_context('spawn')
    # A value without a lock: a killed process cannot leave it locked.
    stop = context.RawValue('b', 0)
    with ProcessPoolExecutor(workers, context, initializer=set_stop_flag, initargs=(stop,)) as pool:
        waiting = collections.deque()
        try:
            for start in range(0, len(items), CHUNK):
                # `submit` may start a process, which must not receive Ctrl-C.
                with delayed_interrupts():
                    waiting.append(pool.submit(work_on, work, items[start:start + CHUNK]))
                # Submit only as much as keeps all processes busy, so that results do not pile up.
                if len(waiting) > 4 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError('one of the processes was killed, perhaps because it used too much '
                            'memory; use fewer --workers (1 works in one process)') from None
        finally:
            # After an error the remaining work is not needed. It is not cancelled: up to Python
            # 3.10 the executor hangs if all waiting work is cancelled and no process is working.
            stop.value = 1


def set_stop_flag(stop):
    """Keep the flag that ends all work. Runs in each worker process when it starts."""
    work_on.stop = stop


def work_on(work, items):
    """[work(item) for each item], shorter if the stop flag is set meanwhile."""
    results = []
    for item in items:
        if work_on.stop.value:
            break
        results.append(work(item))
    return results


@contextlib.contextmanager
def delayed_interrupts():
    """Delay Ctrl-C to the end of the block. Processes started in it never receive it.

    A process inherits the blocked signals of its parent when it starts.
    """
    caught = []
    handler = signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    mask = getattr(signal, 'pthread_sigmask', None)  # Windows has none
    blocked = mask and mask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        if mask:
            mask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        if caught and callable(handler):
            handler(*caught[0])
