"""References: a picture with a mask, a box or neither becomes a square crop; and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from dpseg.errors import ImageError, PromptError
from dpseg.images import to_tensor
from dpseg.prompts import visual
from dpseg.prompts.visual import MIN_SIDE, Reference, crop_region, parse_reference

RED, GREEN = (255, 0, 0), (0, 255, 0)
SIZE = 64
THING = (80, 30, 120, 70)


def picture(width: int = 200, height: int = 100, box: tuple[int, int, int, int] = THING) -> Image.Image:
    """A green rectangle on red."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, box)
    return image


def box_mask(width: int = 200, height: int = 100, box: tuple[int, int, int, int] = THING) -> npt.NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def marked(side: int, *places: tuple[slice | int, slice | int]) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


def cut_of(mask: Tensor, size: int = SIZE, margin: float = 0.1) -> Tensor:
    """Cuts a region out of a photo of noise, and returns the crop's mask."""
    crop, cut = crop_region(torch.rand(3, *mask.shape), mask, size, margin)
    for values in (crop, cut):
        assert values.min() >= -1e-6
        assert values.max() <= 1 + 1e-6
    return cut


def colour(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None]


# Crops


def test_a_crop_is_the_thing_with_its_margin_by_mask_box_or_region() -> None:
    crop, mask = Reference(picture(), mask=box_mask()).crop(SIZE, margin=0.1)
    assert crop.shape == (3, SIZE, SIZE)
    assert mask.shape == (SIZE, SIZE)
    assert mask.mean().item() == pytest.approx((40 / 48) ** 2, abs=0.01)
    assert torch.allclose(crop[:, mask > 0.99], colour((0.0, 1.0, 0.0)), atol=1e-5)
    assert torch.allclose(crop[:, mask < 0.01], colour((1.0, 0.0, 0.0)), atol=1e-5)
    assert not mask[0].any()
    assert not mask[:, -1].any()
    by_box = Reference(picture(), box=THING).crop(SIZE)
    for other, cut in (by_box, crop_region(to_tensor(picture()), torch.from_numpy(box_mask()), SIZE)):
        assert torch.equal(other, crop)
        assert torch.equal(cut, mask)


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.5])
def test_the_margin_is_a_fraction_of_the_longer_side(margin: float) -> None:
    cut = cut_of(marked(300, (slice(100, 150), slice(100, 200))), margin=margin)
    assert cut.mean().item() == pytest.approx(100 * 50 / (100 * (1 + 2 * margin)) ** 2, rel=0.02)


def test_small_thin_and_parted_regions_keep_their_weight() -> None:
    pixel = cut_of(marked(100, (50, 50)))  # comes with its surroundings
    assert pixel.mean().item() == pytest.approx(1 / MIN_SIDE**2, rel=0.05)
    line = cut_of(marked(640, (320, slice(None))), margin=0.0)
    assert line.mean().item() == pytest.approx(1 / 640, rel=0.05)
    parts = cut_of(marked(100, (slice(10, 20), slice(10, 20)), (slice(80, 90), slice(80, 90))), 80, margin=0.0)
    assert parts.mean().item() == pytest.approx(200 / 80**2, rel=0.01)
    assert parts[40, 40] == 0
    cut_of(torch.rand(97, 131) > 0.5, 50)


def test_a_crop_at_the_edge_moves_into_the_photo() -> None:
    box = (170, 0, 200, 30)
    crop, mask = crop_region(to_tensor(picture(box=box)), torch.from_numpy(box_mask(box=box)), SIZE, margin=0.5)
    assert mask.mean().item() == pytest.approx(0.25, abs=0.01)
    assert mask[0, -1] > 0.999
    assert crop[1].mean() == pytest.approx(0.25, abs=0.01), "no padding: the rest is red"
    assert crop[0].mean() == pytest.approx(0.75, abs=0.01)


def test_a_whole_picture_is_letterboxed_with_its_mean_and_mask_zero() -> None:
    crop, mask = Reference(picture(200, 100, (0, 0, 100, 100))).crop(SIZE)
    assert mask[16:48].min() > 0.999
    assert mask[:16].max() == mask[48:].max() == 0
    assert torch.allclose(crop[:, 20, 10], torch.tensor([0.0, 1.0, 0.0]), atol=1e-5)
    assert torch.allclose(crop[:, 20, 60], torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)
    assert torch.allclose(crop[:, 0, 0], torch.tensor([0.5, 0.5, 0.0]), atol=0.01)
    assert Reference(picture(64, 64)).crop(SIZE)[1].min() > 0.999, "a square one fills the crop"


@pytest.mark.parametrize(("width", "height"), [(1000, 1), (1, 1000), (1, 1), (3, 2)])
def test_extreme_shapes_keep_some_of_the_picture(width: int, height: int) -> None:
    crop, mask = Reference(Image.new("RGB", (width, height), RED)).crop(SIZE)
    assert mask.max() > 0.999
    assert torch.allclose(crop, colour(RED)[..., None] / 255, atol=1e-5)


@pytest.mark.numeric
def test_a_large_photo_gives_nearly_the_crop_of_the_plain_way() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    mask = box_mask(1600, 1200, (203, 157, 1301, 1090))
    crop, cut = Reference(image, mask=mask).crop(SIZE)
    plain, plain_cut = crop_region(to_tensor(image), torch.from_numpy(mask), SIZE)
    assert (crop - plain).abs().mean() < 0.01
    assert (cut - plain_cut).abs().mean() < 0.01


def test_only_the_region_is_resized_however_large_its_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    resized: list[torch.Size] = []
    original = visual._resize
    monkeypatch.setattr(visual, "_resize", lambda part, *size: (resized.append(part.shape), original(part, *size))[1])
    crop_region(torch.rand(3, 480, 640), torch.from_numpy(box_mask(640, 480, (100, 20, 200, 70))), 224)
    assert resized == [(3, 120, 120), (1, 120, 120)]  # of its square with the margin


SIDES = st.floats(-50, 250) | st.integers(-1, 11).map(lambda tens: 20.0 * tens) | st.floats(-1e300, 1e300)


@given(box=st.tuples(SIDES, SIDES, SIDES, SIDES))
@example(box=(-5, 0, 20, 20))
@example(box=(0, 0, 201, 50))
@example(box=(50, 50, 50, 60))
@example(box=(60, 50, 50, 60))
@example(box=(0, 0, 200, 100))
@settings(max_examples=50)
def test_any_box_is_a_crop_inside_the_picture_or_one_clear_error(box: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = (round(value) for value in box)
    if not (0 <= x0 < x1 <= 200 and 0 <= y0 < y1 <= 100):
        with pytest.raises(PromptError, match=r"^box .* is not within .* 200 x 100; give x0,y0,x1,y1 in pixels .*$"):
            Reference(picture(), box=box).crop(SIZE)
        return
    crop, mask = Reference(picture(), box=box).crop(SIZE)
    assert crop.shape == (3, SIZE, SIZE)
    assert mask.max() > 0
    for values in (crop, mask):
        assert values.min() >= -1e-6
        assert values.max() <= 1 + 1e-6
    assert torch.allclose(crop.sum(0), torch.ones(()), atol=1e-4), "red and green, and their means: no pixel of another"


# Masks


def test_masks_of_every_kind(tmp_path: Path) -> None:
    mask = box_mask()
    grey, palette = Image.fromarray(mask.astype(np.uint8) * 255), Image.fromarray(mask.astype(np.uint8) * 3, "P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 1, 1, 1, 0, 0, 0])
    sources: list[Any] = [grey, mask, mask * 0.9 + 0.05, mask.astype(np.int64) * 7, torch.from_numpy(mask)[None]]
    saved = {"grey.png": grey, "grey.jpg": grey, "rgb.png": grey.convert("RGB"), "palette.png": palette}
    for name, stored in saved.items():
        stored.save(tmp_path / name)
    for source in [*sources, mask[..., None], *(tmp_path / name for name in saved)]:
        _, cut = Reference(picture(), mask=source).crop(SIZE)
        assert cut.mean().item() == pytest.approx((40 / 48) ** 2, abs=0.02), source


def test_a_picture_on_its_side_is_turned_with_its_mask_upright(tmp_path: Path) -> None:
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    crop, _ = Reference(path, mask=box_mask()).crop(SIZE)
    assert torch.equal(crop, Reference(upright, mask=box_mask()).crop(SIZE)[0])


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("empty.png", r"empty\.png' is empty"),
        (np.ones((40, 50), bool), r"is 50 x 40, but its picture .* 200 x 100"),
        (picture(), r"shape \(100, 200, 3\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(workplace: Path, mask: Any, said: str) -> None:
    Image.new("L", (200, 100)).save("empty.png")
    with pytest.raises(PromptError, match=said):
        Reference(picture(), mask=mask).crop(SIZE)


def test_missing_pictures_double_places_and_masks_of_no_region_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"mug\.jpg"):
        Reference(tmp_path / "mug.jpg").crop(SIZE)
    with pytest.raises(PromptError, match="both a mask and a box"):
        Reference("mug.jpg", mask="mask.png", box=(0, 0, 1, 1))
    with pytest.raises(PromptError, match="empty"):
        crop_region(torch.rand(3, 10, 10), torch.zeros(10, 10, dtype=torch.bool), SIZE)
    with pytest.raises(PromptError, match=r"\(10, 9\)"):
        crop_region(torch.rand(3, 10, 10), torch.ones(10, 9, dtype=torch.bool), SIZE)


# How references are written


@pytest.mark.parametrize(
    ("text", "name", "image", "mask", "box"),
    [
        ("mug=mug.jpg", "mug", "mug.jpg", None, None),
        ("mug=shelf.jpg:mask.png", "mug", "shelf.jpg", "mask.png", None),
        (" coffee mug = a b.jpg : m.png ", "coffee mug", "a b.jpg", "m.png", None),
        ("mug=shelf.jpg:10,20,200,240", "mug", "shelf.jpg", None, (10, 20, 200, 240)),
        ("mug=shelf.jpg:10.5, 20, 200.0, 240", "mug", "shelf.jpg", None, (10.5, 20, 200, 240)),
        ("mug=shelf.jpg:-1,0,5,5", "mug", "shelf.jpg", None, (-1, 0, 5, 5)),
        (r"mug=C:\pics\mug.jpg", "mug", r"C:\pics\mug.jpg", None, None),
        (r"mug=C:\pics\s.jpg:D:\m.png", "mug", r"C:\pics\s.jpg", r"D:\m.png", None),
        ("mug=C:/pics/s.jpg:1,2,3,4", "mug", "C:/pics/s.jpg", None, (1, 2, 3, 4)),
        (r"mug=s.jpg:D:\m.png", "mug", "s.jpg", r"D:\m.png", None),
        ("note: old=a.jpg", "note: old", "a.jpg", None, None),
        ("mug=a=b.jpg", "mug", "a=b.jpg", None, None),
        ("mug=https://x.org/a.jpg", "mug", "https://x.org/a.jpg", None, None),
        ("mug=12:30.png", "mug", "12:30.png", None, None),  # a file that is there
        ("mug=12:30.png:mask.png", "mug", "12:30.png", "mask.png", None),
    ],
)
def test_references_are_read(text: str, name: str, image: str, mask: str | None, box: object, workplace: Path) -> None:
    Path("12:30.png").touch()
    found, reference = parse_reference(text)
    assert (found, reference.image, reference.mask, reference.box) == (name, image, mask, box)


@pytest.mark.parametrize("text", ["mug.jpg", "=mug.jpg", "mug=", "", "mug=shelf.jpg:", "mug=:mask.png"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match=r"^reference "):
        parse_reference(text)
