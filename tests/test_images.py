import errno
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg import images
from dpseg.errors import ImageError
from dpseg.images import load_image, to_tensor


@pytest.fixture
def pixels() -> np.ndarray:
    """(5, 7, 3) uint8, all different."""
    return np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of noise, 80 x 60, whose every byte matters."""
    path = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=90)
    return path


def error_of(source) -> str:
    """Returns the text of the ImageError that loading raises, which must be one line."""
    with pytest.raises(ImageError) as info:
        load_image(source)
    assert "\n" not in str(info.value)
    return str(info.value)


# What an image may be


def test_path_string_pil_array_and_tensor_give_the_same_picture(tmp_path, pixels):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels)
    sources = [path, str(path), Image.open(path), pixels, tensor, tensor.permute(2, 0, 1)]
    sources += [
        pixels / 255,
        (tensor.permute(2, 0, 1) / 255).double(),
        pixels.astype(np.int64),
        pixels * np.uint16(257),
    ]
    for source in sources:
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


def test_low_precision_and_gradient_tensors_are_accepted(pixels):
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    half = np.asarray(load_image(tensor.bfloat16()))
    assert np.abs(half.astype(int) - pixels).max() <= 1
    assert np.array_equal(np.asarray(load_image(tensor.requires_grad_())), pixels)


def test_grey_arrays_of_one_channel_or_none():
    grey = np.array([[0, 100, 255]], dtype=np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(np.asarray(load_image(source)), expected)
    assert np.asarray(load_image(grey > 50))[0, :, 0].tolist() == [0, 255, 255]


def test_transparency_is_laid_over_white():
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    expected = [[255, 0, 0], [255, 255, 255], [204, 204, 204]]
    assert np.asarray(load_image(rgba))[0].tolist() == expected
    assert np.asarray(load_image(Image.fromarray(rgba)))[0].tolist() == expected


def test_palette_with_a_transparent_index(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0] + [0] * 762)
    picture.putdata([0, 1])
    picture.save(tmp_path / "p.png", transparency=1)
    assert np.asarray(load_image(tmp_path / "p.png"))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    picture.save(tmp_path / "q.png")
    assert np.asarray(load_image(tmp_path / "q.png"))[0].tolist() == [[10, 20, 30], [200, 100, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "HSV"])
def test_other_colour_modes_become_rgb(mode):
    image = load_image(Image.new("RGB", (4, 3), "white").convert(mode))
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert np.asarray(image).min() >= 254


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    red, green, blue = np.asarray(load_image(tmp_path / "c.jpg")).mean((0, 1))
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_files_are_scaled_by_their_whole_range(tmp_path, suffix):
    values = np.array([[0, 257 * 10, 32768, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 10, 128, 255]
    assert np.asarray(load_image(Image.fromarray(values.astype(np.int32))))[0, :, 0].tolist() == [0, 10, 128, 255]


def test_float_picture():
    assert np.asarray(load_image(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))))[0, :, 1].tolist() == [
        0,
        128,
        255,
    ]


# EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed_once(tmp_path, pixels, orientation):
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tif"):
        path = tmp_path / f"turned.{suffix}"
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
        image = load_image(path)
        assert np.array_equal(np.asarray(image), pixels)
        assert np.array_equal(np.asarray(load_image(image)), pixels)


def test_the_callers_picture_is_left_alone(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = Image.fromarray(pixels)
    source.info["exif"] = exif.tobytes()
    assert load_image(source).size == (5, 7)
    assert source.size == (7, 5)


def test_damaged_exif_is_no_reason_to_refuse(tmp_path, photo):
    data = photo.read_bytes()
    segment = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff"
    path = tmp_path / "odd.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    assert load_image(path).size == (80, 60)


# What cannot be read


def test_missing_file_folder_and_empty_file(tmp_path):
    assert error_of(tmp_path / "no.jpg") == f"{tmp_path / 'no.jpg'}: no such file; check the path"
    assert "is a folder" in error_of(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty.png: the file is empty" in error_of(tmp_path / "empty.png")


def test_a_text_file_is_not_a_picture(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    assert "notes.jpg: not a picture" in error_of(tmp_path / "notes.jpg")


def test_unreadable_file(photo, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(photo))

    monkeypatch.setattr(Image, "open", refuse)
    assert error_of(photo) == f"{photo}: cannot be opened (Permission denied); check its permissions"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_truncated_files_are_refused_not_half_grey(tmp_path, photo, suffix):
    path = tmp_path / f"cut.{suffix}"
    load_image(photo).save(path)
    data = path.read_bytes()
    load_image(path)
    for kept in (0.02, 0.3, 0.6, 0.95):
        path.write_bytes(data[: int(len(data) * kept)])
        assert f"cut.{suffix}" in error_of(path)


def test_a_truncated_pil_image_names_its_file(tmp_path, photo):
    photo.write_bytes(photo.read_bytes()[:2000])
    assert "photo.jpg: truncated" in error_of(Image.open(photo))


def test_enormous_pictures_are_refused_before_decoding(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (10_001, 60_000):  # within and above Pillow's own limit
        path = tmp_path / "huge.png"
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        text = error_of(path)
        assert "huge.png" in text
        assert "100,000,000" in text


def test_the_limit_holds_for_arrays_and_pil_images_too(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert load_image(np.zeros((10, 10, 3), np.uint8)).size == (10, 10)
    assert "11 x 10 = 110 pixels" in error_of(np.zeros((10, 11, 3), np.uint8))
    assert "11 x 10 = 110 pixels" in error_of(Image.new("RGB", (11, 10)))


@pytest.mark.parametrize("source", [Image.new("RGB", (0, 5)), np.zeros((5, 0, 3), np.uint8), torch.zeros(3, 0, 0)])
def test_pictures_without_pixels(source):
    assert "both sides must be at least 1" in error_of(source)


@pytest.mark.parametrize(
    ("source", "part"),
    [
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
def test_values_and_shapes_that_mean_no_picture(source, part):
    assert part in error_of(source)


def test_slight_overshoot_of_floats_is_clipped():
    assert np.asarray(load_image(np.array([[-0.0005, 1.0005]])))[0, :, 0].tolist() == [0, 255]


def test_to_tensor(pixels):
    tensor = to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (3, 5, 7)
    assert tensor.dtype == torch.float32
    assert torch.equal((tensor * 255).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))
