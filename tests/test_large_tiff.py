"""TIFF files of all kinds read by windows, and label maps written by windows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from dpseg import images
from dpseg.errors import ImageError, MissingExtraError, OutputError
from dpseg.images import load_image
from dpseg.large import tiff, windows
from dpseg.large.label_tiff import write_labels
from dpseg.large.windows import open_windows
from dpseg.palette import palette
from support.large_pictures import write_black

SIZE = (150, 100)
VALUES: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
PHOTO, GREY = Image.fromarray(VALUES), VALUES[..., :1]
GEO = [
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 700000.0, 5600000.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32632), True),
    (34736, "d", 1, (6378137.0,), True),
    (34737, "s", 8, "WGS 84|", True),
]
every_layout = pytest.mark.parametrize(
    "layout", [{"tile": (32, 48)}, {"rowsperstrip": 16}, {}], ids=["tiles", "strips", "one strip"]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tif"


def write(path: Path, values: NDArray[Any] = VALUES, photometric: str | None = "rgb", **options: Any) -> None:
    tifffile.imwrite(path, values, photometric=photometric, **options)


def check(path: Path, expected: Image.Image = PHOTO) -> None:
    """Reads some windows and compares them with the whole picture."""
    with open_windows(path) as picture:
        assert (picture.width, picture.height) == expected.size
        width, height = expected.size
        for box in ((0, 0, width, height), (20, 30, 90, 71), (width - 1, height - 1, width, height), (0, 33, 7, 34)):
            window = picture.read(*box)
            assert window.mode == "RGB"
            assert np.array_equal(np.asarray(window), np.asarray(expected.crop(box))), box


@every_layout
def test_any_layout_compression_sample_and_byte_order_is_read(path: Path, layout: dict[str, Any]) -> None:
    for compression in (None, "zlib", "lzw", "zstd", "packbits"):
        write(path, compression=compression, **layout)
        check(path)
    for compression in (None, "zlib"):
        planes = VALUES.transpose(2, 0, 1)
        write(path, planes, planarconfig="separate", compression=compression, bigtiff=True, **layout)
        check(path)
    write(path, compression="zlib", predictor=True, **layout)
    check(path)
    for order in ("<", ">"):
        for compression in (None, "lzw"):
            write(path, VALUES.astype(np.uint16) * 257, compression=compression, byteorder=order, **layout)
            check(path)
    write(path, (VALUES / 255).astype(np.float32), compression="zlib", **layout)
    check(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_colours_are_those_of_the_whole_picture(path: Path, mode: str, compression: str | None) -> None:
    image = Image.fromarray(VALUES[..., 0].astype(np.uint16) * 257) if mode == "I;16" else PHOTO.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(VALUES[..., 1]))
    image.save(path, compression=compression)
    check(path, load_image(path))


def test_jpeg_white_is_zero_and_more_channels_are_read(path: Path) -> None:
    smooth = PHOTO.resize((15, 10)).resize(SIZE, Image.Resampling.BICUBIC)
    smooth.save(path, compression="jpeg", quality=95)
    with open_windows(path) as picture:
        window = np.asarray(picture.read(20, 30, 90, 71)).astype(int)
    assert np.abs(window - np.asarray(smooth.crop((20, 30, 90, 71)))).max() < 40
    write(path, VALUES[..., 0], "miniswhite", compression="zlib")
    check(path, Image.fromarray(255 - VALUES[..., 0]).convert("RGB"))
    write(path, np.concatenate([VALUES, GREY], axis=2), extrasamples=["unspecified"], compression="zlib")
    check(path)  # the fourth is infrared
    clear = np.zeros((*VALUES.shape[:2], 4), np.uint8)
    write(path, clear, extrasamples=["assocalpha"], compression="zlib")
    check(path, Image.new("RGB", SIZE, "white"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_read_upright(path: Path, orientation: int) -> None:
    write(path, compression="zlib", extratags=[(274, "H", 1, orientation, True)])
    check(path, load_image(path))


def test_empty_tiles_are_black_and_few_decoded_ones_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_black(path, 128, 128, 64, sparse=True)
    assert path.stat().st_size < 1000
    check(path, Image.new("RGB", (128, 128)))
    monkeypatch.setattr(tiff, "CACHE_BYTES", 10_000)
    write(path, compression="zlib", tile=(32, 48))
    check(path)
    with open_windows(path) as picture:
        picture.read(0, 0, *SIZE)
        assert sum(part.nbytes for part in picture._segments._cache.values()) <= 10_000  # type: ignore[attr-defined]


def refused(path: Path) -> str:
    """Returns the one line with which a file is refused, when it is opened or read."""
    with pytest.raises(ImageError) as caught, open_windows(path) as picture:
        picture.read(0, 0, picture.width, picture.height)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


@every_layout
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_a_broken_file_is_refused_in_one_line(
    path: Path, layout: dict[str, Any], compression: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    write(path, compression=compression, **layout)
    data = path.read_bytes()
    for kept in (4, 9, 60, len(data) // 3, len(data) - 50):
        path.write_bytes(data[:kept])
        refused(path)
    if compression:
        path.write_bytes(data[: len(data) // 2] + bytes(1000) + data[len(data) // 2 + 1000 :])
        refused(path)
    assert capfd.readouterr() == ("", "")


def test_kinds_that_are_no_pictures_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, np.zeros((20, 30, 7), np.uint8), "minisblack", planarconfig="contig")
    assert "7 channels of kind minisblack are no RGB or grey picture; save it as RGB" in refused(path)
    write(path, np.zeros((20, 30, 4), np.uint8), "separated")
    assert "4 channels of kind separated" in refused(path)
    write(path, np.full((20, 30), 7.5, np.float32), None)
    assert "are not floats in [0, 1]; scale them first" in refused(path)
    monkeypatch.setattr(tiff, "MOST_BYTES", 500)
    write(path, np.zeros((20, 30), np.uint8), None, compression="zlib")
    text = "30 x 20 pixels in one strip, compressed, are too much at a time; save it as a TIFF with tiles"
    assert text in refused(path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"tifffile; pip install 'dpseg\[tiff\]'"), open_windows(path):
        pass


def test_other_pictures_are_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[274] = 6
    PHOTO.save(tmp_path / "a.png", exif=exif)
    expected = load_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 10_500)  # below the picture's 15,000, which is no obstacle ...
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    with open_windows(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture.read(3, 5, 60, 80)), np.asarray(expected.crop((3, 5, 60, 80))))
    assert Image.MAX_IMAGE_PIXELS == 5_000
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 12_000)  # ... and this one is
    with pytest.raises(ImageError, match="the limit is 12,000; save it as a TIFF, which is read by windows"):
        windows.WholePicture(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"dpseg predict --tile 1024"):
        load_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="no such file"), open_windows(tmp_path / "none.tif"):
        pass


@pytest.mark.parametrize("cuts", [(7, 299), (), (100, 200), (256,), (10, 20, 260, 290)])
def test_a_label_map_is_written_by_any_rows_at_a_time(path: Path, cuts: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(0, 6, (300, 610), dtype=np.uint8)
    labels[labels == 5] = 255
    assert write_labels(path, iter(np.split(labels, cuts)), (610, 300), 5, ()) == path
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert (page.is_tiled, page.compression.name, page.dtype) == (True, "ADOBE_DEFLATE", np.uint8)
        assert np.array_equal(page.asarray(), labels)
        assert 33550 not in page.tags
    with Image.open(path) as picture:
        assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3)[:5], palette(5))
    many = labels.astype(np.uint16) * 257
    write_labels(path, np.split(many, cuts), (610, 300), 256, ())
    assert np.array_equal(tifffile.imread(path), many)
    assert [file.name for file in path.parent.iterdir()] == ["a.tif"]


def test_the_georeference_is_carried_over(path: Path, tmp_path: Path) -> None:
    write(path, extratags=GEO)
    with open_windows(path) as picture:
        tags = picture.georeference
    write_labels(tmp_path / "b.tif", [np.zeros((100, 150), np.uint8)], SIZE, 2, tags)
    with tifffile.TiffFile(path) as before, tifffile.TiffFile(tmp_path / "b.tif") as after:
        first, second = before.pages.first, after.pages.first
        for code, *_ in GEO:
            assert second.tags[code].value == first.tags[code].value
            assert second.tags[code].dtype == first.tags[code].dtype
        assert second.tags[42113].value == "255"
        assert second.geotiff_tags == first.geotiff_tags


def test_a_label_map_that_cannot_be_written_leaves_nothing(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_labels(path, [np.zeros((100, 150), np.uint8)], SIZE, 2, ())
    assert [file.name for file in path.parent.iterdir()] == ["a.tif"]
