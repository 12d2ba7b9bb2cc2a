"""Prompt sets of any classes, with words, pictures or both: kept in files, reordered, and given other pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from dpseg.errors import OutputError, PromptError
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet, VisualPrompts
from support.strategies import class_names

D, STAGES, M = 8, (3, 4, 5), 3
TEXT, PICTURES = ("text",), ("reference",)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def pictures_of(names: tuple[str, ...], prompts: int = 1) -> VisualPrompts:
    s2, s3, s4 = (unit(len(names), prompts, width) for width in STAGES)
    return VisualPrompts(names, unit(len(names), prompts, D), (s2, s3, s4))


def made(names: tuple[str, ...], sources: tuple[tuple[str, ...], ...], prompts: int = 1, **more: Any) -> PromptSet:
    """A set whose classes have the words or pictures that their sources say."""
    has_text, has_visual = (torch.tensor([kind in one for one in sources]) for kind in ("text", "reference"))
    drawn = pictures_of(names, prompts)
    s2, s3, s4 = (stage * has_visual[:, None, None] for stage in drawn.stages)
    visual, text = drawn.visual * has_visual[:, None, None], unit(len(names), M, D) * has_text[:, None, None]
    embeddings = PromptEmbeddings(text, visual, (s2, s3, s4), has_text, has_visual, **more)
    return PromptSet(names, embeddings, "tiny-1 猫", sources)


def make_set(prompts: int = 1) -> PromptSet:
    return made(("cat", "couch", "wall"), (TEXT + PICTURES, TEXT, TEXT + PICTURES), prompts)


@st.composite
def prompt_sets(draw: st.DrawFn) -> PromptSet:
    """Sets of text only, pictures only or both, with one picture prompt a class or one a template."""
    names = draw(class_names())
    sources = tuple(draw(st.sampled_from([TEXT, PICTURES, TEXT + PICTURES])) for _ in names)
    adjustment = draw(st.sampled_from([None, torch.randn(len(names))]))
    prompts = made(names, sources, draw(st.sampled_from([1, M])), adjustment=adjustment)
    return prompts if draw(st.booleans()) else dataclasses.replace(prompts, sources=())


def assert_same(one: PromptSet, other: PromptSet) -> None:
    assert (one.names, one.encoder, one.sources) == (other.names, other.encoder, other.sources)
    mine, theirs = one.embeddings.tensors(), other.embeddings.tensors()
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@given(prompts=prompt_sets(), half=st.booleans())
@settings(max_examples=40)
def test_save_and_load_give_the_same(prompts: PromptSet, half: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    if half:
        embeddings = prompts.embeddings.map(lambda tensor: tensor if tensor.dtype == torch.bool else tensor.half())
        prompts = prompts.with_embeddings(embeddings)
    path = prompts.save(tmp_path_factory.mktemp("sets") / "set.safetensors")
    assert_same(PromptSet.load(path), prompts)
    assert [*path.parent.iterdir()] == [path]


def test_save_takes_views_and_shared_memory(tmp_path: Path) -> None:
    e = make_set().embeddings
    shared = dataclasses.replace(e, text=e.text[:, :1].expand(-1, M, -1), has_visual=e.has_text)
    prompts = make_set().with_embeddings(shared)
    assert_same(PromptSet.load(prompts.save(tmp_path / "set.safetensors")), prompts)


def test_save_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        make_set().save(tmp_path / "nowhere" / "set.safetensors")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_load_of_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = make_set().save(tmp_path / "set.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(PromptError, match=rf"^{path}: cannot be read") as caught:
        PromptSet.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (None, "not 'prompts'"),
        ('{"kind": "prompts", "version": 99}', "version 99"),
        ('{"kind": "prompts", "version": 1, "names": ["a"]}', "no complete prompt set"),
    ],
)
def test_load_of_what_is_no_prompt_set_is_refused(tmp_path: Path, head: str | None, said: str) -> None:
    path = tmp_path / "set.safetensors"
    with pytest.raises(PromptError, match="no such file"):
        PromptSet.load(path)
    save_file({"text": torch.zeros(2)}, path, metadata=None if head is None else {"dpseg": head})
    with pytest.raises(PromptError, match=said):
        PromptSet.load(path)


def test_load_of_rows_that_do_not_match_the_names_is_refused(tmp_path: Path) -> None:
    short = dataclasses.replace(make_set(), names=("cat", "dog"))
    with pytest.raises(PromptError, match="2 classes"):
        PromptSet.load(short.save(tmp_path / "set.safetensors"))


@given(prompts=prompt_sets(), data=st.data())
@settings(max_examples=30)
def test_select_keeps_the_order_asked_for_and_every_row(prompts: PromptSet, data: st.DataObject) -> None:
    count = len(prompts)
    order = data.draw(st.permutations(range(count)))[: data.draw(st.integers(1, count))]
    chosen = prompts.select([prompts.names[k] for k in order])
    assert len(chosen) == len(order)
    sources = tuple(prompts.sources[k] for k in order) if prompts.sources else ()
    rows = prompts.embeddings.map(lambda tensor: tensor[order])
    assert_same(chosen, PromptSet(tuple(prompts.names[k] for k in order), rows, prompts.encoder, sources))


@pytest.mark.parametrize(
    ("names", "problem"),
    [([], "no classes selected"), (["cot"], "did you mean 'cat'"), (["cat", "cat"], "stands twice")],
)
def test_select_refuses(names: list[str], problem: str) -> None:
    with pytest.raises(PromptError, match=problem):
        make_set().select(names)


@given(prompts=prompt_sets(), count=st.sampled_from([1, M]), data=st.data())
@settings(max_examples=40)
def test_replace_changes_only_the_pictures_of_the_named_classes(
    prompts: PromptSet, count: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(prompts))))[: data.draw(st.integers(0, len(prompts)))]
    new = pictures_of(tuple(prompts.names[k] for k in order), count)
    before = prompts.embeddings.map(Tensor.clone)
    old, e = prompts.embeddings, (replaced := prompts.replace(visual=new)).embeddings
    assert_same(prompts.with_embeddings(before), prompts)  # the set itself stays as it was
    rest = [k for k in range(len(prompts)) if k not in order]
    for was, put, now in zip((old.visual, *old.stages), (new.visual, *new.stages), (e.visual, *e.stages), strict=True):
        repeated = max(was.shape[1], count)  # the side that has one prompt is repeated
        assert now.shape == (len(prompts), repeated, was.shape[2])
        assert torch.equal(now[order], put.expand(-1, repeated, -1))
        assert torch.equal(now[rest], was[rest].expand(-1, repeated, -1))
    assert torch.equal(e.text, old.text)
    assert torch.equal(e.has_text, old.has_text)
    assert e.has_visual.tolist() == [bool(old.has_visual[k]) or k in order for k in range(len(prompts))]
    words = [TEXT if has else () for has in old.has_text.tolist()]
    kept = prompts.sources or words
    assert [*replaced.sources] == [(*words[k], "crop") if k in order else kept[k] for k in range(len(prompts))]


def test_replace_refuses_unknown_classes_and_other_shapes() -> None:
    with pytest.raises(PromptError, match="did you mean 'couch'"):
        make_set().replace(visual=pictures_of(("coach",)))
    with pytest.raises(PromptError, match="do not fit"):
        make_set(prompts=4).replace(visual=pictures_of(("couch",), prompts=3))
