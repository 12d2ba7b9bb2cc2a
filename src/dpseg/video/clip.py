"""A video file, read frame by frame with PyAV: upright RGB pictures and their times, and what was damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dpseg.errors import ImageError, MissingExtraError

if TYPE_CHECKING:
    import av
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"),
)
"""File name endings, in lower case, by which videos are told from photos."""

_USUAL_RATE = Fraction(25)  # frames a second of a file that does not say it
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}  # degrees counterclockwise, as FFmpeg reads a display matrix and as Pillow turns


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture of a video.

    Attributes:
        number: from 0 on.
        time: seconds since the first one.
        image: RGB, the right way up; all frames of a clip have the size of the first.
    """

    number: int
    time: float
    image: Image.Image


class Clip:
    """The first video stream of an open file.

    Attributes:
        path: the file.
        rate: frames a second, on average.
        expected: so many frames there should be; 0: the file does not say.
    """

    def __init__(self, path: Path, container: av.container.InputContainer, stream: VideoStream) -> None:
        """Takes an open file; `open_clip` opens one."""
        self.path = path
        self._container, self._stream = container, stream
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or _USUAL_RATE)
        self._length = self._said_length()
        self.expected = stream.frames or round((self._length or 0) * self.rate)
        self._damaged: list[float] = []  # seconds at which something could not be decoded
        self._end = 0.0  # of the last frame, in seconds since the first

    def frames(self) -> Iterator[Frame]:
        """Yields the frames, once; what is damaged is passed over, as players do, and counted."""
        start, size = None, None
        for number, picture in enumerate(self._decoded()):
            time = float(number / self.rate) if picture.time is None else picture.time
            start = time if start is None else start
            image = _upright(picture)
            size = size or image.size
            if image.size != size:  # a few formats can change it half-way
                image = image.resize(size, Image.Resampling.BILINEAR)
            shown = picture.duration * picture.time_base if picture.duration and picture.time_base else 1 / self.rate
            self._end = max(self._end, time - start + float(shown))
            yield Frame(number, max(0.0, time - start), image)

    @property
    def problem(self) -> str | None:
        """What of the file could not be read, in one line; None: nothing that is known. Ask after the last frame."""
        read = f"read up to {self._end:.2f} s"
        if self._damaged:
            places = f"{len(self._damaged)} places, first" if len(self._damaged) > 1 else "one place,"
            return f"{self.path}: damaged in {places} after {self._damaged[0]:.2f} s; {read}"
        if self._length is not None and self._length - self._end > float(3 / self.rate) + 0.01 * self._length:
            return f"{self.path}: cut off, it should have {self._length:.2f} s; {read}"
        return None

    def _decoded(self) -> Iterator[VideoFrame]:
        from av import FFmpegError

        packets = self._container.demux(self._stream)
        while True:
            try:
                pictures = next(packets).decode()
            except (StopIteration, EOFError):
                return
            except FFmpegError:  # of one packet; or of the file, and then there is no next packet
                self._damaged.append(self._end)
                continue
            yield from pictures

    def _said_length(self) -> float | None:
        """Returns how long the file says that the video is, in seconds."""
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        if len(self._container.streams) == 1 and self._container.duration is not None:
            return self._container.duration / 1_000_000
        return None


@contextmanager
def open_clip(path: str | Path) -> Iterator[Clip]:
    """Opens a video file.

    Raises:
        ImageError: it cannot be read, or holds no video.
        MissingExtraError: PyAV is missing.
    """
    library = av_library()
    path = Path(path)
    try:
        container = library.open(os.path.abspath(path), metadata_errors="ignore")  # a bare "a:b.mp4" would be a URL
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the path") from error
    except library.FFmpegError as error:
        what = error.strerror or type(error).__name__
        raise ImageError(f"{path}: cannot be opened as a video ({what}); copy or save it again") from error
    with container:
        cover = library.stream.Disposition.attached_pic  # the picture of a song is a stream too
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise ImageError(f"{path}: holds no video stream; give a file with pictures in it")
        yield Clip(path, container, streams[0])


def av_library() -> Any:
    """Returns the module av.

    Raises:
        MissingExtraError: it is missing.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("videos need the package av; pip install 'dpseg[video]'") from error
    return av


def _upright(picture: VideoFrame) -> Image.Image:
    image: Image.Image = picture.to_image()  # type: ignore[no-untyped-call]
    turn = round(picture.rotation / 90) * 90 % 360
    return image.transpose(_TURNS[turn]) if turn else image
