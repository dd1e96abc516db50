"""Memory that evaluation needs: estimated before a large image, explained when it has run out."""
import contextlib
import ctypes
import gc
import os

from dssn.errors import UserError

# Images of up to this many pixels are predicted without an estimate, which takes seconds.
LARGE = 2048 * 2048
PROBES = (384, 768)  # sides of the images from which memory is estimated


@contextlib.contextmanager
def explained_memory(image, size, remedies):
    """Raise a UserError that names the image if memory runs out while it is predicted.

    Args:
        image: path as its list names it. size: (height, width). remedies: text.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(
                text in str(error) for text in ('out of memory', "can't allocate memory",
                                                'not enough memory')):
            raise
        reason = ' '.join(str(error).split()).split('. ')[0] or 'no memory left'
        raise UserError(message(image, size, reason, remedies)) from None


def message(image, size, reason, remedies):
    return (f'memory does not suffice to evaluate the image {image} of {size[1]}x{size[0]} pixels: '
            f'{reason}; {remedies}')


class Estimate:
    """Estimates from small images how much memory a large one needs on a CPU.

    A CPU has no error to catch: the system kills the process. The peak memory of two small images
    gives the memory of a pixel.

    Args:
        predict: function side -> None that predicts an image of side x side pixels.
    """

    def __init__(self, predict):
        self.predict, self.line = predict, None

    def check(self, image, size, remedies):
        """Raise a UserError if the image, of (height, width) `size`, needs more than is free.

        Small images are not checked, and none where the system does not tell the memory.
        """
        pixels, free = size[0] * size[1], free_memory()
        if pixels <= LARGE or free is None:
            return
        if self.line is None:
            peaks = [peak_growth(lambda side=side: self.predict(side)) for side in PROBES]
            unknown = None in peaks
            self.line = (0, 0) if unknown else line_through([side * side for side in PROBES], peaks)
        need = self.line[0] + self.line[1] * pixels
        if need > free:
            raise UserError(message(image, size, f'about {need / 2 ** 30:.1f} GiB are needed and '
                                    f'{free / 2 ** 30:.1f} GiB are free', remedies))


def line_through(x, y):
    """(intercept, slope), neither negative, of the line through two points."""
    slope = max((y[1] - y[0]) / (x[1] - x[0]), 0)
    return max(y[0] - slope * x[0], 0), slope


def peak_growth(work):
    """Bytes by which work() raises this process's resident memory at most; None if unknown."""
    release_unused()
    try:
        with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
            file.write('5')  # the peak is counted from here on
        before = status('VmRSS')
        work()
        return max(status('VmHWM') - before, 0)
    except (OSError, StopIteration):
        return None


def release_unused():
    """Give memory that is free inside this process back to the system, as far as glibc can.

    Otherwise work would first fill it, and seem to need less than it does.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def status(field):
    """A field of this process's status, in bytes."""
    with open('/proc/self/status', encoding='ascii', errors='replace') as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(field + ':'))


def free_memory(root='/'):
    """Bytes that this process can still use; None if the system does not tell.

    They are the free memory and swap of the machine, or what a container's limit leaves.

    Args:
        root: where /proc and /sys are, for tests.
    """
    try:
        with open(os.path.join(root, 'proc/meminfo'), encoding='ascii') as file:
            sizes = {line.split(':')[0]: 1024 * int(line.split()[1]) for line in file}
        free = sizes['MemAvailable'] + sizes.get('SwapFree', 0)
    except (OSError, KeyError, ValueError, IndexError):
        return None
    # A limit is given in a container's own view at the top, or in the group of the process.
    groups = {''}
    with contextlib.suppress(OSError):
        with open(os.path.join(root, 'proc/self/cgroup'), encoding='utf-8') as file:
            groups.update(line.strip().split(':', 2)[2].strip('/') for line in file)
    for group in groups:
        for limit, used, cache in (
                ('sys/fs/cgroup/{}/memory.max', 'memory.current', 'inactive_file'),
                ('sys/fs/cgroup/memory/{}/memory.limit_in_bytes', 'memory.usage_in_bytes',
                 'total_inactive_file')):
            path = os.path.join(root, limit.format(group))
            # Without a limit the file holds `max`, or a number larger than any memory.
            with contextlib.suppress(OSError, ValueError):
                left = number(path) - number(os.path.join(os.path.dirname(path), used))
                with open(os.path.join(os.path.dirname(path), 'memory.stat'),
                          encoding='ascii') as file:
                    # The kernel drops cached files before it refuses memory.
                    left += sum(int(line.split()[1]) for line in file if line.split()[0] == cache)
                free = min(free, max(left, 0))
    return free


def number(path):
    with open(path, encoding='ascii') as file:
        return int(file.read())
