"""bfloat16 when testing: logits that differ by rounding alone, the same prompts, and a word on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpseg.cli import run
from dpseg.config import RefineConfig
from dpseg.errors import ConfigError
from dpseg.precision import precision_of
from dpseg.segmenter import Segmenter
from support.pictures import COFFEE, COLOUR_REFERENCES

NAMES = ["coffee cup, cup", "spoon", "wooden table", "wall"]


@pytest.fixture(scope="module")
def half() -> Segmenter:
    return Segmenter.from_pretrained(precision="bf16")


@pytest.mark.numeric
def test_labels_of_a_photo_differ_only_where_two_classes_are_as_near_as_rounding(
    lite: Segmenter, half: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    matching = replace(lite.model.config.matching, logit_adjustment=0.0)
    for segmenter in (lite, half):  # labels are those of the logits
        monkeypatch.setattr(segmenter.model, "config", replace(segmenter.model.config, presence=0, matching=matching))
    prompts = lite.prompts(NAMES)
    before, after = lite(COFFEE, prompts=prompts), half(COFFEE, prompts=prompts)
    assert after.logits.dtype == before.logits.dtype
    assert torch.equal(half.prompts(NAMES).embeddings.text, prompts.embeddings.text)
    unit = 2**-8 * before.logits.std()  # the error of a bfloat16 as large as the logits' deviation
    difference = after.logits - before.logits
    assert 0 < (difference**2).mean() ** 0.5 < 12 * unit
    assert abs(difference.mean()) < 2 * unit, "no bias"
    logits = torch.from_numpy(before.logits)[None]
    best, second = (
        torch.nn.functional.interpolate(logits, before.labels.shape, mode="bilinear")[0].topk(2, dim=0).values
    )
    clear = (best - second > 32 * unit).numpy()
    assert clear.mean() > 0.9
    assert (after.labels == before.labels)[clear].all()


def test_what_is_passed_on_is_in_single_precision(half: Segmenter) -> None:
    encoded = half.encode([COFFEE], size=192).pyramid
    assert encoded.mirrored
    for view in (encoded, *encoded.mirrored):
        assert {tensor.dtype for tensor in (view.dense, *view.stages)} == {torch.float32}
    assert {weight.dtype for weight in half.model.decoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.model.encoder.parameters()} == {torch.float32}


def test_inference_two_works_too(half: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "refinement", RefineConfig(min_confidence=0.1))
    first, second = half(COFFEE, NAMES, size=192), half(COFFEE, NAMES, size=192, refine=True)
    assert first.names == second.names
    assert not (first.logits == second.logits).all()


def test_the_option(model: str, workplace: Path, refused: Callable[..., str]) -> None:
    asked = ["predict", "photos/both.png", *COLOUR_REFERENCES, "--model", model, "--format", "npz", "--precision"]
    logits = []
    for precision in ("bf16", "32"):
        assert run([*asked, precision, "--out", precision]) == 0
        (path,) = (workplace / precision).glob("*.npz")
        with np.load(path) as saved:
            logits.append(saved["logits"])
    assert not (logits[0] == logits[1]).all()
    assert "precision 'bf15' is unknown; did you mean 'bf16'" in refused(*asked, "bf15", "--out", "none")


def test_words() -> None:
    assert [precision_of(word) for word in ("32", " BF16 ")] == ["32", "bf16"]
    with pytest.raises(ConfigError, match="'int8' is unknown"):
        precision_of("int8")
