import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.errors import ImageError, PromptError
from dpseg.images import to_tensor
from dpseg.prompts.visual import MIN_SIDE, Reference, crop_region, parse_reference

RED, GREEN = (255, 0, 0), (0, 255, 0)
SIZE = 64


def picture(width: int = 200, height: int = 100, box: tuple[int, int, int, int] = (80, 30, 120, 70)) -> Image.Image:
    """A green rectangle on red."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, box)
    return image


def box_mask(width: int = 200, height: int = 100, box: tuple[int, int, int, int] = (80, 30, 120, 70)) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def share(mask: torch.Tensor) -> float:
    return float(mask.mean())


def test_crop_is_the_thing_with_its_margin() -> None:
    crop, mask = Reference(picture(), mask=box_mask()).crop(SIZE, margin=0.1)
    assert crop.shape == (3, SIZE, SIZE)
    assert mask.shape == (SIZE, SIZE)
    assert share(mask) == pytest.approx((40 / 48) ** 2, abs=0.01)
    inside, outside = mask > 0.99, mask < 0.01
    assert torch.allclose(crop[:, inside], torch.tensor([0.0, 1.0, 0.0])[:, None], atol=1e-5)
    assert torch.allclose(crop[:, outside], torch.tensor([1.0, 0.0, 0.0])[:, None], atol=1e-5)
    assert not mask[0].any()
    assert not mask[:, -1].any()


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.5])
def test_margin_is_a_fraction_of_the_longer_side(margin: float) -> None:
    mask = torch.from_numpy(box_mask(300, 300, (100, 100, 200, 150)))
    _, cut = crop_region(torch.rand(3, 300, 300), mask, SIZE, margin)
    side = 100 * (1 + 2 * margin)
    assert share(cut) == pytest.approx(100 * 50 / side**2, rel=0.02)


def test_mask_box_and_region_give_the_same_crop() -> None:
    image, mask = picture(), box_mask()
    by_mask = Reference(image, mask=mask).crop(SIZE)
    by_box = Reference(image, box=(80, 30, 120, 70)).crop(SIZE)
    by_region = crop_region(to_tensor(image), torch.from_numpy(mask), SIZE)
    for crop, cut in (by_box, by_region):
        assert torch.equal(crop, by_mask[0])
        assert torch.equal(cut, by_mask[1])


def test_crop_at_the_edge_moves_into_the_photo() -> None:
    box = (170, 0, 200, 30)
    crop, mask = crop_region(to_tensor(picture(box=box)), torch.from_numpy(box_mask(box=box)), SIZE, margin=0.5)
    assert share(mask) == pytest.approx(0.25, abs=0.01)
    assert mask[0, -1] > 0.999
    assert crop[1].mean() == pytest.approx(0.25, abs=0.01), "no padding: the rest is red"
    assert crop[0].mean() == pytest.approx(0.75, abs=0.01)


def test_whole_picture_is_letterboxed_with_its_mean_and_mask_zero() -> None:
    crop, mask = Reference(picture(200, 100, (0, 0, 100, 100))).crop(SIZE)
    assert mask[16:48].min() > 0.999
    assert mask[:16].max() == mask[48:].max() == 0
    assert torch.allclose(crop[:, 20, 10], torch.tensor([0.0, 1.0, 0.0]), atol=1e-5)
    assert torch.allclose(crop[:, 20, 60], torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)
    assert torch.allclose(crop[:, 0, 0], torch.tensor([0.5, 0.5, 0.0]), atol=0.01)


def test_square_picture_fills_the_crop() -> None:
    _, mask = Reference(picture(64, 64)).crop(SIZE)
    assert mask.min() > 0.999


@pytest.mark.parametrize(("width", "height"), [(1000, 1), (1, 1000), (1, 1), (3, 2)])
def test_extreme_shapes_keep_some_of_the_picture(width: int, height: int) -> None:
    crop, mask = Reference(Image.new("RGB", (width, height), RED)).crop(SIZE)
    assert mask.max() > 0.999
    assert torch.allclose(crop, torch.tensor(RED)[:, None, None] / 255, atol=1e-5)


def test_one_pixel_comes_with_its_surroundings() -> None:
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[50, 50] = True
    _, cut = crop_region(torch.rand(3, 100, 100), mask, SIZE)
    assert share(cut) == pytest.approx(1 / MIN_SIDE**2, rel=0.05)


def test_thin_line_keeps_its_weight_when_it_shrinks() -> None:
    mask = torch.zeros(640, 640, dtype=torch.bool)
    mask[320, :] = True
    _, cut = crop_region(torch.rand(3, 640, 640), mask, SIZE, margin=0.0)
    assert share(cut) == pytest.approx(1 / 640, rel=0.05)


def test_region_with_holes_and_parts() -> None:
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[10:20, 10:20] = mask[80:90, 80:90] = True
    _, cut = crop_region(torch.rand(3, 100, 100), mask, 80, margin=0.0)
    assert share(cut) == pytest.approx(200 / 80**2, rel=0.01)
    assert cut[40, 40] == 0


def test_large_photo_gives_nearly_the_crop_of_the_plain_way() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    mask = box_mask(1600, 1200, (203, 157, 1301, 1090))
    crop, cut = Reference(image, mask=mask).crop(SIZE)
    plain, plain_cut = crop_region(to_tensor(image), torch.from_numpy(mask), SIZE)
    assert (crop - plain).abs().mean() < 0.01
    assert (cut - plain_cut).abs().mean() < 0.01


def test_values_stay_in_range() -> None:
    mask = torch.rand(97, 131) > 0.5
    crop, cut = crop_region(torch.rand(3, 97, 131), mask, 50)
    for values in (crop, cut):
        assert values.min() >= -1e-6
        assert values.max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["png", "palette", "jpg", "rgb", "pil", "bool", "float", "labels", "tensor", "hw1"])
def test_masks_of_every_kind(tmp_path: Path, kind: str) -> None:
    mask, grey = box_mask(), Image.fromarray(box_mask().astype(np.uint8) * 255)
    path = tmp_path / f"mask.{'jpg' if kind == 'jpg' else 'png'}"
    if kind == "palette":
        labels = Image.fromarray(mask.astype(np.uint8) * 3, "P")
        labels.putpalette([0, 0, 0, 9, 9, 9, 1, 1, 1, 0, 0, 0])
        labels.save(path)
    elif kind in ("png", "jpg", "rgb"):
        grey.convert("RGB" if kind == "rgb" else "L").save(path)
    sources = {
        "pil": grey,
        "bool": mask,
        "float": mask * 0.9 + 0.05,
        "labels": mask.astype(np.int64) * 7,
        "tensor": torch.from_numpy(mask)[None],
        "hw1": mask[..., None],
    }
    _, cut = Reference(picture(), mask=sources.get(kind, path)).crop(SIZE)
    assert share(cut) == pytest.approx((40 / 48) ** 2, abs=0.02)


def test_picture_on_its_side_is_turned_with_its_mask_upright(tmp_path: Path) -> None:
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    crop, _ = Reference(path, mask=box_mask()).crop(SIZE)
    assert torch.equal(crop, Reference(upright, mask=box_mask()).crop(SIZE)[0])


def test_empty_mask_is_refused_by_its_file_name(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    Image.new("L", (200, 100)).save(path)
    with pytest.raises(PromptError, match=r"empty\.png' is empty"):
        Reference(picture(), mask=path).crop(SIZE)


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(PromptError, match=r"is 50 x 40, but its picture .* 200 x 100"):
        Reference(picture(), mask=np.ones((40, 50), bool)).crop(SIZE)


def test_mask_with_colours_is_refused() -> None:
    with pytest.raises(PromptError, match=r"shape \(100, 200, 3\)"):
        Reference(picture(), mask=picture()).crop(SIZE)


@pytest.mark.parametrize(
    "box", [(-5, 0, 20, 20), (0, 0, 201, 50), (50, 50, 50, 60), (60, 50, 50, 60), (300, 0, 400, 9)]
)
def test_box_outside_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(PromptError, match=r"is not within .* 200 x 100"):
        Reference(picture(), box=box).crop(SIZE)


def test_missing_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"mug\.jpg"):
        Reference(tmp_path / "mug.jpg").crop(SIZE)


def test_mask_and_box_together_are_refused() -> None:
    with pytest.raises(PromptError, match="both a mask and a box"):
        Reference("mug.jpg", mask="mask.png", box=(0, 0, 1, 1))


def test_region_refuses_an_empty_or_foreign_mask() -> None:
    with pytest.raises(PromptError, match="empty"):
        crop_region(torch.rand(3, 10, 10), torch.zeros(10, 10, dtype=torch.bool), SIZE)
    with pytest.raises(PromptError, match=r"\(10, 9\)"):
        crop_region(torch.rand(3, 10, 10), torch.ones(10, 9, dtype=torch.bool), SIZE)


def test_region_is_cut_quickly() -> None:
    image, mask = torch.rand(3, 480, 640), torch.from_numpy(box_mask(640, 480, (100, 20, 500, 460)))
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        crop_region(image, mask, 224)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02, "some 2 ms on one core of an ordinary machine"


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
    ],
)
def test_parse_reference(text: str, name: str, image: str, mask: str | None, box: object) -> None:
    found, reference = parse_reference(text)
    assert (found, reference.image, reference.mask, reference.box) == (name, image, mask, box)


def test_parse_reference_knows_files_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("12:30.png").touch()
    assert parse_reference("mug=12:30.png")[1].image == "12:30.png"
    reference = parse_reference("mug=12:30.png:mask.png")[1]
    assert (reference.image, reference.mask) == ("12:30.png", "mask.png")


@pytest.mark.parametrize("text", ["mug.jpg", "=mug.jpg", "mug=", "", "mug=shelf.jpg:", "mug=:mask.png"])
def test_parse_reference_refuses(text: str) -> None:
    with pytest.raises(PromptError, match=r"^reference "):
        parse_reference(text)
