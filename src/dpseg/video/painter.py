"""Frames as pictures: tinted regions as in the overlay of a photo, and a legend that stays where it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image

from dpseg.draw import found_entries, name_size, paint, paste_name, shorten
from dpseg.palette import palette
from dpseg.result import Segmentation

_LEGEND = 0.25  # of the frame's height, at most
_LEAST = 0.002  # a class of a smaller share of the frame gets no place because of it


class Painter:
    """Draws the frames of one video.

    A class has the same colour in all frames. The legend lies on the frame's upper edge, so that the video keeps its
    size: all classes in their order, where a quarter of the height has room for them; else those that occur, in the
    order in which they first do, as long as there is room. A name that has a place keeps it. Names stand nowhere else,
    because they would jump with the regions.

    Attributes:
        corners: left and top of the names that have a place, by class.
    """

    def __init__(self, names: Sequence[str], size: tuple[int, int]) -> None:
        """Lays the legend out.

        Args:
            names: K.
            size: width and height of the frames in pixels.
        """
        self._width, self._height = size
        self._letters = max(12, round(min(size) / 30))
        self._gap = self._letters // 3
        self._names = [shorten(name, self._letters, self._width * 0.6) for name in names]
        self._layer = Image.new("RGBA", size)
        self._next, self.corners = (self._gap, self._gap), dict[int, tuple[int, int]]()
        if self._place(range(len(names))):
            self._write(range(len(names)))
        else:
            self._next, self.corners = (self._gap, self._gap), {}

    def draw(self, found: Segmentation) -> Image.Image:
        """Returns a frame, RGB of its own size."""
        size = self._width, self._height
        image = found.image if found.image is not None else Image.new("RGB", size, (128, 128, 128))
        picture = paint(image, found.labels, len(self._names))
        large = [entry.index for entry in found_entries(found.labels, found.names) if entry.area >= _LEAST]
        new = [index for index in large if index >= 0 and index not in self.corners]
        self._place(new)
        self._write(index for index in new if index in self.corners)
        picture.paste(self._layer, (0, 0), self._layer)
        return picture

    def _place(self, classes: Iterable[int]) -> bool:
        """Gives names a place, line by line; returns whether there was one for all of them."""
        complete = True
        for index in classes:
            wide, high = name_size(self._names[index], self._letters)
            x, y = self._next
            if x > self._gap and x + wide > self._width - self._gap:
                x, y = self._gap, y + high + self._gap
            if x + wide > self._width or y + high > _LEGEND * self._height:
                complete = False
                continue
            self.corners[index] = x, y
            self._next = x + wide + self._gap, y
        return complete

    def _write(self, classes: Iterable[int]) -> None:
        colours = palette(max(1, len(self._names))).tolist()
        for index in classes:
            red, green, blue = colours[index]
            paste_name(self._layer, self._names[index], (red, green, blue), self._letters, self.corners[index])
