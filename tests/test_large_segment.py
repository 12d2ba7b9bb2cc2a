"""Large pictures from end to end with the tiny encoder: tiles and whole, interruptions, memory, the command."""

from __future__ import annotations

import json
import re
import signal
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dpseg.cli import run
from dpseg.errors import ConfigError, OutputError
from dpseg.large import segment as segment_module
from dpseg.large import tiff
from dpseg.large.grid import Tiling
from dpseg.large.segment import TileOptions, segment_large
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from support.commands import python
from support.large_pictures import COLOURS, Stopped, four_colours, segment_file, write_black
from support.pictures import COLOUR_REFERENCES, halves
from support.tiny import tiny_segmenter


@pytest.fixture(scope="module")
def prompts(segmenter: Segmenter) -> PromptSet:
    return four_colours(segmenter)


def quarters(width: int, height: int) -> Image.Image:
    """Four flat areas, a colour each: the classes 0 and 1 above, 2 and 3 below."""
    picture = Image.new("RGB", (width, height))
    for number, colour in enumerate(COLOURS.values()):
        left, top = (number % 2) * (width // 2), (number // 2) * (height // 2)
        picture.paste(colour, (left, top, width if left else width // 2, height if top else height // 2))
    return picture


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


@pytest.mark.numeric
@pytest.mark.parametrize("size", [(170, 120), (64, 200), (33, 31)])
@pytest.mark.parametrize("background", [None, 0.99])
@pytest.mark.parametrize("scores", [False, True])
def test_a_picture_of_one_tile_is_segmented_as_ever(
    tmp_path: Path, size: tuple[int, int], background: float | None, scores: bool
) -> None:
    segmenter = tiny_segmenter(resize_scores=scores)
    prompts = four_colours(segmenter)
    whole = segmenter(noise(*size), prompts=prompts, background=background)
    options = TileOptions(Tiling(200), background)
    tiled = segment_large(segmenter, noise(*size), prompts, tmp_path, "one", options=options)
    labels = tifffile.imread(tmp_path / "one_labels.tif")
    assert np.array_equal(np.where(labels == 255, -1, labels.astype(int)), whole.labels)
    assert tiled.areas == pytest.approx(whole.areas)
    if not scores:  # where `Segmentation` takes the score of the resized logit all the same
        assert tiled.confidences == pytest.approx(whole.confidences, abs=1e-5)
    ours, theirs = tiled.to_dict(), whole.to_dict()
    assert set(ours) == {*theirs, "tile", "tile_overlap"}
    assert [entry["color"] for entry in ours["classes"]] == [entry["color"] for entry in theirs["classes"]]


@pytest.mark.parametrize("tiling", [Tiling(64, 0), Tiling(100, 0.5), Tiling(137, 0.1)])
@pytest.mark.parametrize("limit", [None, 2])
def test_flat_areas_do_not_know_where_tiles_end(tmp_path: Path, tiling: Tiling, limit: int | None) -> None:
    segmenter = tiny_segmenter(decode_classes=limit)
    options = TileOptions(tiling, batch_size=limit)
    segment_large(segmenter, quarters(320, 280), four_colours(segmenter), tmp_path, "a", options=options)
    labels = tifffile.imread(tmp_path / "a_labels.tif")
    expected = np.arange(4).reshape(2, 2).repeat(140, axis=0).repeat(160, axis=1)
    away = np.ones(labels.shape, dtype=bool)
    away[140 - 60 : 140 + 60] = False  # within a position or two of the encoder, two colours are mixed
    away[:, 160 - 60 : 160 + 60] = False
    assert (labels == expected)[away].all()


def test_the_files_are_labels_what_was_found_and_a_small_overlay(
    segmenter: Segmenter, prompts: PromptSet, tmp_path: Path
) -> None:
    quarters(2100, 400).save(tmp_path / "wide.tif", compression="tiff_lzw")
    result = segment_large(segmenter, tmp_path / "wide.tif", prompts, tmp_path / "out")
    assert [path.name for path in result.files] == ["wide_labels.tif", "wide_result.json", "wide_overlay.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in result.files}
    labels = tifffile.imread(result.files[0])
    content = json.loads(result.files[1].read_text())
    assert content == result.to_dict()
    assert (content["width"], content["height"], content["tile"]) == (2100, 400, 1024)
    for entry in content["classes"]:
        assert entry["area"] == pytest.approx((labels == entry["index"]).mean(), abs=1e-6)
        assert 0 < entry["confidence"] <= 1
    assert content["none"] == 0
    with Image.open(result.files[2]) as overlay:
        assert overlay.width == 1050  # 2100 pixels, two in one
        red, _, blue = overlay.getpixel((20, 190))
        assert red > blue
        red, _, blue = overlay.getpixel((1030, 10))
        assert blue > red
    assert segment_large(segmenter, quarters(90, 80), prompts, tmp_path, formats=("json",)).source is None


def test_many_classes_take_16_bits_and_none_is_the_largest_number(segmenter: Segmenter, tmp_path: Path) -> None:
    many = segmenter.prompts([f"thing {number}" for number in range(260)], bank=False)
    result = segment_large(segmenter, quarters(64, 90), many, tmp_path, "a", options=TileOptions(Tiling(64)))
    labels = tifffile.imread(tmp_path / "a_labels.tif")
    assert labels.dtype == np.uint16
    assert {many.names[index] for index in np.unique(labels)} == set(result.areas)
    nothing = TileOptions(Tiling(64), background=1.0)
    result = segment_large(segmenter, quarters(64, 64), many.select(many.names[:2]), tmp_path, "b", options=nothing)
    assert (tifffile.imread(tmp_path / "b_labels.tif") == 255).all()
    assert (result.areas, result.to_dict()["none"]) == ({}, 1)


@pytest.mark.parametrize("tiling", [Tiling(64), Tiling(100, 0.5)])
def test_interrupted_work_goes_on(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path, tiling: Tiling) -> None:
    for name in ("a", "b"):
        noise(150, 260).save(tmp_path / f"{name}.tif")
    tiles, done = segment_file(segmenter, prompts, tmp_path / "a.tif", tiling)
    assert done == tiles
    with pytest.raises(Stopped):
        segment_file(segmenter, prompts, tmp_path / "b.tif", tiling, tiles - 1)
    assert [path.name for path in tmp_path.glob("b_*")] == ["b_tiles.part"]
    assert segment_file(segmenter, prompts, tmp_path / "b.tif", tiling)[1] < tiles
    for ending in ("labels.tif", "overlay.png"):
        assert (tmp_path / f"a_{ending}").read_bytes() == (tmp_path / f"b_{ending}").read_bytes()
    assert not (tmp_path / "b_tiles.part").exists()


def test_other_work_begins_anew(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    path, tiling, tiles = tmp_path / "a.tif", Tiling(64), 12
    noise(70, 260).save(path)

    def after_a_stop(prompts: PromptSet, change: Callable[[], object] = lambda: None) -> int:
        """Stops before the last tile, changes something, and returns how many tiles are looked at then."""
        with pytest.raises(Stopped):
            segment_file(segmenter, four_colours(segmenter), path, tiling, tiles - 1)
        change()
        there, looked = segment_file(segmenter, prompts, path, tiling)
        assert there == tiles
        return looked

    def damage() -> None:  # a disk that lost something
        last = sorted((tmp_path / "a_tiles.part").glob("*.npz"))[-1]
        last.write_bytes(last.read_bytes()[:-40])

    assert after_a_stop(prompts) == tiles // 3  # of six rows the last, and the one above it for what they share
    assert after_a_stop(prompts.select(["red", "white"])) == tiles
    assert after_a_stop(prompts, damage) == tiles // 2  # so that one row more is looked at
    assert after_a_stop(prompts, lambda: noise(80, 260).save(path)) == tiles  # another picture of that name


def test_memory_is_that_of_a_strip(
    segmenter: Segmenter, prompts: PromptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "CACHE_BYTES", 200_000)  # by far less than the picture, as with larger ones
    peaks = []
    for height in (1024, 4096):
        path = write_black(tmp_path / f"{height}.tif", 256, height, 64)
        tracemalloc.start()
        options = TileOptions(Tiling(256))
        segment_large(segmenter, path, prompts, tmp_path, options=options, formats=("png", "json"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 300_000  # bytes; the pixels of 3072 rows more are 2.4 MB, their labels 0.8 MB


IN_A_PROCESS = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dpseg.large import tiff
from dpseg.large.grid import Tiling
from support.large_pictures import four_colours, segment_file
from support.tiny import tiny_segmenter
tiff.CACHE_BYTES = 10_000_000  # by far less than the picture, as with larger ones
segmenter = tiny_segmenter(Path.cwd() / "cache")
for name in sys.argv[3:]:
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    prompts, place = four_colours(segmenter), Path.cwd() / name
    looked = segment_file(segmenter, prompts, place, Tiling(1024), int(sys.argv[2]), kill, ("png", "json"))[1]
    print(looked, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say how much memory a process took")
def test_a_process_takes_the_memory_of_a_strip_and_a_kill_loses_a_row_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_black(Path("small.tif"), 1500, 1500, 512)
    write_black(Path("large.tif"), 4500, 4500, 512)
    columns = 6  # of 4500 pixels: ceil((4500 - 1024) / 768) + 1
    here = str(Path(__file__).parent)
    killed = python(IN_A_PROCESS, here, str(3 * columns + 2), "small.tif", "large.tif", check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("large_*")] == ["large_tiles.part"]
    looked, large = map(int, python(IN_A_PROCESS, here, "-1", "large.tif").stdout.split())
    assert looked == 4 * columns  # 3 rows were finished; the last of them is looked at for what it shares with the next
    labels = tifffile.imread("large_labels.tif")
    assert labels.shape == (4500, 4500)
    assert len(np.unique(labels)) == 1
    small = int(killed.stdout.split()[1])
    assert (large - small) / (1_000_000 if sys.platform == "darwin" else 1000) < 45  # MB; of its pixels there are 61


def test_what_cannot_be_is_refused(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    picture = quarters(90, 80)
    with pytest.raises(ConfigError, match="'coco' does not go with tiles; choose of png, json, overlay"):
        segment_large(segmenter, picture, prompts, tmp_path, formats=("coco",))
    for wrong in ({"background": 2.0}, {"size": 5}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="is out of range"):
            TileOptions(**wrong)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        segment_large(segmenter, picture, prompts, tmp_path / "file")


@pytest.fixture
def words(workplace: Path, model: str) -> tuple[str, ...]:
    """The options of the tiny model and two colours, in a folder with both.tif and both.jpg of 300 x 200 pixels."""
    halves(300, 200).save("both.tif", compression="tiff_deflate")
    halves(300, 200).save("both.jpg")
    return (*COLOUR_REFERENCES, "--model", model)


def test_the_command_segments_all_that_it_can_read(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.tif").write_bytes(Path("both.tif").read_bytes()[:-300])
    pictures = ("both.tif", "both.jpg", "broken.tif")
    assert run(["predict", *pictures, *words, "--tile", "100", "--tile-overlap", "0.3", "--out", "out"]) == 1
    captured = capsys.readouterr()
    assert "both.tif  300 x 200" in captured.out
    assert re.search(r"red +5\d\.\d%|red +4\d\.\d%", captured.out)
    assert "12/12 tiles" in captured.out
    assert "2 photos in" in captured.out
    assert "1 of 3 photos could not be read:\n  broken.tif: " in captured.err
    names = {path.name for path in Path("out").iterdir()}
    assert {f"both.{kind}_{ending}" for kind in ("tif", "jpg") for ending in ("labels.tif", "result.json")} <= names
    assert not [name for name in names if name.startswith("broken")]


def test_the_command_goes_on_after_a_full_disk(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("out: the disk is full; free some space or choose another folder")

    command = ["predict", "both.tif", *words, "--tile", "64", "--format", "json"]
    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "write_large", full)
        assert run(command) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert run(command) == 0
    assert "both.tif: 4 rows of tiles were finished before" in capsys.readouterr().out
    assert [path.name for path in Path("out").iterdir()] == ["both_result.json"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--tile", "10"), "tile 10 is out of range; give 64 to 8192 pixels of the picture"),
        (("--tile", "100", "--tile-overlap", "0.9"), "tile overlap 0.9 is out of range; give a share from 0 to 0.5"),
        (("--tile-overlap", "0.3"), "--tile-overlap 0.3 needs --tile"),
        (("--tile", "100", "--format", "npz"), "format 'npz' does not go with tiles; choose of png, json, overlay"),
        (("--tile", "100", "--refine"), "--refine does not go with --tile"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: tuple[str, ...], refused: Callable[..., str], more: tuple[str, ...], text: str
) -> None:
    assert refused("predict", "both.tif", *words, *more).startswith(f"dpseg: {text}")


def test_the_command_says_what_helps_with_a_huge_picture_and_what_is_missing(
    words: tuple[str, ...],
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tifffile.TiffWriter("huge.tif") as file:
        tiles = (b"" for _ in range(400))
        file.write(tiles, shape=(20_000, 20_000, 3), dtype=np.uint8, tile=(1008, 1008), compression="zlib")
    assert run(["predict", "huge.tif", *words]) == 1
    assert "dpseg predict --tile 1024" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert refused("predict", "both.jpg", *words, "--tile", "100").endswith("pip install 'dpseg[tiff]'\n")
