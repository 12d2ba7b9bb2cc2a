"""bfloat16 when testing: nearly the same labels, the same prompts, and a word on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dpseg.cli import run
from dpseg.config import RefineConfig
from dpseg.errors import ConfigError
from dpseg.precision import precision_of
from dpseg.segmenter import Segmenter

EXAMPLES = Path(__file__).parent.parent / "examples"
COFFEE = EXAMPLES / "coffee.jpg"
NAMES = ["coffee cup, cup", "spoon", "wooden table", "wall"]


def test_lite_labels_nearly_every_pixel_alike() -> None:
    plain, half = Segmenter.from_pretrained(), Segmenter.from_pretrained(precision="bf16")
    prompts = plain.prompts(NAMES)
    before, after = plain(COFFEE, prompts=prompts), half(COFFEE, prompts=prompts)
    assert not (before.logits == after.logits).all()
    same = float((before.labels == after.labels).mean())
    assert 0.97 < same < 1
    assert after.logits.dtype == before.logits.dtype
    assert torch.equal(half.prompts(NAMES).embeddings.text, prompts.embeddings.text)


def test_what_is_passed_on_is_in_single_precision() -> None:
    half = Segmenter.from_pretrained(precision="bf16")
    encoded = half.encode([COFFEE]).pyramid
    assert encoded.mirrored
    for view in (encoded, *encoded.mirrored):
        assert {tensor.dtype for tensor in (view.dense, *view.stages)} == {torch.float32}
    assert {weight.dtype for weight in half.model.decoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.model.encoder.parameters()} == {torch.float32}


def test_inference_two_works_too() -> None:
    half = Segmenter.from_pretrained(precision="bf16")
    half.refinement = RefineConfig(min_confidence=0.1)
    first = half(COFFEE, NAMES)
    second = half(COFFEE, NAMES, refine=True)
    assert first.names == second.names
    assert not (first.logits == second.logits).all()


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", str(COFFEE), "--text", "cup", "--text", "table", "--format", "json", "--precision"]
    assert run([*asked, "bf16", "--out", str(tmp_path / "half")]) == 0
    assert run([*asked, "32", "--out", str(tmp_path / "whole")]) == 0
    half, whole = (json.loads((tmp_path / name / "coffee_result.json").read_text()) for name in ("half", "whole"))
    assert half != whole
    capsys.readouterr()
    assert run([*asked, "bf15", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "precision 'bf15' is unknown; did you mean 'bf16'" in line


@pytest.mark.parametrize(("word", "expected"), [("32", "32"), (" BF16 ", "bf16")])
def test_words(word: str, expected: str) -> None:
    assert precision_of(word) == expected


def test_unknown_words_are_told() -> None:
    with pytest.raises(ConfigError, match="'int8' is unknown"):
        precision_of("int8")
