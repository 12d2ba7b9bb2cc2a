"""Which pictures words get from a bank, from the facade and the command line: none, blended ones, regressed ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import FeaturePrompts, ModelConfig
from dpseg.errors import ConfigError
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Encoder
from dpseg.model.prompt_encoding import name_features
from dpseg.prompts.bank import Bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.prompts.regressor import FeatureRegressor
from dpseg.prompts.text import parse_classes
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=2, logit_scale=10.0, tune_encoder=False)
NAMES = ("cat", "sofa", "lamp", "wall")


def make_bank(encoder: Encoder, cache: EmbeddingCache) -> Bank:
    random = torch.Generator().manual_seed(0)
    dense, s2, s3, s4 = (
        torch.randn(len(NAMES), size, generator=random) for size in (encoder.embed_dim, *encoder.stage_dims)
    )
    text = name_features(encoder, parse_classes(NAMES), cache)
    return Bank(NAMES, text, dense, (s2, s3, s4), encoder.fingerprint)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    model, cache = DPSeg(CONFIG), EmbeddingCache(tmp_path_factory.mktemp("cache"))
    return Segmenter(model, make_bank(model.encoder, cache), cache=cache)


@pytest.fixture(scope="module")
def folder(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its bank, saved."""
    place = tmp_path_factory.mktemp("model")
    segmenter.model.save_pretrained(place)
    assert segmenter.bank is not None
    segmenter.bank.save(place / "bank.safetensors", torch.float32)
    return place


@pytest.mark.parametrize(
    ("kind", "sources"),
    [
        ("off", (("text",), ("text",), ("text", "reference"))),
        ("blend", (("text", "bank"), ("text",), ("text", "reference"))),
        ("regress", (("text", "bank"), ("text", "regressed"), ("text", "reference"))),
    ],
)
def test_words_get_what_is_asked_for(
    folder: Path, kind: FeaturePrompts, sources: tuple[tuple[str, ...], ...], segmenter: Segmenter
) -> None:
    own = Segmenter.from_pretrained(folder, "cpu", feature_prompts=kind)
    words, references = ["cat", "xyzzy", "lamp"], {"lamp": Image.new("RGB", (32, 32))}
    prompts = own.prompts(words, references)
    assert prompts.sources == sources
    assert prompts.embeddings.has_visual.tolist() == [len(row) > 1 for row in sources]
    assert all(row == ("text",) for row in own.prompts(words, bank=False).sources)
    if kind == "regress":
        assert segmenter.bank is not None
        regressor = FeatureRegressor.fit(segmenter.bank)
        features = name_features(segmenter.model.encoder, parse_classes(["xyzzy"]), segmenter.cache)
        expected = torch.nn.functional.normalize(regressor.lookup(features).dense[0], dim=0)
        torch.testing.assert_close(prompts.embeddings.visual[1, 0], expected, rtol=1e-3, atol=1e-3)


def test_without_a_bank_there_is_nothing_to_regress_from(segmenter: Segmenter) -> None:
    bare = Segmenter(segmenter.model, cache=segmenter.cache, feature_prompts="regress")
    with pytest.raises(ConfigError, match="there is no bank with pictures"):
        bare.prompts(["cat"])
    assert bare.prompts(["cat"], bank=False).sources == (("text",),)


@pytest.mark.parametrize(("kind", "source"), [("regress", ("text", "regressed")), ("OFF", ("text",))])
def test_predict_has_the_option(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, source: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DPSEG_CACHE", "off")
    Image.new("RGB", (64, 64), (200, 30, 20)).save(tmp_path / "photo.png")
    saved = tmp_path / "prompts.safetensors"
    arguments = ["predict", str(tmp_path / "photo.png"), "--text", "xyzzy", "--text", "wall", "--model", str(folder)]
    arguments += ["--out", str(tmp_path / "out"), "--format", "json", "--save-prompts", str(saved)]
    assert run([*arguments, "--feature-prompts", kind]) == 0
    assert PromptSet.load(saved).sources[0] == source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--feature-prompts", "blends"], "feature prompts 'blends' are unknown; did you mean 'blend'?"),
        (["--feature-prompts", "off", "--bank", "mine"], "leave out one of them"),
    ],
)
def test_predict_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    command = ["predict", str(tmp_path / "photo.png"), "--text", "cat", "--model", str(folder)]
    assert run([*command, "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
