"""Anything that is an image becomes an RGB photo, the right way up; masks keep their values; patterns name files."""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from dpseg import images
from dpseg.errors import ImageError
from dpseg.images import find_images, load_image, read_mask, to_tensor
from support.pictures import COFFEE

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2
"""All different."""


def pixels_of(source: Any) -> npt.NDArray[np.uint8]:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def greys_of(source: Any) -> list[int]:
    """The first row, which is grey."""
    pixels = pixels_of(source)
    assert (pixels == pixels[..., :1]).all()
    return list(pixels[0, :, 0].tolist())


def turned(number: int, pixels: npt.NDArray[np.uint8] = PIXELS) -> Image.Image:
    """A picture that is to be shown with an EXIF orientation."""
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = number
    picture.info["exif"] = picture.getexif().tobytes()
    return picture


def error_of(source: Any) -> str:
    """Returns the text of the ImageError that loading raises, which must be one line."""
    with pytest.raises(ImageError) as info:
        load_image(source)
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of noise, 80 x 60, whose every byte matters."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg", quality=90)
    return tmp_path / "photo.jpg"


# What an image may be


def test_path_string_pil_array_and_tensor_give_the_same_picture(tmp_path: Path) -> None:
    path, tensor = tmp_path / "a.png", torch.from_numpy(PIXELS)
    Image.fromarray(PIXELS).save(path)
    floats = tensor.permute(2, 0, 1) / 255
    sources = [path, str(path), Image.open(path), PIXELS, tensor, tensor.permute(2, 0, 1), PIXELS / 255]
    sources += [floats.double(), floats.clone().requires_grad_(), PIXELS.astype(np.int64), PIXELS * np.uint16(257)]
    for source in sources:
        assert np.array_equal(pixels_of(source), PIXELS)
    assert np.abs(pixels_of(floats.bfloat16()).astype(int) - PIXELS).max() <= 1
    back = to_tensor(Image.fromarray(PIXELS))
    assert (back.shape, back.dtype) == ((3, 5, 7), torch.float32)
    assert torch.equal((back * 255).round().byte(), tensor.permute(2, 0, 1))


def test_grey_arrays_of_one_channel_or_none() -> None:
    grey = np.array([[0, 100, 255]], dtype=np.uint8)
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert greys_of(source) == [0, 100, 255]
    assert greys_of(grey > 50) == [0, 255, 255]
    assert greys_of(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))) == [0, 128, 255]
    assert greys_of(np.array([[-0.0005, 1.0005]])) == [0, 255]  # a slight overshoot is clipped


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    for source in (rgba, Image.fromarray(rgba)):
        assert pixels_of(source)[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 204]]
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0] + [0] * 762)
    picture.putdata([0, 1])
    picture.save(tmp_path / "p.png", transparency=1)
    assert pixels_of(tmp_path / "p.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    picture.save(tmp_path / "q.png")
    assert pixels_of(tmp_path / "q.png")[0].tolist() == [[10, 20, 30], [200, 100, 0]]


def test_other_colour_modes_become_rgb(tmp_path: Path) -> None:
    for mode in ("1", "L", "LA", "CMYK", "YCbCr", "HSV"):
        white = pixels_of(Image.new("RGB", (4, 3), "white").convert(mode))
        assert white.shape == (3, 4, 3)
        assert white.min() >= 254
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    red, green, blue = pixels_of(tmp_path / "c.jpg").mean((0, 1))
    assert red > 240
    assert max(green, blue) < 15


def test_sixteen_bit_files_are_scaled_by_their_whole_range(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 10, 32768, 65535]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
        assert greys_of(tmp_path / f"deep.{suffix}") == [0, 10, 128, 255]
    assert greys_of(Image.fromarray(values.astype(np.int32))) == [0, 10, 128, 255]


# EXIF


@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientation_is_obeyed_once_and_the_callers_picture_left_alone(tmp_path: Path, number: int) -> None:
    source, mask = turned(number), turned(number, PIXELS[..., 0])
    expected = np.asarray(ImageOps.exif_transpose(source))
    source.save(tmp_path / "turned.png", exif=source.getexif())
    source.save(tmp_path / "turned.tif", exif=source.getexif())
    for way in (tmp_path / "turned.png", tmp_path / "turned.tif", source):
        image = load_image(way)
        assert np.array_equal(np.asarray(image), expected)
        assert np.array_equal(pixels_of(image), expected)
    assert source.size == (7, 5)
    mask.save(tmp_path / "mask.png", exif=mask.getexif())
    assert np.array_equal(read_mask(tmp_path / "mask.png"), expected[..., 0])


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path, photo: Path) -> None:
    data = photo.read_bytes()
    segment = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff"
    path = tmp_path / "odd.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    assert load_image(path).size == (80, 60)


# What cannot be read


def test_what_is_no_picture_file_is_said(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.jpg").write_text("not a picture")
    assert error_of(tmp_path / "no.jpg") == f"{tmp_path / 'no.jpg'}: no such file; check the path"
    assert f"{tmp_path}: is a folder" in error_of(tmp_path)
    assert "empty.png: the file is empty" in error_of(tmp_path / "empty.png")
    assert "notes.jpg: not a picture" in error_of(tmp_path / "notes.jpg")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(photo))

    monkeypatch.setattr(Image, "open", refuse)
    assert error_of(photo) == f"{photo}: cannot be opened (Permission denied); check its permissions"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_truncated_files_are_refused_not_half_grey(tmp_path: Path, photo: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    load_image(photo).save(path)
    data = path.read_bytes()
    load_image(path)
    for kept in (0.02, 0.3, 0.6, 0.95):
        path.write_bytes(data[: int(len(data) * kept)])
        assert f"cut.{suffix}" in error_of(path)


def test_a_truncated_pil_image_names_its_file(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:2000])
    assert "photo.jpg: truncated" in error_of(Image.open(photo))


@pytest.mark.parametrize("side", [10_001, 60_000])  # within and above Pillow's own limit
def test_enormous_pictures_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    text = error_of(tmp_path / "huge.png")
    assert "huge.png" in text
    assert "100,000,000" in text


def test_the_limit_holds_for_arrays_and_pil_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert load_image(np.zeros((10, 10, 3), np.uint8)).size == (10, 10)
    assert "11 x 10 = 110 pixels" in error_of(np.zeros((10, 11, 3), np.uint8))
    assert "11 x 10 = 110 pixels" in error_of(Image.new("RGB", (11, 10)))


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (Image.new("RGB", (0, 5)), "both sides must be at least 1"),
        (np.zeros((5, 0, 3), np.uint8), "both sides must be at least 1"),
        (torch.zeros(3, 0, 0), "both sides must be at least 1"),
        (np.zeros((4, 5, 2), np.uint8), "shape (4, 5, 2)"),
        (np.zeros((3, 4, 5), np.uint8), "shape (3, 4, 5)"),
        (torch.zeros(1, 3, 4, 5), "shape (1, 3, 4, 5)"),
        (np.full((2, 2, 3), 200.0), "from 200 to 200 are not floats in [0, 1]"),
        (np.full((2, 2, 3), np.nan), "nan"),
        (np.full((2, 2), 300), "not integers in [0, 255]"),
        (np.full((2, 2), -1, np.int16), "not integers in [0, 255]"),
        (np.full((2, 2), "a"), "are not colours"),
        (Image.fromarray(np.array([[70000]], np.int32)), "not 16-bit"),
        (Image.new("La", (2, 2)), "La is not supported"),
        (None, "NoneType is not an image"),
        (b"bytes", "bytes is not an image"),
    ],
)
def test_values_and_shapes_that_mean_no_picture_are_refused(source: Any, part: str) -> None:
    assert part in error_of(source)


# Masks


def test_masks_keep_their_stored_values(tmp_path: Path) -> None:
    labels = np.array([[0, 3, 255], [7, 1, 2]], dtype=np.uint8)
    deep = np.array([[0, 846, 65535]], dtype=np.uint16)
    rgba = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[1, 2, 3] = 255  # a cut-out is masked by its transparency
    grey = Image.fromarray(labels)
    palette = grey.copy()
    palette.putpalette([9] * 768)
    kinds = [(picture, labels) for picture in (grey, palette, grey.convert("RGB"), grey.convert("RGBA"))]
    kinds += [(Image.fromarray(deep), deep), (Image.fromarray(deep > 500), deep > 500)]
    for picture, expected in [*kinds, (Image.fromarray(rgba), rgba[..., 3])]:
        picture.save(tmp_path / "mask.png")
        mask = read_mask(tmp_path / "mask.png")
        assert mask.dtype == (np.int32 if expected is deep else np.uint8)
        assert np.array_equal(mask, expected)


def test_colour_and_missing_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"coffee.jpg: a mask holds one value a pixel, this is in colour \(RGB\)"):
        read_mask(COFFEE)
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "no.png")


# Files, folders and globs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    names = ["b.jpg", "a.PNG", "notes.txt", "sub/c.webp", "sub/deep/d.tiff", ".hidden.jpg", ".cache/e.jpg"]
    for name in [*names, "odd[1].jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["."], ["a.PNG", "b.jpg", "odd[1].jpg", "sub/c.webp", "sub/deep/d.tiff"]),
        (
            ["sub", "*.jpg", "b.jpg", "**/*.tiff", "odd[1].jpg"],
            ["b.jpg", "odd[1].jpg", "sub/c.webp", "sub/deep/d.tiff"],
        ),
        (["b.jpg", "./b.jpg", "sub/../b.jpg"], ["b.jpg"]),
        (["notes.txt"], ["notes.txt"]),  # a file that is named is taken whatever its ending
    ],
)
def test_files_folders_and_globs_are_searched_whole_and_each_picture_counts_once(
    folder: Path, patterns: list[str], names: list[str]
) -> None:
    assert find_images(patterns) == [Path(name) for name in names]
    absolute = [folder / pattern if number % 2 else f"{folder}/{pattern}" for number, pattern in enumerate(patterns)]
    assert [path.resolve() for path in find_images([*absolute, *patterns])] == [
        folder.resolve() / name for name in names
    ]


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("no.jpg", "no.jpg: no such file or folder"),
        ("*.bmp", r"\*.bmp: matches no pictures"),
        ("*.txt", r"\*.txt: matches no pictures"),
        ("bare", "bare: the folder holds no pictures"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(folder: Path, pattern: str, part: str) -> None:
    with pytest.raises(ImageError, match=part):
        find_images([folder / "b.jpg", str(folder / pattern)])
