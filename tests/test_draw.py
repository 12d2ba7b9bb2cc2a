import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg import draw
from dpseg.draw import found_entries, overlay
from dpseg.palette import contrast, palette, text_colour

NAMES = ("cat", "couch", "wall", "dog")
PHOTO = Path(__file__).parents[1] / "examples" / "coffee.jpg"


@pytest.fixture
def labels() -> np.ndarray:
    """80 x 120: a cat on the wall, a couch on the lower half, a strip of none, no dog."""
    labels = np.full((80, 120), 2, np.int32)
    labels[40:] = 1
    labels[10:30, 10:50] = 0
    labels[:, 116:] = -1
    return labels


def test_colours_are_distinct_stable_and_carry_readable_text():
    colours = palette(300)
    assert len(np.unique(colours, axis=0)) == 300
    assert np.array_equal(palette(12), colours[:12])
    assert min(contrast(colour, text_colour(colour)) for colour in colours) >= 4.5
    first = colours[:12].astype(int)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 999 * np.eye(12, dtype=int)
    assert apart.min() > 90


def test_contrast_of_black_on_white_is_21():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((9, 9, 9), (9, 9, 9)) == 1


def test_overlay_tints_regions_and_leaves_unnamed_pixels_alone(labels):
    image = Image.new("RGB", (120, 80), (100, 100, 100))
    drawn = np.asarray(overlay(image, labels, NAMES)).astype(int)[:80, :120]
    assert (drawn[:, 118] == 100).all()
    tinted = drawn[35, 100]
    assert np.abs(tinted - (100 + palette(4)[2].astype(int)) / 2).max() <= 1
    assert (drawn[39, 60] == palette(4)[2]).all()
    assert (drawn[40, 60] == palette(4)[1]).all()


def test_the_legend_lies_below_the_photo_and_names_only_what_was_found(labels):
    drawn = np.asarray(overlay(None, labels, NAMES))
    assert drawn.shape[1] == 200
    assert drawn.shape[0] > 80
    patches = {tuple(pixel) for pixel in drawn[80:].reshape(-1, 3).tolist()}
    assert {tuple(palette(4)[index].tolist()) for index in (0, 1, 2)} <= patches
    assert tuple(palette(4)[3].tolist()) not in patches


def test_entries_end_with_the_pixels_without_a_class(labels):
    assert [entry.name for entry in found_entries(labels, NAMES)] == ["couch", "wall", "cat", "none"]
    assert [entry.name for entry in found_entries(np.zeros((2, 2), np.int32), NAMES)] == ["cat"]


def placed(labels: np.ndarray, names: tuple[str, ...], size: int = 14) -> dict[str, tuple[int, int, int, int]]:
    return {entry.name: box for entry, _, box in draw._placed_names(labels, found_entries(labels, names), size)}


def test_names_lie_inside_their_region_where_they_fit():
    labels = np.zeros((300, 400), np.int32)
    labels[150:] = 1
    labels[20:120, 20:180] = 2
    boxes = placed(labels, NAMES)
    assert set(boxes) == {"cat", "couch", "wall"}
    for name, (left, top, right, bottom) in boxes.items():
        assert (labels[top:bottom, left:right] == NAMES.index(name)).all()


def test_names_never_overlap_and_stay_on_the_photo():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 30, (12, 16)), np.ones((40, 40), int)).astype(np.int32)
    boxes = list(placed(labels, tuple(f"class {i}" for i in range(30))).values())
    assert len(boxes) > 20
    covered = np.zeros(labels.shape, int)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1


def test_a_small_objects_name_stands_beside_it():
    labels = np.zeros((480, 640), np.int32)
    labels[200:220, 300:340] = 1
    left, top, right, bottom = placed(labels, ("wall", "refrigerator"), 17)["refrigerator"]
    assert (labels[top:bottom, left:right] == 1).sum() < 0.2 * 20 * 40
    assert abs((left + right) / 2 - 320) < 60
    assert abs((top + bottom) / 2 - 210) < 50


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (40, 60)])
def test_odd_sizes_are_drawn_too(shape):
    labels = np.zeros(shape, np.int32)
    drawn = overlay(
        Image.new("RGB", shape[::-1]), labels, ("a class with quite a long name, far longer than the photo is wide",)
    )
    assert drawn.width == max(200, shape[1])
    assert drawn.height > shape[0]


def test_without_a_photo_it_is_drawn_on_grey(labels):
    assert overlay(None, labels, NAMES).getpixel((118, 40)) == (128, 128, 128)


def test_names_that_pillows_font_lacks_are_drawn_without_failing():
    drawn = overlay(None, np.zeros((200, 300), np.int32), ("Тигр 猫 é",))
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 3


def test_drawing_a_vga_photo_takes_less_than_150_ms():
    labels = np.kron(np.arange(20).reshape(4, 5), np.ones((120, 128), int)).astype(np.int32)
    image = Image.open(PHOTO).convert("RGB").resize((640, 480))
    names = tuple(f"class {i}" for i in range(20))
    times = []
    for _ in range(5):
        start = time.process_time()
        overlay(image, labels, names)
        times.append(time.process_time() - start)
    assert min(times) < 0.15
