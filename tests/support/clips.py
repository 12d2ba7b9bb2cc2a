"""Small clips with moving coloured squares, made with PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image

from support.pictures import BLUE, RED, Colour


def square(number: int, size: tuple[int, int] = (96, 64), colour: Colour = RED) -> Image.Image:
    """A square on blue that has moved by 2 pixels a frame."""
    picture = Image.new("RGB", size, BLUE)
    left = 8 + 2 * number % (size[0] // 2)
    picture.paste(colour, (left, 16, left + 32, 48))
    return picture


def squares(count: int, size: tuple[int, int] = (96, 64)) -> Iterator[Image.Image]:
    return (square(number, size) for number in range(count))


def write_clip(
    path: Path, pictures: Iterable[Image.Image], rate: Fraction | int = 10, turn: int = 0, crf: int = 12
) -> Path:
    """Writes pictures of one even size as H.264.

    Args:
        path: its ending says the container.
        pictures: one or more.
        rate: a second.
        turn: degrees counterclockwise by which players are told to turn it.
        crf: quality; lower is better.
    """
    import av

    options = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream("libx264", rate, options={"crf": str(crf), "g": "10"})
        stream.pix_fmt = "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        for number, picture in enumerate(pictures):
            if not number:
                stream.width, stream.height = picture.size
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Writes a file with sound alone."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", 8000)
        for number in range(8):
            sound = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            sound.planes[0].update(bytes(4 * 1024))
            sound.sample_rate, sound.pts = 8000, 1024 * number
            file.mux(stream.encode(sound))
        file.mux(stream.encode(None))
    return path


def pictures_of(path: Path) -> list[Image.Image]:
    """Reads a clip as any program would."""
    import av

    with av.open(str(path)) as file:
        return [frame.to_image() for frame in file.decode(video=0)]
