"""The few-shot and robustness benchmarks on a small set: what they write, and how they spoil pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import few_shot
import numpy as np
import pytest
import robustness
import torch
from PIL import Image

from dpseg.config import EvalConfig
from dpseg.data.benchmarks import open_dataset
from dpseg.evaluation.evaluate import encode_prompts
from dpseg.evaluation.plan import make_plan
from dpseg.matching import MATCHINGS
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.labelled_set import write_labelled
from support.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model, which sees photos of 96 pixels as they are."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", image_size=96)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of ten photos, eight to train: each shows a square of one of three colours on grey."""
    root = tmp_path_factory.mktemp("data")
    masks = {str(number): np.zeros((96, 96), np.uint8) for number in range(10)}
    for number, mask in enumerate(masks.values()):
        mask[16 + number : 80, 16:80] = 1 + number % 3
    for name in ("iot_boards", "clothing"):
        write_labelled(root / name, masks, splits={"val": "01", "train": "23456789"})
    return root


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, words)])
    module.main()


def test_few_shot_writes_curves(
    data: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(few_shot, "COUNTS", (1, 5))
    common = ["--data", data, "--model", model, "--seeds", "2", "--out", tmp_path]
    run(few_shot, monkeypatch, *common, "--set", "clothing")
    run(few_shot, monkeypatch, *common, "--set", "iot_boards")
    results = json.loads((tmp_path / "few_shot.json").read_text())
    assert list(results) == ["iot_boards", "clothing"]  # what was there stays, in the order of the runs
    result = results["iot_boards"]
    assert list(result)[:4] == ["text", "1", "5", "both"]
    assert result["photos"] == 2
    assert result["setting"] == {"data": "iot_boards", "untrained": True, "match": "alike", "model": model}
    for n in ("1", "5"):
        draws = result["draws"]["mIoU"]["pictures"][n]
        assert len(draws) == 2
        assert result[n] == pytest.approx(np.mean(draws), abs=0.01)
        assert 50 < result[n] <= 100  # colours are easy, and the grey background does not count
    assert result["text"] < 50  # the tiny encoder knows no words
    assert result["both"] == pytest.approx(np.mean(result["draws"]["mIoU"]["both"]["5"]), abs=0.01)
    assert result["pixels right"]["5"] > 50
    with Image.open(tmp_path / "few_shot.png") as plot:
        assert plot.width > plot.height
    assert "| iot_boards | pictures |" in capsys.readouterr().out


def test_robustness_writes_what_spoiled_pictures_cost(
    data: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(robustness, monkeypatch, "--data", data, "--model", model, "--out", tmp_path, "--set", "clothing")
    (result,) = json.loads((tmp_path / "robustness.json").read_text()).values()
    assert set(result) == {"text", "pictures", "both", "photos", *robustness.SPOILED}
    right = result["pictures"]["mIoU"]
    assert right > 50
    wrong = result["classes with wrong pictures"]
    assert wrong["1"]["pictures"]["mIoU"] < right / 2  # every class shows the next one
    assert list(result["wrong pictures of 5"]) == ["1", "2", "3"]
    assert result["wrong pictures of 5"]["3"]["pictures"]["mIoU"] < right
    with Image.open(tmp_path / "robustness.png") as plot:
        assert plot.width > plot.height
    assert "both degrade more gently than pictures alone" in capsys.readouterr().out


def test_pictures_without_words_are_as_if_encoded_alone(model: str, data: Path) -> None:
    segmenter = Segmenter.from_pretrained(model, "cpu", matching=MATCHINGS["alike"])
    dataset, pool = open_dataset(data / "clothing", split="val"), open_dataset(data / "clothing", split=None)
    plan = make_plan(dataset, EvalConfig(references=2), pool=pool)
    plan = replace(plan, drawn={value: plan.drawn[value] for value in (1, 3)})
    encoded = encode_prompts(segmenter, plan, ("pictures", "both"))
    alone, both = encoded["pictures"], few_shot.without_words(encoded["both"])
    assert both.lines.tolist() == alone.lines.tolist() == [1, 3]
    assert both.prompts.names == alone.prompts.names
    one, other = alone.prompts.embeddings, both.prompts.embeddings
    for field in fields(one):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name))


def references() -> dict[int, list[Reference]]:
    """Four classes of five pictures: the class is the red of all pixels, and the picture the green."""
    y, x = np.mgrid[:40, :40]
    mask = (abs(y - 20) < 10) & (abs(x - 20) < 5)
    pictures = np.zeros((4, 5, 40, 40, 3), np.uint8)
    pictures[..., 0] = 40 * np.arange(1, 5)[:, None, None, None]
    pictures[..., 1] = 10 * np.arange(5)[:, None, None]
    pictures[..., 2] = np.where(x < 20, 60, 160)
    return {value: [Reference(one, mask=mask) for one in pictures[value - 1]] for value in range(1, 5)}


def shown(spoiled: dict[int, list[Reference]]) -> dict[int, list[int]]:
    """Which class each picture shows."""
    return {value: [int(np.asarray(one.read()[0])[0, 0, 0]) // 40 for one in ones] for value, ones in spoiled.items()}


def test_wrong_pictures_are_those_of_the_next_class() -> None:
    some = shown(robustness.wrong_pictures(references(), 2))
    assert some == {1: [2, 2, 1, 1, 1], 2: [3, 3, 2, 2, 2], 3: [4, 4, 3, 3, 3], 4: [1, 1, 4, 4, 4]}
    half = shown(robustness.wrong_class(references(), 0.5))
    wrong = [value for value, classes in half.items() if classes != [value] * 5]
    assert len(wrong) == 2
    assert all(half[value] == [value % 4 + 1] * 5 for value in wrong)


def test_noise_and_blur_grow_with_the_strength() -> None:
    random = np.random.default_rng(0)
    (clean, *_) = references()[1]
    before, mask = (np.asarray(part) for part in clean.read())
    for strength in (0.02, 0.1):
        noisy = robustness.noise(clean, strength, random)
        blue = np.asarray(noisy.read()[0], np.float64)[..., 2] - before[..., 2]
        assert blue.std() == pytest.approx(255 * strength, rel=0.1)
        assert (noisy.read()[1] == mask).all()
    edges = []
    for strength in (1 / 32, 1 / 8):
        blurred = np.asarray(robustness.blur(clean, strength, random).read()[0], np.float64)
        edges.append(np.abs(np.diff(blurred[20, :, 2])).max())
        # The thing is 19 pixels long: a blurred step of 100 rises by 100 / (sqrt(2 pi) sigma) a pixel.
        assert edges[-1] == pytest.approx(min(100, 100 / (np.sqrt(2 * np.pi) * 19 * strength)), rel=0.35)
    assert edges[0] > 2 * edges[1]


def test_where_both_lose_more_is_said() -> None:
    values = {"pictures": {"mIoU": 40.0}, "both": {"mIoU": 60.0}}
    lost = {"pictures": {"mIoU": 30.0}, "both": {"mIoU": 55.0}}
    worse = {"pictures": {"mIoU": 39.0}, "both": {"mIoU": 55.0}}
    result = values | {what: {"1": lost} for what in robustness.SPOILED}
    assert len(robustness.gentler({"set": result})) == 0
    assert robustness.gentler({"set": result | {"blur": {"0.1": worse}}}) == ["set, blur 0.1"]
