"""What becomes of painted pictures that are of no use, and of those with alpha; their plan, folders and pipelines."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.cli import run
from dpseg.errors import ConfigError
from dpseg.generation.pipeline import Painter, Wishes
from dpseg.generation.plan import Slot, folder_name, plan
from dpseg.generation.quality import difference_hash, is_blank, tidy
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.text import TEMPLATES, parse_class, parse_classes
from dpseg.prompts.visual import Reference, parse_reference
from dpseg.segmenter import Segmenter
from support.pictures import RED, plain
from support.tiny_painter import SIDE, files, generate, pixels, rows, write_painter

pytestmark = pytest.mark.skipif(find_spec("diffusers") is None, reason="needs the extra: pip install 'dpseg[generate]'")


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_painter(tmp_path_factory.mktemp("painters") / "tiny-sd")


@pytest.fixture
def command(painter: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command without classes, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", "off")
    return generate(painter, model)


def with_painter(command: list[str], change: Callable[[Any], object], channels: int = 3) -> list[str]:
    """Returns the command with a changed pipeline in place of the plain one."""
    return [*command, "--generator", write_painter(Path("own"), change, channels)]


def add_safety_checker(pipeline: Any, pictures: list[Image.Image]) -> list[bool]:
    """Gives a pipeline a checker that flags some of the pictures, and returns which of them."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**vision, "image_size": SIDE, "patch_size": 8}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    extractor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    inputs = extractor(pictures, return_tensors="pt").pixel_values
    embeddings = checker.visual_projection(checker.vision_model(inputs)[1])
    concept = embeddings[0] - embeddings.mean(0)
    cosines = F.cosine_similarity(embeddings, concept[None])
    ordered = cosines.sort().values.tolist()
    _, middle = max((high - low, (high + low) / 2) for low, high in pairwise(ordered[1:-1]))
    checker.concept_embeds[0] = concept
    checker.concept_embeds_weights[:] = 2.0  # no cosine is above it
    checker.special_care_embeds_weights[:] = 2.0
    checker.concept_embeds_weights[0] = middle
    pipeline.register_modules(safety_checker=checker, feature_extractor=extractor)
    return [float(cosine) > middle for cosine in cosines]


def test_what_the_safety_checker_flags_is_never_written(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command += ["-t", "cat", "--per-class", "8", "--batch-size", "3"]
    assert run([*command, "--out", "unchecked"]) == 0
    unchecked = {row["seed"]: row["sha256"] for row in rows("unchecked")}
    pictures = [Image.open(Path("unchecked", row["file"])).convert("RGB") for row in rows("unchecked")]
    assert "has no safety checker" in capsys.readouterr().out
    flags: list[bool] = []
    command = with_painter(command, lambda pipeline: flags.extend(add_safety_checker(pipeline, pictures)))
    assert run(command) == 0
    assert 2 <= sum(flags) <= 6
    found = rows()
    first = [row for row in found if row["attempt"] == 0]
    assert [row["reason"] == "nsfw" for row in first] == flags
    assert all(row["safety_checker"] for row in found)
    for row in found:
        if row["reason"] == "nsfw":
            assert (row["state"], row["file"], row["sha256"]) == ("rejected", None, None)
        elif row["attempt"] == 0:
            assert row["sha256"] == unchecked[row["seed"]]
    assert set(files()) == {row["file"] for row in found if row["state"] == "kept"}
    assert not {row["seed"] for row in found if row["attempt"]} & set(unchecked)
    again = [row for row in found if row["attempt"] == 1]
    assert [row["template"] for row in again] == [row["template"] for row in first if row["reason"] == "nsfw"]
    assert "has no safety checker" not in capsys.readouterr().out


def one_picture(pipeline: Any) -> None:
    """Makes a pipeline paint the same picture whatever the seed."""
    pipeline.vae.post_quant_conv.weight.zero_()
    pipeline.vae.decoder.conv_out.weight.mul_(20)


def test_near_duplicates_are_painted_again_and_kept_out(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [*with_painter(command, one_picture), "-t", "cat", "-t", "dog", "--per-class", "3", "--retries"]
    assert run([*command, "1"]) == 0
    found = rows()
    kept = [(row["class"], row["template"], row["attempt"]) for row in found if row["state"] == "kept"]
    assert kept == [("cat", 1, 0), ("dog", 1, 0)]  # those of another class are no duplicates
    assert len(files()) == 2
    rejected = [(row["class"], row["template"], row["attempt"]) for row in found if row["reason"] == "near-duplicate"]
    tries = [(name, template, attempt) for attempt in (0, 1) for name in ("cat", "dog") for template in (2, 3)]
    assert rejected == tries
    captured = capsys.readouterr()
    assert "painted 10 pictures" in captured.out
    assert "2 kept, 8 rejected (8 near-duplicate)" in captured.out
    missing = [f"{name}: 2 missing after all tries (2 near-duplicate)" for name in ("cat", "dog")]
    assert captured.err.splitlines() == missing
    assert run([*command, "1"]) == 0
    assert "nothing is missing" in capsys.readouterr().out
    assert run([*command, "2"]) == 0
    assert "painted 4 pictures" in capsys.readouterr().out


def test_keep_all_keeps_the_last_try(command: list[str]) -> None:
    assert run([*with_painter(command, one_picture), "-t", "cat", "--retries", "1", "--keep-all"]) == 0
    assert [(row["attempt"], row["state"], row["reason"]) for row in rows()] == [
        (0, "kept", None),
        (0, "rejected", "near-duplicate"),
        (1, "kept", "near-duplicate"),
    ]
    assert len(files()) == 2


def test_blank_pictures_are_failures_and_a_class_without_any_is_told(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = with_painter(command, lambda pipeline: pipeline.vae.decoder.conv_out.weight.zero_())
    assert run([*command, "-t", "cat", "--retries", "0"]) == 1
    assert [row["reason"] for row in rows()] == ["blank", "blank"]
    assert not files()
    assert capsys.readouterr().err.splitlines()[-1] == "no picture of: cat"


def embedding(images: Tensor, masks: Tensor, model: str) -> Tensor:
    """Returns V (N, D) of pictures (N, 3, h, w) and their masks (N, h, w), from the encoder's own layers."""
    encoder = Segmenter.from_pretrained(model, "cpu").model.encoder
    dense = encoder.trunk(images)[3]
    weights = F.adaptive_avg_pool2d(masks[:, None], dense.shape[-2:])
    return F.normalize((dense * weights).sum((2, 3)) / weights.sum((2, 3)), dim=-1)


@pytest.mark.numeric
def test_agreement_is_the_cosine_of_picture_and_words(command: list[str], model: str) -> None:
    command += ["-t", "sofa, couch", "-t", "cat", "--per-class", "5", "--retries", "1"]
    assert run([*command, "--out", "all"]) == 0
    found = rows("all")
    images = np.stack([pixels(Path("all", row["file"])) for row in found]) / 255
    tensors = torch.from_numpy(images).float().movedim(3, 1)
    encoder = Segmenter.from_pretrained(model, "cpu").model.encoder
    names = ["a photo of a sofa.", "a photo of a couch.", "a photo of a cat."]
    sofa, couch, cat = F.normalize(encoder.project_text(encoder.text_features(names)), dim=-1)
    text = torch.stack([F.normalize(sofa + couch, dim=0)] * 5 + [cat] * 5)
    expected = (embedding(tensors, torch.ones(10, SIDE, SIDE), model) * text).sum(-1).tolist()
    assert [row["agreement"] for row in found] == pytest.approx(expected, abs=1e-4)
    least = sorted(expected)[5]
    assert run([*command, "--min-agreement", f"{least - 1e-4:.5f}"]) in (0, 1)
    first = [row for row in rows() if row["attempt"] == 0]
    assert [row["reason"] for row in first] == [None if value >= least else "low agreement" for value in expected]
    assert {row["file"] for row in rows() if row["state"] == "kept"} == set(files())
    assert sum(row["attempt"] == 1 for row in rows()) == 5


def test_alpha_is_saved_and_is_the_mask(command: list[str], model: str) -> None:
    command = with_painter(command, lambda pipeline: pipeline.vae.decoder.conv_out.weight[3].mul_(200), channels=4)
    assert run([*command, "-t", "cat", "--per-class", "1", "--save-prompts", "cat.safetensors"]) == 0
    (row,) = rows()
    painted = pixels(Path("out", row["file"]))
    assert painted.shape == (SIDE, SIDE, 4)
    mask = painted[..., 3] > 0
    assert 0.1 < mask.mean() < 0.9
    assert not ((painted[..., 3] > 0) & (painted[..., 3] < 8)).any()
    assert row["mask"] == row["file"]
    _, reference = parse_reference(f"cat=out/{row['file']}:out/{row['mask']}")
    crop, weights = reference.crop(SIDE)
    other, other_weights = Reference(f"out/{row['file']}", mask=mask).crop(SIDE)
    assert torch.equal(crop, other)
    assert torch.equal(weights, other_weights)
    saved = PromptSet.load("cat.safetensors")
    assert (saved.names, saved.sources) == (("cat",), (("text", "reference"),))
    expected = embedding(crop[None], weights[None], model)
    assert torch.allclose(saved.embeddings.visual[0], expected, atol=1e-5)
    assert row["agreement"] == pytest.approx(float(saved.embeddings.text[0, 0] @ expected[0]), abs=1e-4)


def test_a_prompt_set_of_the_pictures_segments(
    command: list[str], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "-t", "cat, kitty", "-t", "dog", "--save-prompts", "kept/both.safetensors"]) == 0
    use = capsys.readouterr().out.splitlines()[-1]
    assert use == f"use: dpseg predict PHOTOS --model {model} --prompts kept/both.safetensors"
    plain(RED, 64).save("photo.png")
    assert run([*use.removeprefix("use: dpseg ").replace("PHOTOS", "photo.png").split(), "--out", "found"]) == 0
    assert Path("found/photo_labels.png").is_file()


def test_alpha_that_says_nothing_goes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    for low, high, mode in ((255, 255, "RGB"), (0, 7, "RGB"), (9, 255, "RGBA"), (0, 255, "RGBA")):
        values = noise.copy()
        values[..., 3] = np.linspace(low, high, 64).reshape(8, 8).astype(np.uint8)
        picture = tidy(Image.fromarray(values))
        assert picture.image.mode == mode
        assert picture.masked == (low == 0 and high == 255)
    assert is_blank(tidy(Image.fromarray(np.zeros((8, 8, 4), np.uint8))).image)


def test_the_hash_compares_neighbours() -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (8, 9), dtype=np.uint8)
    values = blocks.repeat(10, axis=0).repeat(10, axis=1)
    bits = [blocks[y, x] > blocks[y, x + 1] for y in range(8) for x in range(8)]
    mine = difference_hash(Image.fromarray(values))
    assert mine == sum(1 << (63 - place) for place, bit in enumerate(bits) if bit)
    brighter = difference_hash(Image.fromarray((values // 2 + 60).astype(np.uint8)))
    assert (mine ^ brighter).bit_count() <= 4
    assert (mine ^ difference_hash(Image.fromarray(values[::-1].copy()))).bit_count() > 10


def test_the_plan_takes_each_template_once_before_any_twice() -> None:
    slots = plan(parse_classes(["cat", "dog"]), 90, 80)
    assert len({slot.key for slot in slots}) == 180
    cats = slots[:90]
    assert {slot.sentence for slot in cats[:80]} == {template.replace("{}", "cat") for template in TEMPLATES}
    assert [slot.sentence for slot in cats[80:]] == [slot.sentence for slot in cats[:10]]
    assert len({slot.seed(0, attempt) for slot in slots for attempt in (0, 1)}) == 360
    assert slots[0].seed(0, 0) != slots[0].seed(1, 0)
    assert slots[0].file(7) == "cat/01-7.png"
    with pytest.raises(ConfigError, match="81 templates"):
        plan(parse_classes(["cat"]), 1, 81)


def test_names_of_folders_are_safe_and_distinct(tmp_path: Path) -> None:
    names = ["traffic light", "a/b", "a:b", "a_b", "..", "con", "Nul.x", "ding ", 'say "x"', "é", "x" * 300, "x" * 301]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert (folders[0], folders[3], folders[9]) == ("traffic light", "a_b", "é")
    for folder in folders:
        assert not set(folder) & set('/\\:*?"<>|')
        assert not folder.startswith(".")
        assert not folder.endswith((".", " "))
        assert folder.lower() not in ("con", "nul.x")
        assert len(folder.encode()) < 150
        (tmp_path / folder).mkdir()
    assert Slot(parse_class("a/b"), 1).file(1) == f"{folder_name('a/b')}/01-1.png"


class _Plain:
    """A pipeline that takes no negative prompt, no size and no guidance."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []

    def __call__(self, prompt: object, generator: object = None, num_inference_steps: int = 4) -> _Plain:
        self.calls.append({"prompt": prompt, "generator": generator, "num_inference_steps": num_inference_steps})
        self.images = [Image.new("RGB", (8, 8))]
        return self


def test_a_pipeline_gets_only_what_its_signature_takes() -> None:
    pipeline = _Plain()
    painter = Painter(pipeline, "plain")
    for wishes, option in ((Wishes("x"), "negative"), (Wishes(guidance=2), "guidance"), (Wishes(size=8), "size")):
        with pytest.raises(ConfigError, match=f"a _Plain takes no --{option}; leave it out"):
            painter.resolve(wishes)
    wishes = painter.resolve(Wishes())
    assert wishes == Wishes(steps=4)
    assert len(painter.paint(["a cat"], [5], wishes)) == 1
    (call,) = pipeline.calls
    assert (call["prompt"], call["num_inference_steps"]) == (["a cat"], 4)
    assert [generator.initial_seed() for generator in call["generator"]] == [5]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="gives no list of pictures"):
        painter.paint(["a cat", "a dog"], [5, 6], wishes)
