"""Large pictures from end to end with the tiny encoder: tiles and whole, interruptions, the command."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dpseg.cli import run
from dpseg.errors import ConfigError, OutputError
from dpseg.large.grid import Tiling
from dpseg.large.result import LargeSegmentation
from dpseg.large.segment import LargeRun, TileOptions, segment_large
from dpseg.large.windows import open_windows
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from support.large_pictures import COLOURS, CONFIG, make_segmenter, prompts_of


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return make_segmenter(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def prompts(segmenter: Segmenter) -> PromptSet:
    return prompts_of(segmenter)


def quarters(width: int, height: int) -> Image.Image:
    """Four flat areas, a colour each."""
    picture = Image.new("RGB", (width, height))
    red, blue, green, white = COLOURS.values()
    picture.paste(red, (0, 0, width // 2, height // 2))
    picture.paste(blue, (width // 2, 0, width, height // 2))
    picture.paste(green, (0, height // 2, width // 2, height))
    picture.paste(white, (width // 2, height // 2, width, height))
    return picture


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


@pytest.mark.parametrize("size", [(170, 120), (64, 200), (33, 31)])
@pytest.mark.parametrize("background", [None, 0.99])
@pytest.mark.parametrize("scores", [False, True])
def test_a_picture_of_one_tile_is_segmented_as_ever(
    tmp_path: Path, size: tuple[int, int], background: float | None, scores: bool
) -> None:
    segmenter = make_segmenter(tmp_path / "cache", dataclasses.replace(CONFIG, resize_scores=scores))
    prompts = prompts_of(segmenter)
    whole = segmenter(noise(*size), prompts=prompts, refine=False, background=background)
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
    segmenter = make_segmenter(tmp_path / "cache", dataclasses.replace(CONFIG, decode_classes=limit))
    picture = quarters(420, 380)
    options = TileOptions(tiling, batch_size=limit)
    segment_large(segmenter, picture, prompts_of(segmenter), tmp_path, "a", options=options)
    labels = tifffile.imread(tmp_path / "a_labels.tif")
    expected = np.empty((380, 420), dtype=int)
    expected[:190, :210], expected[:190, 210:], expected[190:, :210], expected[190:, 210:] = 0, 1, 2, 3
    away = np.ones(labels.shape, dtype=bool)
    away[190 - 60 : 190 + 60] = False  # within a position or two of the encoder, two colours are mixed
    away[:, 210 - 60 : 210 + 60] = False
    assert (labels == expected)[away].all()


def test_the_files(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    quarters(3000, 500).save(tmp_path / "wide.tif", compression="tiff_lzw")
    result = segment_large(segmenter, tmp_path / "wide.tif", prompts, tmp_path / "out")
    assert [path.name for path in result.files] == ["wide_labels.tif", "wide_result.json", "wide_overlay.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in result.files}
    labels = tifffile.imread(result.files[0])
    content = json.loads(result.files[1].read_text())
    assert content == result.to_dict()
    assert (content["width"], content["height"], content["tile"]) == (3000, 500, 1024)
    for entry in content["classes"]:
        assert entry["area"] == pytest.approx((labels == entry["index"]).mean(), abs=1e-6)
        assert 0 < entry["confidence"] <= 1
    assert content["none"] == 0
    with Image.open(result.files[2]) as overlay:
        assert overlay.width == 1500  # 3000 pixels, two in one
        red, _, blue = overlay.getpixel((20, 240))
        assert red > blue
        red, _, blue = overlay.getpixel((1480, 10))
        assert blue > red
    assert segment_large(segmenter, quarters(90, 80), prompts, tmp_path, formats=("json",)).source is None


def test_many_classes_take_16_bits(segmenter: Segmenter, tmp_path: Path) -> None:
    many = segmenter.prompts([f"thing {number}" for number in range(260)], bank=False)
    result = segment_large(segmenter, quarters(64, 90), many, tmp_path, "a", options=TileOptions(Tiling(64)))
    labels = tifffile.imread(tmp_path / "a_labels.tif")
    assert labels.dtype == np.uint16
    assert {many.names[index] for index in np.unique(labels)} == set(result.areas)
    nothing = TileOptions(Tiling(64), background=1.0)
    result = segment_large(segmenter, quarters(64, 64), many.select(many.names[:2]), tmp_path, "b", options=nothing)
    assert (tifffile.imread(tmp_path / "b_labels.tif") == 255).all()
    assert (result.areas, result.to_dict()["none"]) == ({}, 1)


class Stopped(Exception):
    pass


def segment(segmenter: Segmenter, prompts: PromptSet, path: Path, tiling: Tiling, stop: int = -1) -> tuple[int, int]:
    """Segments a file into its own folder; returns the tiles and those that were looked at."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done == stop:
            raise Stopped

    with open_windows(path) as picture:
        place = path.parent, path.stem
        run = LargeRun(segmenter, picture, path, prompts, place, TileOptions(tiling), ("png", "json", "overlay"))
        found: LargeSegmentation = run.segment(advance)
        assert sum(found.counts) == picture.width * picture.height
        assert done == run.tiles_left
    return run.tiles, done


@pytest.mark.parametrize("tiling", [Tiling(64), Tiling(100, 0.5)])
def test_interrupted_work_goes_on(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path, tiling: Tiling) -> None:
    for name in ("a", "b"):
        noise(150, 260).save(tmp_path / f"{name}.tif")
    tiles, done = segment(segmenter, prompts, tmp_path / "a.tif", tiling)
    assert done == tiles
    with pytest.raises(Stopped):
        segment(segmenter, prompts, tmp_path / "b.tif", tiling, stop=tiles - 1)
    assert not (tmp_path / "b_labels.tif").exists()
    assert (tmp_path / "b_tiles.part").is_dir()
    _, left = segment(segmenter, prompts, tmp_path / "b.tif", tiling)
    assert left < tiles
    for ending in ("labels.tif", "overlay.png"):
        assert (tmp_path / f"a_{ending}").read_bytes() == (tmp_path / f"b_{ending}").read_bytes()
    assert not (tmp_path / "b_tiles.part").exists()


def test_other_work_begins_anew(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    noise(150, 260).save(path)
    tiles, _ = segment(segmenter, prompts, path, Tiling(64))

    def after_a_stop(prompts: PromptSet, tiling: Tiling) -> int:
        with pytest.raises(Stopped):
            segment(segmenter, prompts_of(segmenter), path, Tiling(64), stop=tiles - 1)
        return segment(segmenter, prompts, path, tiling)[1]

    assert after_a_stop(prompts, Tiling(64)) < tiles
    assert after_a_stop(prompts.select(["red", "white"]), Tiling(64)) == tiles
    with pytest.raises(Stopped):
        segment(segmenter, prompts, path, Tiling(64), stop=tiles - 1)
    last = sorted((tmp_path / "a_tiles.part").glob("*.npz"))[-1]
    last.write_bytes(last.read_bytes()[:-40])  # a disk that lost something
    assert segment(segmenter, prompts, path, Tiling(64))[1] == tiles // 2  # so that one row more is looked at
    with pytest.raises(Stopped):
        segment(segmenter, prompts, path, Tiling(64), stop=tiles - 1)
    noise(160, 260).save(path)  # another picture of that name
    now, looked = segment(segmenter, prompts, path, Tiling(64))
    assert looked == now


def test_what_cannot_be(segmenter: Segmenter, prompts: PromptSet, tmp_path: Path) -> None:
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
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, two colour samples and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    DPSeg(CONFIG).save_pretrained(tmp_path / "tiny")
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), COLOURS[name]).save(f"{name}.png")
    picture = Image.new("RGB", (300, 200), COLOURS["red"])
    picture.paste(COLOURS["blue"], (150, 0, 300, 200))
    picture.save("both.tif", compression="tiff_deflate")
    picture.save("both.jpg")
    return tmp_path


WORDS = ("--ref", "red=red.png", "--ref", "blue=blue.png", "--model", "tiny")


def test_the_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.tif").write_bytes(Path("both.tif").read_bytes()[:-300])
    pictures = ("both.tif", "both.jpg", "broken.tif")
    assert run(["predict", *pictures, *WORDS, "--tile", "100", "--tile-overlap", "0.3", "--out", "out"]) == 1
    captured = capsys.readouterr()
    assert "both.tif  300 x 200" in captured.out
    assert re.search(r"red +5\d\.\d%|red +4\d\.\d%", captured.out)
    assert "12/12 tiles" in captured.out
    assert "2 photos in" in captured.out
    assert "1 of 3 photos could not be read:\n  broken.tif: " in captured.err
    names = {path.name for path in Path("out").iterdir()}
    assert {f"both.{kind}_{ending}" for kind in ("tif", "jpg") for ending in ("labels.tif", "result.json")} <= names
    assert not [name for name in names if name.startswith("broken")]


def test_the_command_goes_on(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpseg.large import segment as module

    def full(*arguments: object) -> None:
        raise OutputError("out: the disk is full; free some space or choose another folder")

    command = ["predict", "both.tif", *WORDS, "--tile", "64", "--format", "json"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_large", full)
        assert run(command) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert run(command) == 0
    assert "both.tif: 4 rows of tiles were finished before" in capsys.readouterr().out
    assert [path.name for path in Path("out").iterdir()] == ["both_result.json"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--tile", "10"), "tile 10 is out of range; give 64 to 8192 pixels of the picture"),
        (("--tile", "100", "--tile-overlap", "0.9"), "tile overlap 0.9 is out of range; give a share from 0 to 0.5"),
        (("--tile-overlap", "0.3"), "--tile-overlap 0.3 needs --tile"),
        (("--tile", "100", "--format", "npz"), "format 'npz' does not go with tiles; choose of png, json, overlay"),
        (("--tile", "100", "--refine"), "--refine does not go with --tile"),
    ],
)
def test_the_command_refuses(
    workplace: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], text: str
) -> None:
    assert run(["predict", "both.tif", *WORDS, *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"dpseg: {text}")
    assert captured.err.count("\n") == 1


def test_the_command_without_the_extra(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert run(["predict", "both.jpg", *WORDS, "--tile", "100"]) == 2
    assert capsys.readouterr().err.endswith("pip install 'dpseg[tiff]'\n")


def test_a_huge_picture_without_tiles_is_one_line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tifffile.TiffWriter("huge.tif") as file:
        tiles = (b"" for _ in range(400))
        file.write(tiles, shape=(20_000, 20_000, 3), dtype=np.uint8, tile=(1008, 1008), compression="zlib")
    assert run(["predict", "huge.tif", *WORDS]) == 1
    assert "dpseg predict --tile 1024" in capsys.readouterr().err
