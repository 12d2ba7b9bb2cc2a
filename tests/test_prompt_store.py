"""Prompt sets that a server keeps: bounded in memory and on the disk, and found by nothing but their ids."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet
from dpseg.serving.problems import RequestError
from dpseg.serving.prompt_store import PromptMemory, PromptStore, size_of

SIZE = 5 * 16 + 2
KEYS = [f"{number:032x}" for number in range(6)]


def prompt_set(name: str, classes: int = 1) -> PromptSet:
    """A set whose class is called by the name and "0", of `SIZE` bytes a class."""
    rows, flags = torch.zeros(classes, 1, 4), torch.ones(classes, dtype=torch.bool)
    embeddings = PromptEmbeddings(rows, rows, (rows, rows, rows), flags, flags)
    return PromptSet(tuple(f"{name}{number}" for number in range(classes)), embeddings, "tiny", (("text",),) * classes)


def save(store: PromptStore, *keys: str) -> None:
    for key in keys:
        store.save(key, prompt_set(key))


def test_what_was_not_used_for_longest_makes_room_in_memory() -> None:
    assert size_of(prompt_set("a", classes=3)) == 3 * size_of(prompt_set("a")) == 3 * SIZE
    memory = PromptMemory(3 * SIZE)

    for key in "abc":
        memory.put(key, prompt_set(key))
    assert memory.get("a") is not None
    memory.put("d", prompt_set("d"))
    assert [key for key in "abcd" if memory.get(key) is not None] == ["a", "c", "d"]
    memory.put("large", prompt_set("large", classes=4))
    assert [key for key in ("a", "c", "d", "large") if memory.get(key) is not None] == ["a", "c", "d"]
    memory.put("e", prompt_set("e", classes=2))
    assert [key for key in "acde" if memory.get(key) is not None] == ["d", "e"]
    memory.put("e", prompt_set("e"))  # in place of the larger one
    memory.put("f", prompt_set("f"))
    assert len(memory) == 3


def test_without_a_folder_sets_are_in_memory_only() -> None:
    store = PromptStore(PromptMemory(2 * SIZE), None, 10)
    save(store, *KEYS[:3])
    assert store.get(KEYS[2]).names == (f"{KEYS[2]}0",)
    with pytest.raises(RequestError, match="or no longer") as gone:
        store.get(KEYS[0])
    assert gone.value.status == 404


def test_the_folder_keeps_what_memory_does_not(tmp_path: Path) -> None:
    store = PromptStore(PromptMemory(SIZE), tmp_path / "kept", 10)
    save(store, *KEYS[:3])
    again = PromptStore(PromptMemory(SIZE), tmp_path / "kept", 10)
    for one in (store, again):
        assert [one.get(key).names for key in KEYS[:3]] == [(f"{key}0",) for key in KEYS[:3]]


def test_requests_cannot_fill_the_disk(tmp_path: Path) -> None:
    prompt_set("mine").save(tmp_path / "mine.safetensors")
    (tmp_path / "notes.txt").write_text("mine too")
    for number, key in enumerate(KEYS[:2]):
        path = prompt_set(key).save(tmp_path / f"{key}.safetensors")
        os.utime(path, (100 - number, 100 - number))  # the second is the older one
    store = PromptStore(PromptMemory(SIZE), tmp_path, 3)
    save(store, KEYS[2], KEYS[3], KEYS[3])  # the last is known already, so nothing has to go
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"mine.safetensors", "notes.txt", *(f"{KEYS[number]}.safetensors" for number in (0, 2, 3))}
    assert store.get("mine").names == ("mine0",)
    with pytest.raises(RequestError):
        store.get(KEYS[1])


def test_an_id_is_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    store = PromptStore(PromptMemory(SIZE), folder, 3)
    prompt_set("secret").save(tmp_path / "secret.safetensors")
    prompt_set("late").save(folder / "late.safetensors")
    for key in ("../secret", str(tmp_path / "secret"), "secret", "late", "", ".", "\0"):
        with pytest.raises(RequestError):
            store.get(key)


def test_a_damaged_file_is_the_operator_s_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"not safe")
    store = PromptStore(PromptMemory(SIZE), tmp_path, 3)
    with caplog.at_level(logging.WARNING), pytest.raises(RequestError) as refused:
        store.get("damaged")
    assert str(tmp_path) not in str(refused.value)
    assert str(tmp_path) in caplog.text
