"""Folders, globs, lists, shards and addresses -> the same sorted pictures; and what is wrong with them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpseg.batch.manifest import PARTS, cut, finished_blocks, part_name
from dpseg.batch.pictures import open_item
from dpseg.batch.sources import Item, list_items
from dpseg.batch.store import Store
from dpseg.errors import ConfigError, ImageError
from support.pictures import encoded


def picture(value: int) -> bytes:
    return encoded(Image.new("L", (8, 6), value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a.jpg", "sub/a.jpg", ".hidden/c.png", "sub/.d.png", "notes.txt")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return tmp_path / "photos"


def keys(*sources: str | Path) -> list[str]:
    return [item.key for item in list_items([str(source) for source in sources])]


def values(items: list[Item]) -> dict[str, object]:
    return {item.key: open_item(item).getpixel((0, 0)) for item in items}


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_a_folder_a_glob_and_a_file(folder: Path) -> None:
    assert keys(folder) == ["a.jpg", "b.png", "sub/a.jpg"]
    assert keys(folder / "*.png") == ["b.png"]
    assert keys(folder / "**" / "*.jpg") == ["a.jpg", "sub/a.jpg"]
    assert keys(folder / "s*") == ["sub/a.jpg"]
    assert keys(folder / "b.png") == ["b.png"]
    assert keys(folder, folder / "b.png") == ["a.jpg", "b.png", "sub/a.jpg"]  # each once
    assert values(list_items([str(folder)])) == {"a.jpg": 1, "b.png": 0, "sub/a.jpg": 2}


def test_a_list_names_what_is_relative_to_it_absolute_or_an_address(folder: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/listed/m.png", picture(9))
    listed = folder / "some.txt"
    listed.write_text(f"sub/a.jpg\n\n{folder}/b.png\nmemory://listed/m.png\n../photos/a.jpg\n")
    items = list_items([str(listed)])
    absolute = f"{folder}/b.png".lstrip("/")
    assert values(items) == {absolute: 0, "listed/m.png": 9, "photos/a.jpg": 1, "sub/a.jpg": 2}


def test_a_shard_is_read_by_offsets(folder: Path) -> None:
    members = {"x/1.png": picture(11), "x/1.cls": b"3", "../../2.png": picture(12), "/3.png": picture(13)}
    shard(folder / "shard.tar", members)
    items = list_items([str(folder / "shard.tar")])
    assert values(items) == {"shard.tar/2.png": 12, "shard.tar/3.png": 13, "shard.tar/x/1.png": 11}
    assert keys(folder)[-1] == "sub/a.jpg"
    assert "shard.tar/x/1.png" in keys(folder)
    (folder / "shards.lst").write_text("shard.tar\n")
    assert list_items([str(folder / "shards.lst")]) == items


def test_addresses_of_fsspec(folder: Path) -> None:
    files = fsspec.filesystem("memory")
    for name, value in (("a.png", 1), ("deep/b.png", 2)):
        files.pipe_file(f"/addresses/{name}", picture(value))
    files.pipe_file("/addresses/s.tar", shard(folder / "s.tar", {"c.png": picture(3)}).read_bytes())
    everything = {"a.png": 1, "deep/b.png": 2, "s.tar/c.png": 3}
    assert values(list_items(["memory://addresses"])) == everything
    assert values(list_items(["memory://addresses/*.png"])) == {"a.png": 1}
    assert values(list_items([f"file://{folder}/sub"])) == {"a.jpg": 2}
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("in/d.png", picture(4))
    assert values(list_items([f"zip://in::{folder}/z.zip"])) == {"d.png": 4}


def test_results_are_not_taken_for_pictures(folder: Path) -> None:
    assert [item.key for item in list_items([str(folder)], without=str(folder / "sub"))] == ["a.jpg", "b.png"]


@given(
    st.lists(st.lists(st.sampled_from(["..", ".", "", "a", "B c", "é"]), max_size=5), min_size=1),
    st.sampled_from("/\\"),
)
def test_keys_stay_below_the_folder_of_the_results(folders: list[list[str]], slash: str) -> None:
    lines = [slash.join([*parts, f"{number}.png"]) for number, parts in enumerate(folders)]
    expected = []
    for number, parts in enumerate(folders):
        inside: list[str] = []
        for part in parts:
            if part == "..":
                inside = inside[:-1]  # not above the top
            elif part not in ("", "."):
                inside.append(part)
        expected.append("/".join([*inside, f"{number}.png"]))
    fsspec.filesystem("memory").pipe_file("/lists/some.txt", "\n".join(lines).encode())
    assert keys("memory://lists/some.txt") == sorted(expected)


@given(st.integers(0, 40), st.integers(1, 12))
def test_blocks_are_all_pictures_in_order_and_as_large_as_they_can_be(count: int, size: int) -> None:
    items = [Item(str(number), "") for number in range(count)]
    blocks = cut(items, size)
    assert [item for block in blocks for item in block] == items
    assert all(len(block) == size for block in blocks[:-1])
    assert all(0 < len(block) <= size for block in blocks)


@given(st.sets(st.integers(0, 10**8 - 1), max_size=5))
def test_a_finished_block_is_known_by_the_name_of_its_part(numbers: set[int]) -> None:
    store = Store("memory://finished")
    for name in [*(part_name(number) for number in numbers), f"{PARTS}/.part-00000001.parquet.tmp", f"{PARTS}/a.txt"]:
        store.write(name, b"")
    try:
        assert finished_blocks(store) == numbers
    finally:
        fsspec.filesystem("memory").rm("/finished", recursive=True)


def test_what_is_wrong_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    damaged = shard(tmp_path / "damaged.tar", {"1.png": picture(1), "2.png": picture(2), "3.png": picture(3)})
    data = bytearray(damaged.read_bytes())
    data[1024:1100] = b"?" * 76  # the second header
    damaged.write_bytes(data)
    cut = shard(tmp_path / "cut.tar", {"1.png": picture(1), "2.png": bytes(5000)})
    cut.write_bytes(cut.read_bytes()[:3000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jpg").write_bytes(picture(1))
    (tmp_path / "s.tar.gz").write_bytes(b"")
    for source, text in (
        (damaged, "is no tar file, or damaged"),
        (cut, "is no tar file, or damaged"),
        (tmp_path / "empty", "holds no pictures"),
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "s.tar.gz", "make a plain .tar"),
    ):
        with pytest.raises(ImageError, match=text):
            keys(source)
    with pytest.raises(ImageError, match=r"would both be called 'a\.jpg'"):
        keys(folder, tmp_path / "more")
    with pytest.raises(ConfigError, match="nosuch://x: is no address"):
        keys("nosuch://x")


def test_unreadable_pictures_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    whole = tmp_path / "s.tar"
    shard(whole, {"1.png": picture(1)})
    for item, text in (
        (Item("e", str(tmp_path / "empty.png")), "e: the file is empty"),
        (Item("t", str(tmp_path / "text.png")), "t: not a picture"),
        (Item("n", str(tmp_path / "none.png")), "n: no such file"),
        (Item("f", str(tmp_path)), "f: .* cannot be read"),
        (Item("s", str(whole), 512, 10**6), "s: .* ends before it"),
    ):
        with pytest.raises(ImageError, match=text) as caught:
            open_item(item)
        assert "\n" not in str(caught.value)
