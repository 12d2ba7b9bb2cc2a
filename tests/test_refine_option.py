"""--refine of `dpseg predict`: a flag that may have a value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dpseg.cli import run
from dpseg.commands.refinement import Refinement, read_refinement, with_values
from dpseg.config import ModelConfig, RefineConfig
from dpseg.errors import ConfigError
from dpseg.model.dpseg import DPSeg

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, refine=False)
RED, BLUE = (220, 30, 20), (20, 40, 220)


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["a.jpg", "--refine"], ["a.jpg", "--refine=on"]),
        (["--refine", "a.jpg"], ["--refine=on", "a.jpg"]),
        (["--refine", "--text", "cat"], ["--refine=on", "--text", "cat"]),
        (["--refine", "sequence", "a.jpg"], ["--refine", "sequence", "a.jpg"]),
        (["--refine", "Cores,pooled", "a.jpg"], ["--refine", "Cores,pooled", "a.jpg"]),
        (["--refine", "cores,pool", "a.jpg"], ["--refine", "cores,pool", "a.jpg"]),
        (["--refine=off", "a.jpg"], ["--refine=off", "a.jpg"]),
        (["--no-refine", "a.jpg"], ["--refine=off", "a.jpg"]),
        (["--refine", "--", "--refine"], ["--refine=on", "--", "--refine"]),
        (["a.jpg", "--", "--no-refine"], ["a.jpg", "--", "--no-refine"]),
        ([], []),
    ],
)
def test_a_flag_gets_its_value(arguments: list[str], written: list[str]) -> None:
    assert with_values(arguments) == written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Refinement(None, RefineConfig())),
        ("on", Refinement(True, RefineConfig())),
        ("off", Refinement(False, RefineConfig())),
        (" Cores ", Refinement(True, RefineConfig(core=0.5))),
        ("pooled,cores", Refinement(True, RefineConfig(core=0.5, features="pooled"))),
        ("sequence", Refinement("sequence", RefineConfig())),
        ("pooled, sequence", Refinement("sequence", RefineConfig(features="pooled"))),
    ],
)
def test_words_say_how(text: str | None, expected: Refinement) -> None:
    assert read_refinement(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequnce", "did you mean 'sequence'"),
        ("on,cores", "is not clear"),
        ("on,off", "is not clear"),
        (",", "not clear"),
    ],
)
def test_other_words_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_refinement(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DPSeg(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ([], ["reference", "reference"]),
        (["--no-refine"], ["reference", "reference"]),
        (["--refine"], ["crop", "crop"]),
        (["--no-refine", "--refine"], ["crop", "crop"]),
        (["--refine", "pooled"], ["pooled", "pooled"]),
        (["--refine=sequence"], ["reference", "crop"]),
        (["--refine", "pooled,sequence"], ["reference", "pooled"]),
    ],
)
def test_predict_refines_as_asked(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sources: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (32, 32), RED).save("red.png")
    photo = Image.new("RGB", (64, 64), RED)
    Path("walk").mkdir()
    for name in ("1", "2"):
        photo.save(f"walk/{name}.png")
    assert run(["predict", *options, "walk", "--ref", "red=red.png", "-m", model, "-o", "out", "-f", "json"]) == 0
    results = [json.loads(Path(f"out/{name}_result.json").read_text()) for name in ("1", "2")]
    assert [result["classes"][0]["prompts"] for result in results] == [[source] for source in sources]
