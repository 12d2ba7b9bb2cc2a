"""`dpseg predict` with videos: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpseg.cli import run
from dpseg.video import segment
from support.clips import pictures_of, squares, write_clip, write_sound
from support.pictures import COLOUR_REFERENCES

BOTH = "photos/both.png"


@pytest.fixture
def options(workplace: Path, model: str) -> tuple[str, ...]:
    """Model and prompts for red and blue, in a folder with clip.mp4 of 10 frames."""
    write_clip(workplace / "clip.mp4", squares(10))
    return ("--model", model, *COLOUR_REFERENCES)


def written() -> list[str]:
    return sorted(path.name for path in Path("out").glob("*"))


def test_a_clip_becomes_a_movie_and_a_line_for_each_frame(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "clip.mp4", *options, "--out", "out", "--smooth", "0.3", "--refine", "sequence"]) == 0
    printed = capsys.readouterr()
    assert "clip.mp4  96 x 64" in printed.out
    assert "mean of 10 frames, the last at 0.90 s" in printed.out
    assert "10 frames in" in printed.out
    assert "json, overlay in out" in printed.out
    assert printed.err == ""
    assert written() == ["clip_frames.jsonl", "clip_overlay.mp4"]
    assert len(pictures_of(Path("out/clip_overlay.mp4"))) == 10
    lines = [json.loads(line) for line in Path("out/clip_frames.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert set(lines[0]) == {"frame", "time", "classes", "none"}
    assert set(lines[0]["classes"][0]) == {"name", "index", "area", "confidence"}


def test_of_several_clips_a_broken_one_is_read_as_far_as_it_goes_and_a_song_is_skipped(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_sound(Path("song.mp4"))
    data = write_clip(Path("cut.mkv"), squares(40, (192, 128)), crf=0).read_bytes()
    Path("cut.mkv").write_bytes(data[: len(data) // 2])
    assert run(["predict", "*.mp4", "cut.mkv", *options, "--out", "out", "--format", "json"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[2/3] cut.mkv: ")
    assert lines[0].endswith("what could be read is written")
    assert lines[1].startswith("[3/3] skipped: song.mp4: holds no video stream")
    assert written() == ["clip_frames.jsonl", "cut_frames.jsonl"]
    assert 10 < len(Path("out/cut_frames.jsonl").read_text().splitlines()) < 30


def test_what_an_earlier_run_wrote_is_no_input(options: tuple[str, ...], refused: Callable[..., str]) -> None:
    for _ in range(2):
        assert run(["predict", "**/*.mp4", *options]) == 0
        assert written() == ["clip_frames.jsonl", "clip_overlay.mp4"]
    assert run(["predict", "out/clip_overlay.mp4", *options]) == 0  # it is named itself
    assert len(written()) == 4
    Path("clip.mp4").unlink()
    assert "matches only what lies in the output folder out" in refused("predict", "**/*.mp4", *options)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("clip.mp4", BOTH), f"clip.mp4 is a video and {BOTH} is none; give videos and photos to a command each"),
        (("clip.mp4", "none.mp4"), "none.mp4: no such file"),
        (("clip.mp4", "--format", "npz"), "format 'npz' does not go with videos; choose of overlay, json, coco"),
        (("clip.mp4", "--format", "ovrlay"), "format 'ovrlay' is unknown; did you mean 'overlay'"),
        (("clip.mp4", "--tile", "512"), "--tile does not go with videos"),
        (("clip.mp4", "--smooth", "1"), "smooth 1.0 is out of range"),
        (("clip.mp4", "--size", "7"), "size 7 is out of range"),
        ((BOTH, "--smooth", "0.5"), "--smooth 0.5 is for videos, and these are photos"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: tuple[str, ...], refused: Callable[..., str], arguments: tuple[str, ...], what: str
) -> None:
    assert what in refused("predict", *arguments, *options)
    assert written() == []


def test_an_interruption_leaves_nothing(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = segment._write_line, []

    def stop(*arguments: object) -> None:
        calls.append(None)
        if len(calls) == 5:
            assert [path.suffix for path in Path("out").iterdir()] in ([".tmp"], [".tmp"] * 2)
            raise KeyboardInterrupt
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(segment, "_write_line", stop)
    assert run(["predict", "clip.mp4", *options, "--out", "out"]) == 130
    assert len(calls) == 5
    assert list(Path("out").iterdir()) == []
