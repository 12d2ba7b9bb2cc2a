"""`dpseg predict` with videos: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dpseg.cli import run
from dpseg.video import segment
from support.batch_photos import write_model
from support.clips import pictures_of, squares, write_clip, write_sound


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Model and prompts for red and blue."""
    model, prompts = write_model(tmp_path_factory.mktemp("model"))
    return ["--model", model, "--prompts", prompts]


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    write_clip(Path("clip.mp4"), squares(10))
    return "clip.mp4"


def test_a_clip(clip: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", clip, *options, "--out", "out", "--smooth", "0.3", "--refine", "sequence"]) == 0
    printed = capsys.readouterr()
    assert "clip.mp4  96 x 64" in printed.out
    assert "mean of 10 frames, the last at 0.90 s" in printed.out
    assert "10 frames in" in printed.out
    assert "json, overlay in out" in printed.out
    assert printed.err == ""
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip_frames.jsonl", "clip_overlay.mp4"]
    assert len(pictures_of(Path("out/clip_overlay.mp4"))) == 10
    lines = [json.loads(line) for line in Path("out/clip_frames.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert set(lines[0]) == {"frame", "time", "classes", "none"}
    assert set(lines[0]["classes"][0]) == {"name", "index", "area", "confidence"}


def test_several_clips_and_a_broken_one(clip: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_sound(Path("song.mp4"))
    write_clip(Path("cut.mkv"), squares(40, (192, 128)), crf=0)
    data = Path("cut.mkv").read_bytes()
    Path("cut.mkv").write_bytes(data[: len(data) // 2])
    assert run(["predict", "*.mp4", "cut.mkv", *options, "--out", "out", "--format", "json"]) == 1
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[2/3] cut.mkv: ")
    assert lines[0].endswith("what could be read is written")
    assert lines[1].startswith("[3/3] skipped: song.mp4: holds no video stream")
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip_frames.jsonl", "cut_frames.jsonl"]
    assert 10 < len(Path("out/cut_frames.jsonl").read_text().splitlines()) < 30


def test_what_an_earlier_run_wrote_is_no_input(
    clip: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", clip, *options]) == 0
    assert run(["predict", "**/*.mp4", *options]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip_frames.jsonl", "clip_overlay.mp4"]
    assert run(["predict", "out/clip_overlay.mp4", *options]) == 0  # it is named itself
    assert len(list(Path("out").iterdir())) == 4
    Path(clip).unlink()
    assert run(["predict", "**/*.mp4", *options]) == 2
    assert "matches only what lies in the output folder out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["photo.png"], "clip.mp4 is a video and photo.png is none; give videos and photos to a command each"),
        (["none.mp4"], "none.mp4: no such file"),
        (["--format", "npz"], "format 'npz' does not go with videos; choose of overlay, json, coco"),
        (["--format", "ovrlay"], "format 'ovrlay' is unknown; did you mean 'overlay'"),
        (["--tile", "512"], "--tile does not go with videos"),
        (["--smooth", "1"], "smooth 1.0 is out of range"),
        (["--size", "7"], "size 7 is out of range"),
    ],
)
def test_what_does_not_go_together(
    clip: str, options: list[str], capsys: pytest.CaptureFixture[str], more: list[str], what: str
) -> None:
    Image.new("RGB", (64, 64)).save("photo.png")
    assert run(["predict", clip, *options, *more]) == 2
    printed = capsys.readouterr()
    assert what in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not list(Path("out").glob("*"))


def test_smoothing_is_for_videos(clip: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save("photo.png")
    assert run(["predict", "photo.png", *options, "--smooth", "0.5"]) == 2
    assert "--smooth 0.5 is for videos, and these are photos" in capsys.readouterr().err


def test_an_interruption_leaves_nothing(clip: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = segment._write_line, []

    def stop(*arguments: object) -> None:
        calls.append(None)
        if len(calls) == 5:
            assert [path.suffix for path in Path("out").iterdir()] in ([".tmp"], [".tmp"] * 2)
            raise KeyboardInterrupt
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(segment, "_write_line", stop)
    assert run(["predict", clip, *options, "--out", "out"]) == 130
    assert len(calls) == 5
    assert list(Path("out").iterdir()) == []
