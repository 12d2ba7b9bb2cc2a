"""Checkpoints under SED's names -> model folders; what is wrong with one is named; and DPSeg starts from it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from dpseg.cache import EmbeddingCache
from dpseg.commands.convert import convert_sed
from dpseg.config import ModelConfig
from dpseg.errors import WeightsError
from dpseg.model.dpseg import DPSeg
from dpseg.model.sed import SED_BASE, load_sed
from dpseg.model.warm_start import warm_start
from dpseg.segmenter import Segmenter

pytest.importorskip("open_clip", reason="needs the extra: pip install 'dpseg[clip]'")

from support.small_clip import small_clip, small_encoder
from support.small_sed import CLIP, DECODER, checkpoint

STAGE_DIMS = (40, 80, 160)  # of the small CLIP
HEAD = f"{DECODER}head.weight"


@pytest.fixture(autouse=True)
def small(tmp_path: Path) -> Iterator[None]:
    with small_clip(tmp_path):
        yield


@pytest.fixture
def clip() -> dict[str, Tensor]:
    state: dict[str, Tensor] = small_encoder().clip.state_dict()
    return state


@pytest.fixture
def path(tmp_path: Path, clip: dict[str, Tensor]) -> Path:
    torch.save(checkpoint(clip, STAGE_DIMS), tmp_path / "model_final.pth")
    return tmp_path / "model_final.pth"


def convert(path: Path, out: Path) -> str:
    printed = io.StringIO()
    assert convert_sed(path, out, Console(file=printed)) == 0
    return printed.getvalue()


def test_a_converted_checkpoint_segments_a_picture(path: Path, clip: dict[str, Tensor], tmp_path: Path) -> None:
    text = convert(path, tmp_path / "sed")
    assert "SED base" in text
    assert sorted(file.name for file in (tmp_path / "sed").iterdir()) == ["config.json", "model.safetensors"]
    segmenter = Segmenter.from_pretrained(tmp_path / "sed", device="cpu")
    assert segmenter.model.config == SED_BASE
    state = segmenter.model.state_dict()
    assert all(torch.equal(state[f"encoder.clip.{name}"], tensor) for name, tensor in clip.items())
    segmenter.cache = EmbeddingCache(tmp_path / "cache")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    result = segmenter(photo, ["person, child", "sky", "cat"], size=128)
    assert result.labels.shape == (60, 90)
    assert result.logits.shape == (3, 32, 32)
    assert np.isfinite(result.logits).all()
    assert result.logits.std() > 0


def test_pictures_change_nothing_in_a_model_of_words(path: Path) -> None:
    model = load_sed(path)
    assert not model.reads_pictures
    assert all(DPSeg(ModelConfig(encoder="tiny", fusion=f)).reads_pictures for f in ("average", "text", "visual"))


def test_numpys_arrays_are_read_and_no_code_is_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_sed(path).state_dict()
    whole = torch.load(path, weights_only=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in whole["model"].items()}
    torch.save({"model": arrays, "best": np.float64(0.3), "seen": np.int64(5)}, path)
    state = load_sed(path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    monkeypatch.chdir(tmp_path)
    for value in (_Code(), np.array([_Code()], dtype=object)):
        torch.save({"model": whole["model"], "hooks": value}, path)
        with pytest.raises(WeightsError, match="cannot be read"):
            load_sed(path)
        assert not Path("ran").exists()


class _Code:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("ran"),))


def test_a_tensor_that_does_not_fit_is_named(path: Path) -> None:
    whole = torch.load(path, weights_only=True)
    good = whole["model"]

    def message(model: dict[str, Any]) -> str:
        torch.save({**whole, "model": model}, path)
        with pytest.raises(WeightsError) as raised:
            load_sed(path)
        text = str(raised.value)
        assert "\n" not in text
        assert str(path) in text
        return text

    for name in (HEAD, f"{DECODER}head1.bias", f"{CLIP}text_projection", f"{CLIP}visual.trunk.stem.0.weight"):
        assert f"lacks {name};" in message({key: value for key, value in good.items() if key != name})
    assert f"has an unknown {DECODER}extra.weight;" in message({**good, f"{DECODER}extra.weight": torch.zeros(1)})
    assert "has an unknown sem_seg_head.more and 1 more like it" in message(
        {**good, "sem_seg_head.more": torch.zeros(1), "backbone": torch.zeros(1)}
    )
    text = message({**good, HEAD: torch.zeros(1, 16, 1, 1)})
    assert f"has {HEAD} of shape (1, 16, 1, 1) in place of (1, 16, 3, 3);" in text
    assert "(16, 512), which is neither SED's base (24 columns) nor its large (768)" in message(
        {**good, f"{CLIP}text_projection": torch.zeros(16, 512)}
    )
    assert "holds no tensor below" in message({name: value for name, value in good.items() if name.startswith(CLIP)})
    assert f"{HEAD} is no tensor but list" in message({**good, HEAD: [1.0]})


def test_a_file_that_is_no_checkpoint_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing\.pth: no such file"):
        load_sed(tmp_path / "missing.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        load_sed(path)
    for value in ([1, 2], {"state_dict": {}}):
        torch.save(value, path)
        with pytest.raises(WeightsError, match=r'holds no "model"'):
            load_sed(path)


def test_dpseg_starts_from_sed(path: Path, tmp_path: Path) -> None:
    convert(path, tmp_path / "sed")
    sed = load_sed(path).state_dict()
    model = DPSeg(ModelConfig(encoder="base", weights="random"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = warm_start(model, tmp_path / "sed")
    after = model.state_dict()
    assert set(start.taken) | set(start.kept) == set(after)
    assert all(torch.equal(after[name], sed[name]) for name in start.taken)
    assert all(torch.equal(after[name], before[name]) for name in start.kept)
    assert {name for name in after if name.startswith("encoder.clip.")} <= set(start.taken)
    fresh = ("encoder.visual_trunk.", *(f"decoder.stages.{stage}.{part}." for stage in range(3) for part in PARTS))
    assert all(name.startswith(fresh) == (name in start.kept) for name in after)
    theirs = ("decoder.cost_chain.", "decoder.auxiliary.", *(f"decoder.stages.{stage}.spatial." for stage in range(3)))
    assert {name for name in sed if name.startswith(theirs)} == set(start.unused)
    model.eval()


PARTS = ("spatial", "cost")
"""Of a decoder stage: what DPSeg does otherwise than SED."""


def test_a_start_that_cannot_be(path: Path, tmp_path: Path) -> None:
    convert(path, tmp_path / "sed")
    fewer = DPSeg(replace(SED_BASE, weights="random", templates=10))
    kept = warm_start(fewer, tmp_path / "sed").kept
    assert kept == ("decoder.cost_chain.0.0.weight", "decoder.embed.weight")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        warm_start(fewer, tmp_path)
    tiny = DPSeg(ModelConfig(encoder="tiny", templates=1, widths=(8, 4), image_widths=(3,), heads=1))
    with pytest.raises(WeightsError, match="is of another encoder than 'tiny'"):
        warm_start(tiny, tmp_path / "sed")
    (tmp_path / "sed" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        warm_start(tiny, tmp_path / "sed")
