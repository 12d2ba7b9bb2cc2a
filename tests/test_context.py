"""What surrounds the thing in a reference: in the crop, in a bank, in a prediction and in an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.cli import run
from dpseg.config import Context, ModelConfig
from dpseg.errors import PromptError
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.bank_store import BankStore
from dpseg.prompts.context import with_context
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
SIZE = 32  # the tiny encoder's
CHANGED: list[Context] = ["blur", "mean"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DPSeg(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a folder with a noisy picture, a mask of its middle, and a labelled set of such pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    for folder in ("set/images", "set/masks"):
        Path(folder).mkdir(parents=True)
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 15:45] = 1
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(values).save(f"set/images/{number}.png")
        Image.fromarray(mask).save(f"set/masks/{number}.png")
    Path("set/classes.txt").write_text("background\nmug\n")
    Path("set/val.txt").write_text("3\n")
    Image.open("set/images/0.png").save("shelf.png")
    Image.fromarray(mask * 255).save("mask.png")


def crops(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    return Reference("shelf.png", mask="mask.png", context=context).crop(SIZE)


@pytest.mark.parametrize("context", CHANGED)
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


def test_mean_is_one_colour_and_blur_is_smooth_but_not_one() -> None:
    plain, mask = crops("keep")
    outside = mask == 0
    even = crops("mean")[0][:, outside]
    torch.testing.assert_close(even, plain.mean((1, 2))[:, None].expand_as(even))
    blurred, noisy = crops("blur")[0][:, outside].std(dim=1), plain[:, outside].std(dim=1)
    assert (blurred < noisy / 3).all()
    assert (blurred > 1e-3).all()


def test_a_soft_edge_mixes_old_and_new() -> None:
    crop = torch.zeros(3, 64, 64)
    crop[:, :, 32:] = 1
    mask = torch.full((64, 64), 0.25)
    assert with_context(crop, mask, "mean")[0, 0].tolist() == [0.375] * 32 + [0.625] * 32
    mixed, around = with_context(crop, mask, "blur")[:, 0], with_context(crop, torch.zeros(64, 64), "blur")[:, 0]
    assert (around.diff(dim=1) >= 0).all()
    assert around[0, 28] == pytest.approx(0.19, abs=0.02), (
        "of a step's height, less than a standard deviation before it"
    )
    torch.testing.assert_close(mixed, 0.25 * crop[:, 0] + 0.75 * around)
    assert with_context(crop, mask, "keep") is crop


@pytest.mark.parametrize("context", CHANGED)
def test_a_whole_picture_has_no_surroundings(context: Context) -> None:
    wide = Image.open("shelf.png").crop((0, 0, 60, 30))
    assert torch.equal(Reference(wide, context=context).crop(SIZE)[0], Reference(wide).crop(SIZE)[0])


def test_an_unknown_context_is_refused() -> None:
    with pytest.raises(
        PromptError, match=r"context 'blurry' of reference 'shelf\.png' is unknown; did you mean 'blur'"
    ):
        Reference("shelf.png", context="blurry")  # type: ignore[arg-type]


def add(model: str, *arguments: str, bank: str = "bank") -> int:
    return run(["prompts", "bank", "add", bank, *arguments, "--model", model])


def test_a_bank_tells_contexts_apart(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    masked = ("--ref", "mug=shelf.png:mask.png", "--ref", "shelf=shelf.png")
    assert add(model, *masked) == 0
    assert "2 added, 0 were there" in capsys.readouterr().out
    assert add(model, *masked, "--ref-context", "mean") == 0
    assert "1 added, 1 were there" in capsys.readouterr().out, "a whole picture has no surroundings"
    assert add(model, *masked, "--ref-context", "MEAN") == 0
    assert add(model, *masked) == 0
    assert capsys.readouterr().out.count("0 added, 2 were there") == 2
    encoder, store = Segmenter.from_pretrained(model).model.encoder, BankStore("bank")
    rows = [store.features(entry.key) for entry in store.entries("mug")]
    stored = [row[0] for row in rows if row is not None]
    assert len(stored) == 2
    for context in ("keep", "mean"):
        crop, mask = crops(context)  # type: ignore[arg-type]
        dense = encoder.visual_features(crop[None], mask[None]).dense[0].half()
        assert sum(torch.allclose(dense, one, atol=1e-3) for one in stored) == 1


def test_objects_of_labelled_photos_have_it_too(model: str) -> None:
    for bank, context in (("plain", "keep"), ("even", "mean"), ("again", "keep")):
        assert add(model, "--data", "set", "--per-class", "1", "--ref-context", context, bank=bank) == 0
    dense = {}
    for bank in ("plain", "even", "again"):
        (entry,) = BankStore(bank).entries("mug")
        stored = BankStore(bank).features(entry.key)
        assert stored is not None
        dense[bank] = stored[0]
    assert torch.equal(dense["plain"], dense["again"])
    assert not torch.equal(dense["plain"], dense["even"])


@pytest.mark.parametrize("given", [("--ref", "mug=shelf.png:mask.png"), ("--refs", "set", "--refs-per-class", "1")])
def test_predict_uses_it(model: str, given: tuple[str, str]) -> None:
    visual = {}
    for context in ("keep", "blur", "mean"):
        arguments = [*given, "--ref-context", context, "-m", model, "-o", "out", "--save-prompts", "kept.safetensors"]
        assert run(["predict", "shelf.png", "--no-refine", *arguments]) == 0
        visual[context] = PromptSet.load("kept.safetensors").embeddings.visual
    plain, blurred, even = (crops(context) for context in ("keep", "blur", "mean"))  # type: ignore[arg-type]
    if given[0] == "--ref":
        encoder = Segmenter.from_pretrained(model).model.encoder
        for context, (crop, mask) in (("keep", plain), ("blur", blurred), ("mean", even)):
            dense = encoder.project_visual(encoder.visual_features(crop[None], mask[None]).dense)[0]
            torch.testing.assert_close(visual[context][0, 0], torch.nn.functional.normalize(dense, dim=0))
    assert not torch.equal(visual["keep"], visual["blur"])
    assert not torch.equal(visual["keep"], visual["mean"])


def test_evaluate_measures_it(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Context] = []
    plain = Reference.crop

    def crop(self: Reference, size: int, margin: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(self.context)
        return plain(self, size, margin)

    monkeypatch.setattr(Reference, "crop", crop)
    common = ["evaluate", "set", "--prompts", "pictures", "--refine", "off", "--model", model]
    assert run([*common, "--ref-context", "blur", "--out", "blur.json"]) == 0
    assert seen == ["blur"] * 3
    assert json.loads(Path("blur.json").read_text())["evaluation"]["ref_context"] == "blur"
    capsys.readouterr()
    assert run([*common, "--ref-context", "blurr"]) == 2
    assert capsys.readouterr().err == "dpseg: ref context 'blurr' is unknown; did you mean 'blur'?\n"
