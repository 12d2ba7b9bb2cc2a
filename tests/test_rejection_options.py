"""Early rejection's options: bounds, words on the command line, and what they change in a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.model.dpseg import DPSeg
from dpseg.pretrained import load_pretrained
from dpseg.rejection import Rejection, rejection_of
from support.labelled_set import write_set

TINY = ModelConfig(encoder="tiny", image_size=64, templates=2, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), heads=2)


def build(config: ModelConfig) -> DPSeg:
    torch.manual_seed(2)
    return DPSeg(config).eval()


def test_few_names_are_never_rejected_and_bounds_are_checked() -> None:
    assert not Rejection().applies(10**6)
    assert [Rejection(64).applies(count) for count in (1, 64, 65)] == [False, False, True]
    for wrong in (lambda: Rejection(0), lambda: Rejection(5, 0)):
        with pytest.raises(ConfigError, match="give 1 or more"):
            wrong()
    with pytest.raises(ConfigError, match="give max-classes too"):
        Rejection(None, 4)
    assert ModelConfig.from_dict({"rejection": {"max_classes": 64, "keep_top": 8}}).rejection == Rejection(64, 8)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((None, None), None),
        (("all", None), Rejection()),
        ((" ALL ", None), Rejection()),
        (("64", None), Rejection(64)),
        (("64", 8), Rejection(64, 8)),
    ],
)
def test_options_are_read(words: tuple[str | None, int | None], expected: Rejection | None) -> None:
    assert rejection_of(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("some", None), "is no number of classes"),
        (("-3", None), "is no number of classes"),
        (("0", None), "give 1 or more"),
        (("9", 0), "give 1 or more"),
        ((None, 4), "give max-classes too"),
        (("all", 4), "give max-classes too"),
    ],
)
def test_wrong_options_are_refused(words: tuple[str | None, int | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rejection_of(*words)


def test_what_is_asked_for_replaces_what_the_config_says(tmp_path: Path) -> None:
    build(replace(TINY, decode_classes=5)).save_pretrained(tmp_path)
    assert load_pretrained(tmp_path)[0].config.decode_classes == 5
    for asked in (Rejection(), Rejection(7, 2)):
        config = load_pretrained(tmp_path, rejection=asked)[0].config
        assert (config.rejection, config.decode_classes) == (asked, None)
    build(replace(TINY, auxiliary_heads=True, rejection=Rejection(6, 2))).save_pretrained(tmp_path / "kept")
    assert load_pretrained(tmp_path / "kept")[0].config.rejection == Rejection(6, 2)


@pytest.fixture
def decoded_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many classes each decoding decodes."""
    counts: list[int] = []
    original: Callable[..., Any] = DPSeg.decode_blocks

    def counted(self: DPSeg, *arguments: Any) -> Any:
        blocks = list(original(self, *arguments))
        counts.append(sum(len(block.classes) for block in blocks))
        return iter(blocks)

    monkeypatch.setattr(DPSeg, "decode_blocks", counted)
    return counts


def test_predict_takes_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded_counts: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    build(replace(TINY, templates=1, logit_scale=9.0, decode_classes=4)).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64), (90, 30, 30)).save("photo.png")
    words = [word for number in range(9) for word in ("--text", f"thing {number}")]
    common = ["predict", "photo.png", *words, "-m", "model", "--no-refine", "-f", "json", "-o"]
    for number, options in enumerate(([], ["--max-classes", "all"], ["--max-classes=6"], ["--max-classes", "9"])):
        assert run([*common, str(number), *options]) == 0
    assert decoded_counts == [4, 9, 6, 9]
    assert run([*common, "top", "--max-classes", "6", "--keep-top", "1"]) == 0
    assert 1 <= decoded_counts[-1] < 6
    assert run([*common, "none", "--keep-top", "1"]) == 2
    assert "give max-classes too" in capsys.readouterr().err


def test_evaluate_takes_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded_counts: list[int]) -> None:
    build(replace(TINY, templates=1, logit_scale=9.0)).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    data = write_set(tmp_path / "data", photos=2)
    out = tmp_path / "figures.json"
    command = ["evaluate", str(data), "--prompts", "text", "--refine", "off", "-m", str(tmp_path / "model")]
    assert run([*command, "--max-classes", "2", "--out", str(out)]) == 0
    assert decoded_counts == [2, 2]  # of the three that are not background
    assert json.loads(out.read_text())
