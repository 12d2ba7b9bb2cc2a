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
GEO = [
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 700000.0, 5600000.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32632), True),
    (34736, "d", 1, (6378137.0,), True),
    (34737, "s", 8, "WGS 84|", True),
]


@pytest.fixture
def values() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def check(path: Path, expected: Image.Image) -> None:
    """Reads some windows and compares them with the whole picture."""
    with open_windows(path) as picture:
        assert (picture.width, picture.height) == expected.size
        width, height = expected.size
        for box in ((0, 0, width, height), (20, 30, 90, 71), (width - 1, height - 1, width, height), (0, 33, 7, 34)):
            window = picture.read(*box)
            assert window.mode == "RGB"
            assert np.array_equal(np.asarray(window), np.asarray(expected.crop(box))), box


LAYOUTS: list[dict[str, Any]] = [{"tile": (32, 48)}, {"rowsperstrip": 16}, {}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["tiles", "strips", "one strip"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
def test_layouts_and_compressions(
    tmp_path: Path, values: NDArray[np.uint8], layout: dict[str, Any], compression: str | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression=compression, **layout)
    check(tmp_path / "a.tif", Image.fromarray(values))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["tiles", "strips", "one strip"])
def test_planes_predictors_bigtiff_and_byte_orders(
    tmp_path: Path, values: NDArray[np.uint8], layout: dict[str, Any]
) -> None:
    path, planes = tmp_path / "a.tif", values.transpose(2, 0, 1)
    for compression in (None, "zlib"):
        tifffile.imwrite(
            path, planes, photometric="rgb", planarconfig="separate", compression=compression, bigtiff=True, **layout
        )
        check(path, Image.fromarray(values))
    tifffile.imwrite(path, values, photometric="rgb", compression="zlib", predictor=True, **layout)
    check(path, Image.fromarray(values))
    sixteen = values.astype(np.uint16) * 257
    for order in ("<", ">"):
        for compression in (None, "lzw"):
            tifffile.imwrite(path, sixteen, photometric="rgb", compression=compression, byteorder=order, **layout)
            check(path, Image.fromarray(values))
    tifffile.imwrite(path, (values / 255).astype(np.float32), photometric="rgb", compression="zlib", **layout)
    check(path, Image.fromarray(values))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_colours_are_those_of_the_whole_picture(
    tmp_path: Path, values: NDArray[np.uint8], mode: str, compression: str | None
) -> None:
    image = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values)
    image = image if mode == "I;16" else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(values[..., 1]))
    image.save(tmp_path / "a.tif", compression=compression)
    check(tmp_path / "a.tif", load_image(tmp_path / "a.tif"))


def test_jpeg_white_is_zero_and_more_channels(tmp_path: Path, values: NDArray[np.uint8]) -> None:
    path = tmp_path / "a.tif"
    smooth = Image.fromarray(values).resize((15, 10)).resize(SIZE, Image.Resampling.BICUBIC)
    smooth.save(path, compression="jpeg", quality=95)
    with open_windows(path) as picture:
        window = np.asarray(picture.read(20, 30, 90, 71)).astype(int)
    assert np.abs(window - np.asarray(smooth.crop((20, 30, 90, 71)))).max() < 40
    tifffile.imwrite(path, values[..., 0], photometric="miniswhite", compression="zlib")
    check(path, Image.fromarray(255 - values[..., 0]).convert("RGB"))
    infrared = np.concatenate([values, values[..., :1]], axis=2)
    tifffile.imwrite(path, infrared, photometric="rgb", extrasamples=["unspecified"], compression="zlib")
    check(path, Image.fromarray(values))
    clear = np.concatenate([np.zeros_like(values), np.zeros_like(values[..., :1])], axis=2)
    tifffile.imwrite(path, clear, photometric="rgb", extrasamples=["assocalpha"], compression="zlib")
    check(path, Image.new("RGB", SIZE, "white"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, values: NDArray[np.uint8], orientation: int) -> None:
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="zlib", extratags=tags)
    check(tmp_path / "a.tif", load_image(tmp_path / "a.tif"))


def test_empty_tiles_are_black(tmp_path: Path) -> None:
    write_black(tmp_path / "a.tif", 128, 64, sparse=True)
    assert (tmp_path / "a.tif").stat().st_size < 1000
    check(tmp_path / "a.tif", Image.new("RGB", (128, 128)))


def test_few_decoded_tiles_are_kept(tmp_path: Path, values: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "CACHE_BYTES", 10_000)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="zlib", tile=(32, 48))
    check(tmp_path / "a.tif", Image.fromarray(values))
    with open_windows(tmp_path / "a.tif") as picture:
        picture.read(0, 0, *SIZE)
        assert isinstance(picture, tiff.TiffPicture)
        assert sum(part.nbytes for part in picture._segments._cache.values()) <= 10_000


def refused(path: Path) -> str:
    """Returns the one line with which a file is refused, when it is opened or read."""
    with pytest.raises(ImageError) as caught, open_windows(path) as picture:
        picture.read(0, 0, picture.width, picture.height)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


@pytest.mark.parametrize("layout", LAYOUTS, ids=["tiles", "strips", "one strip"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_broken_files_are_one_line(
    tmp_path: Path,
    values: NDArray[np.uint8],
    layout: dict[str, Any],
    compression: str | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb", compression=compression, **layout)
    data = path.read_bytes()
    for kept in (4, 9, 60, len(data) // 3, len(data) - 50):
        path.write_bytes(data[:kept])
        refused(path)
    if compression:
        path.write_bytes(data[: len(data) // 2] + bytes(1000) + data[len(data) // 2 + 1000 :])
        refused(path)
    assert capfd.readouterr() == ("", "")


def test_kinds_that_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((20, 30, 7), np.uint8), photometric="minisblack", planarconfig="contig")
    assert "7 channels of kind minisblack are no RGB or grey picture; save it as RGB" in refused(path)
    tifffile.imwrite(path, np.zeros((20, 30, 4), np.uint8), photometric="separated")
    assert "4 channels of kind separated" in refused(path)
    tifffile.imwrite(path, np.full((20, 30), 7.5, np.float32))
    assert "are not floats in [0, 1]; scale them first" in refused(path)
    monkeypatch.setattr(tiff, "MOST_BYTES", 500)
    tifffile.imwrite(path, np.zeros((20, 30), np.uint8), compression="zlib")
    assert "30 x 20 pixels in one strip, compressed, are too much at a time; save it as a TIFF with tiles" in refused(
        path
    )


def test_without_the_packages(tmp_path: Path, values: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with (
        pytest.raises(MissingExtraError, match=r"tifffile; pip install 'dpseg\[tiff\]'"),
        open_windows(tmp_path / "a.tif"),
    ):
        pass


def test_other_pictures_are_read_as_a_whole(
    tmp_path: Path, values: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
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
def test_label_maps(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(0, 6, (300, 610), dtype=np.uint8)
    labels[labels == 5] = 255
    path = write_labels(tmp_path / "a.tif", iter(np.split(labels, cuts)), (610, 300), 5, ())
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
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_the_georeference_is_carried_over(tmp_path: Path, values: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=GEO)
    with open_windows(tmp_path / "a.tif") as picture:
        tags = picture.georeference
    write_labels(tmp_path / "b.tif", [np.zeros((100, 150), np.uint8)], SIZE, 2, tags)
    with tifffile.TiffFile(tmp_path / "a.tif") as before, tifffile.TiffFile(tmp_path / "b.tif") as after:
        first, second = before.pages.first, after.pages.first
        for code, *_ in GEO:
            assert second.tags[code].value == first.tags[code].value
            assert second.tags[code].dtype == first.tags[code].dtype
        assert second.tags[42113].value == "255"
        assert second.geotiff_tags == first.geotiff_tags


def test_a_label_map_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_labels(tmp_path / "a.tif", [np.zeros((100, 150), np.uint8)], SIZE, 2, ())
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
