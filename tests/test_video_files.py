"""Videos as files: read upright and with their times, damaged ones as far as they go; written whole or not at all."""

from __future__ import annotations

import errno
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dpseg.errors import ImageError, MissingExtraError, OutputError
from dpseg.files import written_beside
from dpseg.video import movie as movie_module
from dpseg.video.clip import Frame, open_clip
from dpseg.video.movie import Movie
from dpseg.video.shots import shots
from support.clips import pictures_of, square, squares, write_clip, write_sound
from support.pictures import BLUE, GREEN, RED, Colour


def read(path: Path) -> tuple[list[Frame], str | None]:
    with open_clip(path) as clip:
        return list(clip.frames()), clip.problem


def near(image: Image.Image, at: tuple[int, int], colour: Colour) -> bool:
    return bool(np.abs(np.array(image.getpixel(at)) - colour).max() < 30)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a: b.mov"])
def test_frames_come_in_order_with_their_times(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, squares(24), Fraction(30000, 1001))
    with open_clip(path) as clip:
        assert clip.rate == Fraction(30000, 1001)
        assert abs(clip.expected - 24) <= 1
        frames = list(clip.frames())
        assert clip.problem is None
    assert [frame.number for frame in frames] == list(range(24))
    assert [frame.time for frame in frames] == pytest.approx([n * 1001 / 30000 for n in range(24)], abs=0.002)
    for frame in frames:
        assert frame.image.size == (96, 64)
        assert near(frame.image, (8 + 2 * frame.number % 48 + 16, 32), RED)
        assert near(frame.image, (2, 2), BLUE)


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_turned_clips_are_read_upright(tmp_path: Path, turn: int) -> None:
    upright = Image.new("RGB", (96, 64), BLUE)
    upright.paste(RED, (0, 0, 48, 32))  # the upper left quarter
    stored = upright.rotate(-turn, expand=True)
    path = write_clip(tmp_path / "a.mp4", [stored] * 5, turn=turn)
    assert pictures_of(path)[0].size == stored.size
    frames, problem = read(path)
    assert problem is None
    for frame in frames:
        assert frame.image.size == (96, 64)
        assert near(frame.image, (20, 14), RED)
        assert all(near(frame.image, at, BLUE) for at in ((70, 14), (20, 48), (70, 48)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_cut_off_clip_is_read_as_far_as_it_goes(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, squares(60, (192, 128)), crf=0)
    whole, problem = read(path)
    assert (len(whole), problem) == (60, None)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames, problem = read(path)
    assert 20 < len(frames) < 45
    if name != "a.ts":  # which nowhere says how long it is
        assert problem is not None
        assert problem.startswith(f"{path}: ")
        assert "\n" not in problem
        assert f"read up to {frames[-1].time + 0.1:.2f} s" in problem
    if name == "a.mp4":  # damage in its middle is passed over
        path.write_bytes(data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :])
        frames, problem = read(path)
        assert len(frames) > 45
        assert frames[-1].time > 5.5
        assert problem is not None
        assert "damaged in" in problem


def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    write_sound(tmp_path / "song.mp4")
    for name, what in (
        ("text.mp4", "cannot be opened as a video"),
        ("empty.mp4", "cannot be opened as a video"),
        ("song.mp4", "holds no video stream; give a file with pictures in it"),
        ("none.mp4", "no such file"),
    ):
        with pytest.raises(ImageError, match=what) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[video\]'"):
        read(tmp_path / "text.mp4")


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_movie_keeps_size_rate_times_and_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    import av

    monkeypatch.setattr(movie_module, "_CODECS", {codec: movie_module._CODECS[codec]})
    times = [0.0, 0.1, 0.2, 0.7, 0.8, 0.8, 0.75]
    with Movie(tmp_path / "a.mp4", Fraction(10), (97, 65)) as movie:
        for number, time in enumerate(times):
            movie.add(square(number, (97, 65)), time)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert [stream.type for stream in file.streams] == ["video"]
        frames = list(file.decode(video=0))
    later = [0.8, 0.8]  # times that stand still, or go back, are told apart
    assert [frame.time for frame in frames] == pytest.approx([*times[:5], *later], abs=1e-3)
    for number, frame in enumerate(frames):
        picture = frame.to_image()
        assert picture.size == (96, 64)
        assert near(picture, (2, 2), BLUE)
        assert near(picture, (8 + 2 * number + 16, 32), RED)


@pytest.mark.parametrize("full", [False, True])
def test_a_movie_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    place = tmp_path / "a.mp4"
    place.write_text("old")

    def fail(*packets: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with written_beside(place) as temporary, Movie(temporary, Fraction(10), (64, 64)) as movie:
            for number in range(40):
                movie.add(square(number, (64, 64)), number / 10)
            assert temporary.exists()
            if not full:
                raise KeyboardInterrupt
            monkeypatch.setattr(movie, "_file", SimpleNamespace(mux=fail, close=fail))
            movie.add(square(0, (64, 64)), 4.0)

    expected = OutputError if full else KeyboardInterrupt
    with pytest.raises(expected, match="the disk is full; free some space" if full else None):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert place.read_text() == "old"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), written_beside(tmp_path / "none" / "a.mp4") as path:
        Movie(path, Fraction(10), (64, 64))


def test_shots_end_at_cuts_and_not_at_movement() -> None:
    green = [Image.new("RGB", (96, 64), GREEN)] * 3
    frames = [Frame(n, n / 10, image) for n, image in enumerate([*squares(20), *green, *squares(4)])]
    parts = [[frame.number for frame in shot] for shot in shots(frames)]
    assert parts == [list(range(20)), [20, 21, 22], [23, 24, 25, 26]]
    assert list(shots([])) == []
