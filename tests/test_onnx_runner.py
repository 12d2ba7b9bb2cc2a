"""Exported models without torch: the same photo's input, the same labels, and its mistakes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.errors import ConfigError, DPSegError, MissingExtraError, PromptError, WeightsError
from dpseg.exporting import pixels
from dpseg.exporting.about import About
from dpseg.model.class_logits import ClassLogits, presence_shift
from dpseg.model.label_map import LabelMap
from dpseg.model.preprocess import mirror, prepare, scaled_size
from dpseg.onnx_runner import OnnxRunner, Prompts, main
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from support.exported import exportable, lite_export, needs_exporter, one_worker, open_export
from support.pictures import COFFEE

pytestmark = [needs_exporter, one_worker]
ABOUT = About(1, "0", "tiny", "print", 64, True, None, 32, 1, 1, (0.667, 1.5), 0.5, False)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter(exportable(), cache=EmbeddingCache(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def place(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, set.safetensors and a photo."""
    folder = tmp_path_factory.mktemp("runner")
    shutil.copy(open_export().path, folder)
    photo = Image.open(COFFEE).resize((300, 200))
    photo.save(folder / "photo.png")
    corners = {"cup": (90, 60), "spoon": (180, 120), "table": (0, 150), "wall": (230, 0)}
    parts = {name: photo.crop((x, y, x + 40, y + 40)) for name, (x, y) in corners.items()}
    segmenter.prompts(references=parts).save(folder / "set.safetensors")  # as many classes as the model decodes
    return folder


@pytest.mark.numeric
def test_it_labels_as_the_segmenter_without_torch(segmenter: Segmenter, place: Path) -> None:
    blocked = place / "blocked"
    blocked.mkdir()
    (blocked / "torch.py").write_text("raise ImportError('torch is not for the runner')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(blocked), *(path for path in sys.path if path)])}
    command = [sys.executable, "-m", "dpseg.onnx_runner", "model.onnx", "photo.png", "--prompts", "set.safetensors"]
    command += ["--out", "out", "--size", "192", "--format", "png,json,overlay"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("photo.png: ")
    result = segmenter(place / "photo.png", prompts=PromptSet.load(place / "set.safetensors"), size=192)
    labels = np.array(Image.open(place / "out" / "photo_labels.png"))
    assert labels.shape == (200, 300)
    assert max(result.areas.values()) < 0.95  # not one class alone
    assert (labels == result.labels).mean() > 0.995
    assert (place / "out" / "photo_overlay.png").is_file()
    prompts = Prompts.load(place / "set.safetensors")
    found = OnnxRunner(place / "model.onnx")(place / "photo.png", prompts, size=192).to_dict()
    assert [entry["name"] for entry in found["classes"]] == list(result.areas)
    for entry in found["classes"]:
        assert entry["confidence"] == pytest.approx(result.confidences[entry["name"]], abs=2e-3)
        assert entry["prompts"] == list(result.prompts[entry["index"]])


@pytest.mark.slow
@pytest.mark.numeric
def test_dpseg_lite_labels_a_photo_as_it_does_with_torch(lite: Segmenter) -> None:
    export = lite_export()
    result = lite(COFFEE, prompts=lite.prompts(list(export.options[1::2])), refine=False)
    found = OnnxRunner(export.path)(COFFEE)
    assert found.names == ("cat", "coffee cup", "spoon", "wooden table", "wall")
    assert len(result.areas) > 2
    assert (found.labels == result.labels).mean() > 0.995
    assert np.abs(found.logits - result.logits).max() < 1e-3 * np.abs(result.logits).max()


@pytest.mark.numeric
@pytest.mark.parametrize("size", [(500, 333), (96, 64), (40, 900), (64, 64)])
@pytest.mark.parametrize("config", [{}, {"keep_aspect": False, "shortest_edge": 50}])
def test_a_photo_becomes_the_same_input(size: tuple[int, int], config: dict[str, Any]) -> None:
    about = replace(ABOUT, **config)
    photo = Image.open(COFFEE).convert("RGB").resize(size)
    theirs = prepare(photo, 64, about.keep_aspect, 32, about.shortest_edge)
    ours = pixels.input_of(photo, about)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=1e-6)
    for view, scale in zip(pixels.mirrored_views(ours, about), about.mirrored_scales, strict=True):
        expected = mirror(theirs[None], scaled_size(theirs.shape[-2:], scale, 32))
        np.testing.assert_allclose(view, expected.numpy(), atol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("background", [None, 0.55, 1.0])
@pytest.mark.parametrize("scores", [False, True])
def test_logits_become_the_same_labels(background: float | None, scores: bool) -> None:
    size, logits = (300, 517), 3 * torch.randn(90, 19, 33, generator=torch.Generator().manual_seed(0))
    about = replace(ABOUT, presence=0.0 if scores else 0.7, resize_scores=scores)
    labelling = LabelMap(size, background, scores)
    if about.presence:
        labelling.shift = presence_shift([ClassLogits(torch.arange(90), logits)], 90, about.presence)
        np.testing.assert_allclose(pixels.presence_shift(logits.numpy(), 0.7), labelling.shift.numpy(), atol=1e-5)
    labelling.add_all(logits)
    labels, means = pixels.label_map(logits.numpy(), size, about, background)
    assert (labels == labelling.labels()).mean() > 0.9999
    assert (labels >= 0).any() == (background != 1.0)
    np.testing.assert_allclose(means, labelling.mean_scores(90), atol=1e-3)


@pytest.mark.numeric
def test_resizing_is_torch_s() -> None:
    values = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(0))
    for size in ((9, 31), (7, 12), (3, 5), (1, 1)):
        expected = F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]
        np.testing.assert_allclose(pixels.resize(values.numpy(), size), expected.numpy(), atol=1e-5)


def test_prompts_that_do_not_fit_are_refused(place: Path) -> None:
    runner, prompts = OnnxRunner(place / "model.onnx"), Prompts.load(place / "set.safetensors")
    three_templates = replace(prompts, tensors=prompts.tensors | {"text": np.zeros((4, 3, 24), np.float32)})
    frozen_in = OnnxRunner(place / "model.onnx")
    frozen_in.about = replace(runner.about, names=("a",))
    for wrong, of, text in (
        (None, runner, "give --prompts"),
        (replace(prompts, encoder="x"), runner, "another model"),
        (three_templates, runner, "3 templates"),
        (prompts, frozen_in, "has its 1 classes in it"),
    ):
        with pytest.raises(PromptError, match=text):
            of.check(wrong)
    with pytest.raises(ConfigError, match="background 2 is out of range"):
        runner(place / "photo.png", prompts, background=2)


def test_mistakes_are_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    foreign = tmp_path / "foreign.onnx"
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    made = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), foreign)
    photo, prompts, model = (str(place / name) for name in ("photo.png", "set.safetensors", "model.onnx"))
    for arguments, expected in (
        ([str(tmp_path / "none.onnx"), photo], "no such file"),
        ([photo, photo], "onnxruntime cannot read it"),
        ([str(foreign), photo], "none that dpseg exported"),
        ([model, photo], "give --prompts"),
        ([model, photo, "--prompts", model], "cannot be read"),
        ([model, str(tmp_path / "no.jpg"), "--prompts", prompts], "no such file"),
        ([model, photo, "--prompts", prompts, "--format", "gif"], "'gif' is unknown"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dpseg: ")
        assert expected in line
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[onnx\]'"):
        OnnxRunner(model)


def test_a_damaged_note_is_told() -> None:
    assert About.from_json(ABOUT.to_json(), "it") == ABOUT
    for text, expected in (("{", "damaged"), ('{"version": 9}', "newer than 1"), ('{"version": 1}', "damaged")):
        with pytest.raises(WeightsError, match=expected) as caught:
            About.from_json(text, "it")
        assert isinstance(caught.value, DPSegError)
