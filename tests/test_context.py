"""What surrounds the thing in a reference: in the crop, in a bank, in a prediction and in an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpseg.cli import run
from dpseg.config import Context
from dpseg.errors import PromptError
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.context import with_context
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.bank_workplace import add
from support.labelled_set import write_labelled

SIZE = 32  # the tiny encoder's


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a folder with a noisy picture, a mask of its middle, and a labelled set of such pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 15:45] = 1
    photos = {str(n): np.random.default_rng(n).integers(0, 256, (60, 60, 3), dtype=np.uint8) for n in range(4)}
    write_labelled(Path("set"), dict.fromkeys(photos, mask), ("background", "mug"), {"val": ["3"]}, photos=photos)
    Image.fromarray(photos["0"]).save("shelf.png")
    Image.fromarray(mask * 255).save("mask.png")


def crops(context: Context) -> tuple[Tensor, Tensor]:
    return Reference("shelf.png", mask="mask.png", context=context).crop(SIZE)


@pytest.mark.parametrize("context", ["blur", "mean"])
def test_the_thing_stays_and_its_surroundings_change(context: Context) -> None:
    plain, mask = crops("keep")
    crop, same = crops(context)
    assert torch.equal(mask, same)
    inside, outside = mask == 1, mask == 0
    assert inside.any()
    assert torch.equal(crop[:, inside], plain[:, inside])
    assert (crop[:, outside] - plain[:, outside]).abs().mean() > 0.05
    assert crop.min() >= 0
    assert crop.max() <= 1
    if context == "mean":  # one colour
        torch.testing.assert_close(crop[:, outside], plain.mean((1, 2))[:, None].expand_as(crop[:, outside]))
    else:  # smooth, but not one colour
        blurred, noisy = crop[:, outside].std(dim=1), plain[:, outside].std(dim=1)
        assert (blurred < noisy / 3).all()
        assert (blurred > 1e-3).all()
    wide = Image.open("shelf.png").crop((0, 0, 60, 30))  # a whole picture has no surroundings
    assert torch.equal(Reference(wide, context=context).crop(SIZE)[0], Reference(wide).crop(SIZE)[0])


def test_a_soft_edge_mixes_old_and_new() -> None:
    crop = torch.zeros(3, 64, 64)
    crop[:, :, 32:] = 1
    mask = torch.full((64, 64), 0.25)
    assert with_context(crop, mask, "mean")[0, 0].tolist() == [0.375] * 32 + [0.625] * 32
    mixed, around = with_context(crop, mask, "blur")[:, 0], with_context(crop, torch.zeros(64, 64), "blur")[:, 0]
    assert (around.diff(dim=1) >= 0).all()
    # Of a step's height, less than a standard deviation before it.
    assert around[0, 28] == pytest.approx(0.19, abs=0.02)
    torch.testing.assert_close(mixed, 0.25 * crop[:, 0] + 0.75 * around)
    assert with_context(crop, mask, "keep") is crop


def test_a_bank_tells_contexts_apart(model: str, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]) -> None:
    masked = ("--ref", "mug=shelf.png:mask.png", "--ref", "shelf=shelf.png")
    assert add(model, *masked) == 0
    assert "2 added, 0 were there" in capsys.readouterr().out
    assert add(model, *masked, "--ref-context", "mean") == 0
    assert "1 added, 1 were there" in capsys.readouterr().out, "a whole picture has no surroundings"
    assert add(model, *masked, "--ref-context", "MEAN") == 0
    assert add(model, *masked) == 0
    assert capsys.readouterr().out.count("0 added, 2 were there") == 2
    store = BankStore("bank")
    rows = [store.features(entry.key) for entry in store.entries("mug")]
    stored = [row[0] for row in rows if row is not None]
    assert len(stored) == 2
    for crop, mask in (crops("keep"), crops("mean")):
        dense = segmenter.model.encoder.visual_features(crop[None], mask[None]).dense[0].half()
        assert sum(torch.allclose(dense, one, atol=1e-3) for one in stored) == 1


def test_objects_of_labelled_photos_have_it_too(model: str) -> None:
    dense = []
    for bank, context in (("plain", "keep"), ("again", "keep"), ("even", "mean")):
        assert add(model, "--data", "set", "--per-class", "1", "--ref-context", context, bank=bank) == 0
        store = BankStore(bank)
        (stored,) = (store.features(entry.key) for entry in store.entries("mug"))
        assert stored is not None
        dense.append(stored[0])
    assert torch.equal(dense[0], dense[1])
    assert not torch.equal(dense[0], dense[2])


@pytest.mark.parametrize("given", [("--ref", "mug=shelf.png:mask.png"), ("--refs", "set", "--refs-per-class", "1")])
def test_predict_uses_it(model: str, segmenter: Segmenter, given: tuple[str, ...]) -> None:
    visual: dict[Context, Tensor] = {}
    encoder = segmenter.model.encoder
    for context in get_args(Context):
        arguments = [*given, "--ref-context", context, "-m", model, "-o", "out", "--save-prompts", "kept.safetensors"]
        assert run(["predict", "shelf.png", "--no-refine", *arguments]) == 0
        visual[context] = PromptSet.load("kept.safetensors").embeddings.visual
        if given[0] == "--ref":
            crop, mask = crops(context)
            dense = encoder.project_visual(encoder.visual_features(crop[None], mask[None]).dense)[0]
            torch.testing.assert_close(visual[context][0, 0], torch.nn.functional.normalize(dense, dim=0))
    assert visual.keys() == {"keep", "blur", "mean"}
    assert not torch.equal(visual["keep"], visual["blur"])
    assert not torch.equal(visual["keep"], visual["mean"])


def test_evaluate_measures_it(model: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Context] = []
    plain = Reference.crop

    def crop(self: Reference, size: int, margin: float = 0.1) -> tuple[Tensor, Tensor]:
        seen.append(self.context)
        return plain(self, size, margin)

    monkeypatch.setattr(Reference, "crop", crop)
    common = ["evaluate", "set", "--prompts", "pictures", "--refine", "off", "--model", model]
    assert run([*common, "--ref-context", "blur", "--out", "blur.json"]) == 0
    assert seen == ["blur"] * 3
    assert json.loads(Path("blur.json").read_text())["evaluation"]["ref_context"] == "blur"
    unknown = "dpseg: ref context 'blurr' is unknown; did you mean 'blur'?\n"
    assert refused(*common, "--ref-context", "blurr") == unknown
    message = r"context 'blurry' of reference 'shelf\.png' is unknown; did you mean 'blur'"
    with pytest.raises(PromptError, match=message):
        Reference("shelf.png", context="blurry")  # type: ignore[arg-type]
