"""`dpseg explain cost`: its maps against plain NumPy, its pictures cell by cell, and what it writes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import Guidance, ModelConfig, RefineConfig
from dpseg.errors import ConfigError
from dpseg.explain.cost import Explanation, cost_maps, explain_photo, largest_classes
from dpseg.explain.figures import column_scale, cost_figure, inference_figure, png_of
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=3, logit_scale=10.0, tune_encoder=False)
RED, BLUE = (220, 30, 20), (20, 40, 220)


def make_segmenter(folder: Path, guidance: Guidance = "visual234") -> Segmenter:
    torch.manual_seed(0)
    model = DPSeg(replace(CONFIG, guidance=guidance))
    return Segmenter(model, refinement=RefineConfig(min_confidence=0.0), cache=EmbeddingCache(folder))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return make_segmenter(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (32, 32), RED).save("red.png")
    Image.new("RGB", (32, 32), BLUE).save("blue.png")
    halves().save("both.png")


def halves() -> Image.Image:
    """Three quarters blue, one quarter red."""
    photo = Image.new("RGB", (128, 64), BLUE)
    photo.paste(RED, (0, 0, 32, 64))
    return photo


def explained(segmenter: Segmenter, count: int = 6) -> Explanation:
    """Red by words and a picture, blue by a picture's colour too, and grey by words alone."""
    prompts = segmenter.prompts(["red", "blue", "grey"], {"red": "red.png", "blue": "blue.png"})
    return explain_photo(segmenter, halves(), prompts, count)


def cosines(features: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Cosine of each position of (1, D, h, w) with (K, M, D), averaged over M: (K, h, w)."""
    e, r = features[0].numpy().astype(np.float64), rows.numpy().astype(np.float64)
    e = e / np.linalg.norm(e, axis=0)
    lengths = np.linalg.norm(r, axis=-1, keepdims=True)
    return np.einsum("dhw,kmd->kmhw", e, r / np.where(lengths == 0, 1, lengths)).mean(axis=1)


def test_the_maps_are_cosines(segmenter: Segmenter) -> None:
    words = segmenter.prompts(["red", "grey"], {"red": "red.png"})
    pictures = segmenter.prompts(None, {"blue": "blue.png"})
    encoded = segmenter.encode([halves()])
    maps = cost_maps(segmenter.model, encoded.pyramid, words)
    e, dense = words.embeddings, encoded.pyramid.dense
    assert list(maps) == ["text", "visual", "dual", "stage4", "stage3", "stage2"]
    assert np.allclose(maps["text"], cosines(dense, e.text), atol=1e-5)
    assert np.allclose(maps["visual"][0], cosines(dense, e.visual)[0], atol=1e-5)
    both = torch.cat([(e.text[:1] + e.visual[:1]) / 2, e.text[1:]])
    assert np.allclose(maps["dual"], cosines(dense, both), atol=1e-5)
    for j in (2, 3, 4):
        features = encoded.pyramid.stages[j - 2]
        assert maps[f"stage{j}"].shape == (2, *features.shape[-2:])
        assert np.allclose(maps[f"stage{j}"][0], cosines(features, e.stages[j - 2])[0], atol=1e-5)
    for name in ("visual", "stage4", "stage3", "stage2"):
        assert np.isnan(maps[name][1]).all()
    alone = cost_maps(segmenter.model, encoded.pyramid, pictures)
    assert np.isnan(alone["text"]).all()
    assert np.allclose(alone["dual"], alone["visual"], atol=1e-5)


@pytest.mark.parametrize(("guidance", "stages"), [("visual2", ["stage2"]), ("none", [])])
def test_only_scales_that_the_model_reads_are_shown(tmp_path: Path, guidance: Guidance, stages: list[str]) -> None:
    found = explained(make_segmenter(tmp_path, guidance))
    assert list(found.maps) == ["text", "visual", "dual", *stages, "probability"]


def test_the_largest_classes_and_their_probabilities(segmenter: Segmenter) -> None:
    found = explained(segmenter, count=2)
    prompts = segmenter.prompts(["red", "blue", "grey"], {"red": "red.png", "blue": "blue.png"})
    first = segmenter(halves(), prompts=prompts, refine=False)
    second = segmenter(halves(), prompts=prompts, refine=True)
    assert found.names == tuple(first.areas)[:2]
    rows = [first.names.index(name) for name in found.names]
    assert np.allclose(found.maps["probability"], 1 / (1 + np.exp(-first.logits[rows].astype(np.float64))), atol=1e-6)
    assert np.array_equal(found.first.labels, first.labels)
    assert np.array_equal(found.second.logits, second.logits)
    assert any("crop" in kinds for kinds in found.second.prompts)


def test_classes_that_were_not_found_come_last(segmenter: Segmenter) -> None:
    found = explained(segmenter)
    labels = np.full((4, 4), 2, np.int32)
    labels[0] = 1
    result = replace(found.first, labels=labels)
    assert largest_classes(result, 3) == ("grey", "blue", "red")
    assert largest_classes(result, 1) == ("grey",)
    with pytest.raises(ConfigError, match="classes 0"):
        explained(segmenter, count=0)


def test_the_archive_holds_the_arrays(segmenter: Segmenter) -> None:
    found = explained(segmenter)
    archive = np.load(io.BytesIO(found.to_npz()))
    assert archive["names"].tolist() == list(found.names)
    assert archive["label_names"].tolist() == ["red", "blue", "grey"]
    assert np.array_equal(archive["labels_second"], found.second.labels)
    for name, values in found.maps.items():
        assert np.array_equal(archive[name], values, equal_nan=True)


def headed(figure: Figure, heading: str) -> int:
    """Returns the position of the first row's cell below a heading."""
    (place,) = [number for number, axes in enumerate(figure.axes) if axes.get_title().startswith(heading)]
    return place


def test_the_picture_has_a_row_for_each_class(segmenter: Segmenter) -> None:
    found = explained(segmenter)
    figure = cost_figure(found)
    png_of(figure)
    row = found.names.index("grey")
    for heading, kind in (("text", "text"), ("dual", "dual"), ("decoder", "probability")):
        start = headed(figure, heading)
        cells = figure.axes[start : start + 3]
        low, top = column_scale(kind, found.maps[kind])
        assert [cell.images[0].get_clim() for cell in cells] == [(low, top)] * 3
        labels = [label.get_text() for label in figure.axes[start + 3].get_xticklabels()]
        assert labels == [f"{low:.2f}", f"{top:.2f}"]
    for heading in ("visual\ncosine(E, V)", "visual, $F_v^4$", "visual, $F_v^2$"):
        cells = figure.axes[headed(figure, heading) :][:3]
        assert [bool(cell.images) for cell in cells] == [number != row for number in range(3)]
        assert [text.get_text() for text in cells[row].texts] == ["no pictures"]
    shown = [axes.get_ylabel().splitlines()[0] for axes in figure.axes if axes.get_ylabel()]
    assert shown == list(found.names)


def test_a_scale_spans_all_classes_of_a_column() -> None:
    maps = np.array([[[0.1, 0.3]], [[-0.4, 0.2]], [[np.nan, np.nan]]], np.float32)
    assert column_scale("text", maps) == pytest.approx((-0.4, 0.3))
    assert column_scale("probability", maps) == (0, 1)
    assert column_scale("visual", np.full((2, 1, 1), np.nan, np.float32)) == (0, 1)


def test_maps_are_drawn_where_they_are(segmenter: Segmenter) -> None:
    found = explained(segmenter)
    values = np.zeros_like(found.maps["probability"])
    values[:, :, : values.shape[2] // 4] = 1
    figure = cost_figure(replace(found, maps={"probability": values}))
    drawn = np.asarray(figure.axes[headed(figure, "decoder")].images[0].get_array())
    assert drawn.shape[1] == 2 * drawn.shape[0]  # the photo's proportions
    assert drawn[:, : drawn.shape[1] // 5].min() > 0.99
    assert drawn[:, drawn.shape[1] * 3 // 10 :].max() < 0.01


def test_words_may_be_missing_and_photos_uniform(segmenter: Segmenter) -> None:
    prompts = segmenter.prompts(None, {"$red$ _x": "red.png"})
    found = explain_photo(segmenter, Image.new("RGB", (40, 90), RED), prompts)
    figure = cost_figure(found)
    cell = figure.axes[headed(figure, "text")]
    assert [text.get_text() for text in cell.texts] == ["no words"]
    picture = Image.open(io.BytesIO(png_of(figure)))
    assert picture.height > 100


def test_the_inferences_stand_beside_each_other(segmenter: Segmenter) -> None:
    found = explained(segmenter)
    changed = found.first.labels.copy()
    changed[:16] = (changed[:16] + 1) % 3
    second = replace(found.first, labels=changed, prompts=(("text", "crop"), ("text", "reference"), ("text",)))
    left, right = inference_figure(found.first, second).axes
    assert left.get_title() == "Inference I"
    assert right.get_title() == "Inference II, crops of red; 25.0% of the pixels changed"
    assert np.array_equal(np.asarray(left.images[0].get_array()), np.asarray(found.first.plot()))
    plain = inference_figure(found.first, found.first).axes[1]
    assert plain.get_title() == "Inference II, no crops; 0.0% of the pixels changed"


@pytest.fixture
def model(segmenter: Segmenter, tmp_path: Path) -> str:
    segmenter.model.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_the_command_writes_its_files(segmenter: Segmenter, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["--text", "red", "-t", "blue", "-t", "grey", "--ref", "red=red.png", "--ref", "blue=blue.png"]
    assert run(["explain", "cost", "both.png", *classes, "--model", model, "--out", "a/b", "--classes", "2"]) == 0
    found = explained(segmenter, count=2)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        f"both.png: {', '.join(found.names)}",
        "a/b: cost.png, cost_inference.png, cost.npz",
    ]
    assert {path.name for path in Path("a/b").iterdir()} == {"cost.png", "cost_inference.png", "cost.npz"}
    archive = np.load("a/b/cost.npz")
    for name, values in found.maps.items():
        assert np.allclose(archive[name], values, atol=1e-5, equal_nan=True)
    for name in ("cost.png", "cost_inference.png"):
        with Image.open(f"a/b/{name}") as picture:
            assert picture.width > picture.height > 100


def test_saved_prompts_and_vocabularies_work_as_in_predict(model: str) -> None:
    Path("mine.txt").write_text("red\nblue\n")
    common = ["-v", "mine.txt", "--ref", "red=red.png", "--model", model]
    assert run(["predict", "both.png", *common, "--save-prompts", "kept.safetensors", "-f", "npz", "-o", "p"]) == 0
    assert run(["explain", "cost", "both.png", *common, "-o", "one", "--size", "96"]) == 0
    asked = ["--prompts", "kept.safetensors", "--model", model, "--size", "96"]
    assert run(["explain", "cost", "both.png", *asked, "-o", "two"]) == 0
    first, second = np.load("one/cost.npz"), np.load("two/cost.npz")
    assert sorted(first) == sorted(second)
    assert all(np.array_equal(first[key], second[key], equal_nan=first[key].dtype.kind == "f") for key in sorted(first))
    assert first["stage2"].shape[1:] == (24, 48)  # 96 pixels at stride 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["both.png"], "no classes given"),
        (["both.png", "-t", "cat", "--prompts", "kept.safetensors"], "--prompts already holds the classes"),
        (["nowhere.png", "-t", "cat"], "nowhere.png: no such file"),
        (["both.png", "-t", "cat", "--classes", "0"], "classes 0"),
        (["both.png", "-t", "cat", "--size", "3"], "size 3"),
        (["both.png", "-t", "cat", "--out", "red.png"], "red.png: cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["explain", "cost", "--model", model, "--out", "results", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(Path().rglob("cost*"))
