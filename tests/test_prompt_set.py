from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dpseg.errors import OutputError, PromptError
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet, VisualPrompts

D, STAGES, M = 8, (3, 4, 5), 2
NAMES = ("cat", "couch", "wall")


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def make_set(prompts: int = 1) -> PromptSet:
    torch.manual_seed(0)
    has_visual = torch.tensor([True, False, True])
    visual = unit(3, prompts, D) * has_visual[:, None, None]
    s2, s3, s4 = (unit(3, prompts, width) * has_visual[:, None, None] for width in STAGES)
    embeddings = PromptEmbeddings(
        text=unit(3, M, D), visual=visual, stages=(s2, s3, s4), has_text=torch.ones(3).bool(), has_visual=has_visual
    )
    return PromptSet(NAMES, embeddings, "tiny-1", (("text", "bank"), ("text",), ("text", "reference")))


def make_visual(names: tuple[str, ...], prompts: int = 1) -> VisualPrompts:
    count = len(names)
    s2, s3, s4 = (unit(count, prompts, width) for width in STAGES)
    return VisualPrompts(names, unit(count, prompts, D), (s2, s3, s4))


def tensors(prompts: PromptSet) -> list[torch.Tensor]:
    e = prompts.embeddings
    return [e.text, e.visual, *e.stages, e.has_text, e.has_visual]


def test_save_and_load_give_the_same(tmp_path: Path) -> None:
    saved = make_set()
    loaded = PromptSet.load(saved.save(tmp_path / "set.safetensors"))
    assert (loaded.names, loaded.encoder, loaded.sources) == (saved.names, saved.encoder, saved.sources)
    for before, after in zip(tensors(saved), tensors(loaded), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]


def test_save_takes_views_and_shared_memory(tmp_path: Path) -> None:
    base = make_set()
    e = base.embeddings
    shared = base.with_embeddings(
        PromptEmbeddings(e.text[:, :1].expand(-1, M, -1), e.visual, e.stages, e.has_text, e.has_text)
    )
    loaded = PromptSet.load(shared.save(tmp_path / "set.safetensors"))
    assert torch.equal(loaded.embeddings.text[:, 1], e.text[:, 0])


def test_save_keeps_half_precision(tmp_path: Path) -> None:
    half = make_set()
    half = half.with_embeddings(half.embeddings.map(lambda t: t if t.dtype == torch.bool else t.half()))
    assert PromptSet.load(half.save(tmp_path / "set.safetensors")).embeddings.text.dtype == torch.float16


def test_names_in_any_script(tmp_path: Path) -> None:
    prompts = make_set()
    named = PromptSet(("猫", 'a "b"', "wall"), prompts.embeddings, prompts.encoder, prompts.sources)
    assert PromptSet.load(named.save(tmp_path / "set.safetensors")).names == named.names


def test_save_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        make_set().save(tmp_path / "nowhere" / "set.safetensors")


def test_load_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such file"):
        PromptSet.load(tmp_path / "set.safetensors")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_load_of_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = make_set().save(tmp_path / "set.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(PromptError, match="cannot be read") as caught:
        PromptSet.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_of_other_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(PromptError, match="not 'prompts'"):
        PromptSet.load(path)


def test_load_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    save_file({"text": torch.zeros(2)}, path, metadata={"dpseg": '{"kind": "prompts", "version": 99}'})
    with pytest.raises(PromptError, match="version 99"):
        PromptSet.load(path)


def test_load_of_an_incomplete_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    save_file({"text": torch.zeros(2)}, path, metadata={"dpseg": '{"kind": "prompts", "version": 1, "names": ["a"]}'})
    with pytest.raises(PromptError, match="no complete prompt set"):
        PromptSet.load(path)


def test_load_of_rows_that_do_not_match_the_names_is_refused(tmp_path: Path) -> None:
    prompts = make_set()
    short = PromptSet(("cat", "dog"), prompts.embeddings, prompts.encoder, prompts.sources)
    with pytest.raises(PromptError, match="2 classes"):
        PromptSet.load(short.save(tmp_path / "set.safetensors"))


def test_select_keeps_the_order_asked_for() -> None:
    prompts = make_set()
    chosen = prompts.select(["wall", "cat"])
    assert chosen.names == ("wall", "cat")
    assert chosen.sources == (("text", "reference"), ("text", "bank"))
    for before, after in zip(tensors(prompts), tensors(chosen), strict=True):
        assert torch.equal(after, before[[2, 0]])


@pytest.mark.parametrize(
    ("names", "problem"),
    [([], "no classes selected"), (["cot"], "did you mean 'cat'"), (["cat", "cat"], "stands twice")],
)
def test_select_refuses(names: list[str], problem: str) -> None:
    with pytest.raises(PromptError, match=problem):
        make_set().select(names)


def test_replace_changes_only_the_named_classes() -> None:
    prompts = make_set()
    new = make_visual(("wall", "couch"))
    replaced = prompts.replace(visual=new)
    old, e = prompts.embeddings, replaced.embeddings
    for before, after, put in zip(
        (old.visual, *old.stages), (e.visual, *e.stages), (new.visual, *new.stages), strict=True
    ):
        assert torch.equal(after[[2, 1]], put)
        assert torch.equal(after[0], before[0])
    assert torch.equal(e.text, old.text)
    assert e.has_visual.tolist() == [True, True, True]
    assert old.has_visual.tolist() == [True, False, True], "the set itself stays as it was"
    assert replaced.sources == (("text", "bank"), ("text", "crop"), ("text", "crop"))
    assert prompts.embeddings.visual[1].abs().sum() == 0


def test_replace_of_nothing_changes_nothing() -> None:
    prompts = make_set()
    replaced = prompts.replace(visual=make_visual(()))
    for before, after in zip(tensors(prompts), tensors(replaced), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(("old", "new"), [(4, 1), (1, 4), (4, 4)])
def test_replace_repeats_the_side_that_has_one_prompt(old: int, new: int) -> None:
    prompts, visual = make_set(old), make_visual(("couch",), new)
    e = prompts.replace(visual=visual).embeddings
    assert e.visual.shape == (3, 4, D)
    assert torch.equal(e.visual[1], visual.visual[0].expand(4, -1))
    assert torch.equal(e.stages[2][0], prompts.embeddings.stages[2][0].expand(4, -1))


def test_replace_without_sources_names_them() -> None:
    prompts = make_set()
    bare = PromptSet(prompts.names, prompts.embeddings, prompts.encoder)
    assert bare.replace(visual=make_visual(("couch",))).sources == (("text",), ("text", "crop"), ("text",))


def test_replace_refuses_unknown_classes_and_other_shapes() -> None:
    with pytest.raises(PromptError, match="did you mean 'couch'"):
        make_set().replace(visual=make_visual(("coach",)))
    with pytest.raises(PromptError, match="do not fit"):
        make_set(prompts=4).replace(visual=make_visual(("couch",), prompts=3))


def test_length_is_the_number_of_classes() -> None:
    assert len(make_set()) == 3
