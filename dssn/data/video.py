"""Frames of videos as images. They need PyAV, which no other module needs."""
import contextlib
import os
from typing import NamedTuple, Optional

import numpy as np
import torch

from dssn.data.files import FileProblem
from dssn.errors import UserError

ENDINGS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


class Frame(NamedTuple):
    """A frame of a video; it takes the place of a `Sample`."""
    image: str           # name of the frame, such as 'drive frame 00012.mp4'
    mask: Optional[str]  # None
    place: str           # as in `Sample`
    video: str           # path of the video, relative to the same folder as that of a sample
    number: int          # of the frame, from 0

    @property
    def file(self):
        """The file that holds the frame."""
        return self.video


def is_video(path):
    return path.lower().endswith(ENDINGS)


def frames_of(folder, name, place, every=1):
    """The `Frame`s of a video: the first, and then each `every`-th.

    Raises:
        UserError: PyAV is not installed, or the file is not a video.
    """
    path = os.path.join(folder, name)
    av = video_module(path, place)
    with explained(path, place, name), av.open(path) as container:
        # Packets are counted: the number of frames in the header may be missing, or wrong.
        count = sum(packet.size > 0 for packet in container.demux(video=0))
    if not count:
        raise unreadable(path, place, name, 'it holds no frames')
    stem, ending = os.path.splitext(name)
    return [Frame(f'{stem} frame {number:05d}{ending}', None, place, name, number)
            for number in range(0, count, every)]


def video_module(path, place):
    """The module av, for the video at `path`. Raises a UserError if it is missing or too old."""
    try:
        import av
    except ImportError:
        av = None
    if not hasattr(getattr(av, 'VideoFrame', None), 'rotation'):
        raise UserError(f'{place}: {path} is a video, and reading it needs PyAV: run pip install '
                        '--upgrade av')
    return av


@contextlib.contextmanager
def explained(path, place, name):
    """A context in which an error of PyAV is raised as a FileProblem."""
    av = video_module(path, place)
    try:
        yield
    except (av.error.FFmpegError, OSError, IndexError) as error:  # IndexError: no pictures in it
        text = 'it holds no pictures' if isinstance(error, IndexError) else error
        raise unreadable(path, place, name, text) from None


def unreadable(path, place, name, reason):
    return FileProblem(f'{place}: {path} cannot be read as a video: {reason}; convert it to MP4, '
                       'or export its frames as PNG', 'unreadable', name)


class VideoReader:
    """Decodes frames in the order of their numbers. Frames between them are skipped."""

    def __init__(self):
        self.path, self.frames, self.next = None, None, 0

    def read(self, folder, frame):
        """A `Frame` as players show it, (3, H, W) uint8.

        Raises:
            FileProblem: the file has no such frame, or is damaged.
        """
        path = os.path.join(folder, frame.video)
        with explained(path, frame.place, frame.image):
            if path != self.path or frame.number < self.next:
                container = video_module(path, frame.place).open(path)
                self.path, self.frames, self.next = path, container.decode(video=0), 0
            for picture in self.frames:
                self.next += 1
                if self.next > frame.number:
                    # The angle is counterclockwise, as in rot90.
                    pixels = np.rot90(picture.to_ndarray(format='rgb24'), picture.rotation // 90)
                    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        self.path = None
        raise unreadable(path, frame.place, frame.image, f'it ends before frame {frame.number}')
