"""An MP4 file, written picture by picture with PyAV."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from dpseg.errors import OutputError
from dpseg.files import output_error
from dpseg.video.clip import av_library

_CLOCK = 60_000  # ticks a second: it divides the usual frame rates, and MPEG-4 has 16 bits for it
_CODECS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # 3 of 1 to 31, times FFmpeg's 118
}  # the better one first
_BT709 = 1  # H.273's number for the primaries, the curve and the matrix of HD video


class Movie:
    """A file without sound that is open for writing; H.264, or MPEG-4 where FFmpeg has no x264.

    Use it in a `with` block: the file is whole after it, unless the block failed.
    """

    def __init__(self, path: Path, rate: Fraction, size: tuple[int, int]) -> None:
        """Begins the file.

        Args:
            path: where to.
            rate: frames a second, which players show; each picture's time is kept all the same.
            size: width and height of the pictures in pixels; odd ones lose their last column or row, as the format
                has to have it.

        Raises:
            OutputError: the file cannot be written.
            MissingExtraError: PyAV is missing.
        """
        self._library = library = av_library()
        self._path, self._last = path, -1
        self.size = max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2)
        codec = next(name for name in _CODECS if name in library.codecs_available)
        try:
            self._file = library.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
            self._stream = self._file.add_stream(codec, rate.limit_denominator(1001), options=_CODECS[codec])
        except (OSError, library.FFmpegError) as error:
            raise self._failed(error) from error
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, _CLOCK)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # as in television: 16 to 235

    def add(self, image: Image.Image, time: float) -> None:
        """Adds a picture.

        Args:
            image: RGB of the size.
            time: in seconds since the first one, later than the one before.

        Raises:
            OutputError: the disk is full.
        """
        from av.video.reformatter import ColorRange, Colorspace

        picture = self._library.VideoFrame.from_image(image.crop((0, 0, *self.size)))
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        self._last = max(self._last + 1, round(time * _CLOCK))
        picture.pts, picture.time_base = self._last, Fraction(1, _CLOCK)
        try:
            self._file.mux(self._stream.encode(picture))
        except (OSError, self._library.FFmpegError) as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the file.

        Raises:
            OutputError: the disk is full.
        """
        if kind is not None:
            with contextlib.suppress(OSError, self._library.FFmpegError):
                self._file.close()
            return
        try:
            self._file.mux(self._stream.encode(None))
            self._file.close()
        except (OSError, self._library.FFmpegError) as failure:
            raise self._failed(failure) from failure

    def _failed(self, error: Exception) -> OutputError:
        if isinstance(error, OSError):
            return output_error(self._path, error)
        return OutputError(f"{self._path}: the video cannot be written ({error}); choose another folder")
