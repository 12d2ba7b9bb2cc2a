"""What the decoder is told of a photo: maps against plain NumPy, pictures of them cell by cell, and the archive."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.config import Guidance
from dpseg.explain.cost import Explanation, cost_maps, explain_photo, largest_classes
from dpseg.explain.figures import column_scale, cost_figure, inference_figure, png_of
from dpseg.segmenter import Segmenter
from support.explaining import eager_segmenter, quarter
from support.pictures import BLUE, RED, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = ("red", "blue", "grey")
PICTURES = {"red": plain(RED), "blue": plain(BLUE)}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return eager_segmenter(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def found(segmenter: Segmenter) -> Explanation:
    """Red and blue by words and a picture, and grey by words alone."""
    return explained(segmenter)


def explained(segmenter: Segmenter, count: int = 6) -> Explanation:
    return explain_photo(segmenter, quarter(), segmenter.prompts(CLASSES, PICTURES), count)


def cosines(features: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Cosine of each position of (1, D, h, w) with (K, M, D), averaged over M: (K, h, w)."""
    e, r = features[0].numpy().astype(np.float64), rows.numpy().astype(np.float64)
    e = e / np.linalg.norm(e, axis=0)
    lengths = np.linalg.norm(r, axis=-1, keepdims=True)
    return np.einsum("dhw,kmd->kmhw", e, r / np.where(lengths == 0, 1, lengths)).mean(axis=1)


@pytest.mark.numeric
def test_the_maps_are_cosines(segmenter: Segmenter) -> None:
    words = segmenter.prompts(["red", "grey"], {"red": plain(RED)})
    encoded = segmenter.encode([quarter()])
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
    alone = cost_maps(segmenter.model, encoded.pyramid, segmenter.prompts(None, {"blue": plain(BLUE)}))
    assert np.isnan(alone["text"]).all()
    assert np.allclose(alone["dual"], alone["visual"], atol=1e-5)


@pytest.mark.parametrize(("guidance", "stages"), [("visual2", ["stage2"]), ("none", [])])
def test_only_scales_that_the_model_reads_are_shown(tmp_path: Path, guidance: Guidance, stages: list[str]) -> None:
    found = explained(eager_segmenter(tmp_path, guidance=guidance))
    assert list(found.maps) == ["text", "visual", "dual", *stages, "probability"]


def test_the_largest_classes_and_their_probabilities(segmenter: Segmenter) -> None:
    found, prompts = explained(segmenter, count=2), segmenter.prompts(CLASSES, PICTURES)
    first, second = (segmenter(quarter(), prompts=prompts, refine=refine) for refine in (False, True))
    assert found.names == tuple(first.areas)[:2]
    rows = [first.names.index(name) for name in found.names]
    assert np.allclose(found.maps["probability"], 1 / (1 + np.exp(-first.logits[rows].astype(np.float64))), atol=1e-6)
    assert np.array_equal(found.first.labels, first.labels)
    assert np.array_equal(found.second.logits, second.logits)
    assert any("crop" in kinds for kinds in found.second.prompts)


def test_classes_that_were_not_found_come_last(found: Explanation) -> None:
    labels = np.full((4, 4), 2, np.int32)
    labels[0] = 1
    result = replace(found.first, labels=labels)
    assert largest_classes(result, 3) == ("grey", "blue", "red")
    assert largest_classes(result, 1) == ("grey",)


def test_the_archive_holds_the_arrays(found: Explanation) -> None:
    archive = np.load(io.BytesIO(found.to_npz()))
    assert archive["names"].tolist() == list(found.names)
    assert archive["label_names"].tolist() == list(CLASSES)
    assert np.array_equal(archive["labels_first"], found.first.labels)
    assert np.array_equal(archive["labels_second"], found.second.labels)
    for name, values in found.maps.items():
        assert np.array_equal(archive[name], values, equal_nan=True)


def headed(figure: Figure, heading: str) -> int:
    """Returns the position of the first row's cell below a heading."""
    (place,) = [number for number, axes in enumerate(figure.axes) if axes.get_title().startswith(heading)]
    return place


def test_the_picture_has_a_row_for_each_class(found: Explanation) -> None:
    figure = cost_figure(found)
    row = found.names.index("grey")
    for heading, kind in (("text", "text"), ("dual", "dual"), ("decoder", "probability")):
        start = headed(figure, heading)
        low, top = column_scale(kind, found.maps[kind])
        assert [cell.images[0].get_clim() for cell in figure.axes[start : start + 3]] == [(low, top)] * 3
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


def test_maps_are_drawn_where_they_are(found: Explanation) -> None:
    values = np.zeros_like(found.maps["probability"])
    values[:, :, : values.shape[2] // 4] = 1
    figure = cost_figure(replace(found, maps={"probability": values}))
    drawn = np.asarray(figure.axes[headed(figure, "decoder")].images[0].get_array())
    assert drawn.shape[1] == 2 * drawn.shape[0]  # the photo's proportions
    assert drawn[:, : drawn.shape[1] // 5].min() > 0.99
    assert drawn[:, drawn.shape[1] * 3 // 10 :].max() < 0.01


def test_words_may_be_missing_and_photos_uniform(segmenter: Segmenter) -> None:
    prompts = segmenter.prompts(None, {"$red$ _x": plain(RED)})
    figure = cost_figure(explain_photo(segmenter, Image.new("RGB", (40, 90), RED), prompts))
    cell = figure.axes[headed(figure, "text")]
    assert [text.get_text() for text in cell.texts] == ["no words"]
    assert Image.open(io.BytesIO(png_of(figure))).height > 100


def test_the_inferences_stand_beside_each_other(found: Explanation) -> None:
    changed = found.first.labels.copy()
    changed[:16] = (changed[:16] + 1) % 3
    second = replace(found.first, labels=changed, prompts=(("text", "crop"), ("text", "reference"), ("text",)))
    left, right = inference_figure(found.first, second).axes
    assert left.get_title() == "Inference I"
    assert right.get_title() == "Inference II, crops of red; 25.0% of the pixels changed"
    assert np.array_equal(np.asarray(left.images[0].get_array()), np.asarray(found.first.plot()))
    same = inference_figure(found.first, found.first).axes[1]
    assert same.get_title() == "Inference II, no crops; 0.0% of the pixels changed"
