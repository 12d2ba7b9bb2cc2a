"""`dpseg export` and the runner without torch: what is written labels as the model does, in 8 bits nearly so."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.errors import ConfigError, DPSegError, MissingExtraError, PromptError, WeightsError
from dpseg.exporting import graph, parity, pixels
from dpseg.exporting.about import KEY, PROMPT_INPUTS, About
from dpseg.exporting.quantize import MOST_PHOTOS, agreement, calibration_inputs, quantize
from dpseg.exporting.session import OnnxSession
from dpseg.matching import Matching
from dpseg.model.class_logits import ClassLogits, presence_shift
from dpseg.model.dpseg import DPSeg
from dpseg.model.label_map import LabelMap
from dpseg.model.preprocess import mirror, prepare, scaled_size
from dpseg.onnx_runner import OnnxRunner, Prompts, main
from dpseg.prompts.prompt_set import PromptSet
from dpseg.segmenter import Segmenter
from support.exported import (
    SED,
    Export,
    check_sums_of_pairs,
    exportable,
    frozen_export,
    lite_export,
    open_export,
    random_set,
    weighted,
)
from support.pictures import CAT, COFFEE, EXAMPLES

pytestmark = [
    pytest.mark.skipif(not (find_spec("onnxscript") and find_spec("onnxruntime")), reason="extras are missing"),
]
PHOTOS = sorted(EXAMPLES.glob("*.jpg"))
ABOUT = About(1, "0", "tiny", "print", 64, True, None, 32, 1, 1, (0.667, 1.5), 0.5, False)

LITE_AGREEMENT = 0.95
"""Share of the positions of the example photos to which dpseg-lite in 8-bit integers gives the same class, at least."""


@pytest.fixture(scope="module")
def opened() -> Export:
    return open_export()


@pytest.fixture(scope="module")
def frozen() -> Export:
    return frozen_export()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PromptSet]:
    """A folder with photo.png and set.safetensors, and what this holds: as many classes as the model decodes."""
    folder = tmp_path_factory.mktemp("runner")
    photo = Image.open(COFFEE).resize((300, 200))
    photo.save(folder / "photo.png")
    corners = {"cup": (90, 60), "spoon": (180, 120), "table": (0, 150), "wall": (230, 0)}
    parts = {name: photo.crop((x, y, x + 40, y + 40)) for name, (x, y) in corners.items()}
    prompts = Segmenter(exportable(), cache=EmbeddingCache(folder)).prompts(references=parts)
    prompts.save(folder / "set.safetensors")
    return folder, prompts


@pytest.mark.numeric
def test_size_and_number_of_classes_are_free_in_both_formats(opened: Export) -> None:
    model, session = exportable(), OnnxSession(opened.path)
    content, extra = graph.to_torch(opened.program, graph.about(model, "tiny", None)), {KEY: ""}
    loaded = torch.export.load(io.BytesIO(content), extra_files=extra)
    assert About.from_json(str(extra[KEY]), "it").image_size == 64
    assert not any("text_projection" in name for name in loaded.state_dict)  # nothing that the graph does not read
    module = loaded.module()
    for count, height, width in ((1, 64, 64), (2, 32, 32), (40, 32, 160), (5, 160, 96), (11, 96, 64)):
        image, prompts = torch.rand(1, 3, height, width), graph.random_prompts(model, count, seed=9)
        tensors = graph.prompt_tensors(prompts)
        with torch.no_grad():
            plain = DPSeg.decode_plainly(graph.one_view(model), model.encoder.pyramid(image), prompts)
        arrays = {name: tensor.numpy() for name, tensor in zip(PROMPT_INPUTS, tensors, strict=True)}
        found = session(image.numpy(), arrays)
        assert found.shape == (1, count, height // 16, width // 16)
        assert float(plain.std()) > 0.1
        assert parity.difference(plain, torch.from_numpy(found)) < parity.TOLERANCE
        if min(count, height // 32, width // 32) > 1:  # against one torch.export guards
            assert parity.difference(plain, module(image, *tensors).detach()) < parity.TOLERANCE


@pytest.mark.numeric
def test_sed_with_frozen_classes_is_exported_and_files_say_what_they_are(opened: Export, frozen: Export) -> None:
    assert OnnxSession(frozen.path).about.names == ("a", "b", "c", "d")
    model = exportable(**SED)
    prompts = random_set(model, "abcd").embeddings
    found = parity.compare(model, prompts, parity.onnx_runner(frozen.path.read_bytes()))
    assert [(one.classes, one.width) for one in found] == [(4, 64), (4, 96)]
    assert max(one.difference for one in found) < parity.TOLERANCE
    about = OnnxSession(opened.path).about
    assert about.names is None
    assert about == graph.about(exportable(), about.model, None)
    assert (about.stride, about.templates, about.mirrored_scales, about.presence) == (32, 2, (0.75,), 0.5)


def test_words_are_frozen_into_the_other_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, extra = tmp_path / "frozen.pt2", {KEY: ""}
    exportable(widths=(8,), image_widths=()).save_pretrained(tmp_path / "small")
    words = ("--text", "cat", "--text", "couch, sofa", "--text", "wall", "--format", "torch-export")
    assert run(["export", "--model", str(tmp_path / "small"), "--out", str(path), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["3 classes at 64 x 64", "3 classes at 96 x 64"]
    assert "for 3 classes" in lines[2]
    loaded = torch.export.load(path, extra_files=extra).module()
    about = About.from_json(str(extra[KEY]), "it")
    assert (about.names, about.sources) == (("cat", "couch", "wall"), (("text",),) * 3)
    assert loaded(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 2, 3)


def test_a_file_that_differs_is_not_written(
    opened: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = torch.ones(1, 2, 4, 4)
    wrong = ones.clone()
    wrong[0, 1, 2, 3] = 0.5
    assert parity.difference(ones, wrong) == 0.5
    wrong[0, 0, 0, 0] = float("nan")
    assert parity.difference(ones, wrong) == parity.difference(ones, ones[:, :1]) == float("inf")
    opened.made_before(monkeypatch)
    monkeypatch.setattr(parity, "difference", lambda *_: 2e-4)
    assert run(["export", *opened.options, "--out", str(tmp_path / "model.onnx")]) == 1
    said = capsys.readouterr()
    assert "20 classes at 96 x 64: differs by 2.0e-04 of the largest logit" in said.out
    assert said.err.endswith("differs from the model by 2.0e-04, and at most 0.0001 is let pass; nothing is written\n")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_the_command_are_one_line(
    opened: Export, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exportable(matching=Matching(whole=1.0)).save_pretrained(tmp_path / "whole")
    foreign = replace(random_set(exportable(), "ab"), encoder="another").save(tmp_path / "set.safetensors")
    out = ("--out", str(tmp_path / "m.onnx"))
    for options, text in (
        ((*out, "--format", "onxx"), "'onxx' is unknown; did you mean 'onnx'"),
        (("--out", str(tmp_path)), "is a folder; name a file in it"),
        ((*out, "--model", str(tmp_path / "whole")), "exports do not have"),
        ((*out, *opened.options, "--prompts", str(foreign)), "another model"),
        ((*out, "--int8", str(EXAMPLES), "--format", "torch-export"), "--int8 does not go with --format torch-export"),
        ((*out, "--int8", str(tmp_path / "none")), "no such file or folder"),
    ):
        assert text in refused("export", *options)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'dpseg[export]'" in refused("export", *opened.options, *out)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.numeric
def test_the_encoder_alone_is_quantised_and_no_sum_of_a_pair_of_products_saturates(frozen: Export) -> None:
    content = frozen.path.read_bytes()
    about = OnnxSession(content).about
    inputs = calibration_inputs(PHOTOS, about, {})
    small = quantize(content, inputs)
    check_sums_of_pairs(small)
    assert all(values is None for _, values in weighted(content))
    encoder = [module for module, _ in weighted(content) if "model.encoder." in module]
    assert [module for module, values in weighted(small) if values is not None] == encoder[1:]  # the first stays
    assert OnnxSession(small).about == about
    assert agreement(content, small, inputs) > 0.9
    before, after = (OnnxSession(one)(inputs[0]["image"], {}) for one in (content, small))
    assert 0 < np.abs(before - after).max() < 0.1 * np.abs(before).max()
    assert agreement(content, content, inputs) == 1


@pytest.mark.parametrize(
    ("export", "photos", "what"),
    [(open_export, EXAMPLES, "3 photos get another of COCO's 133 names"),
     (frozen_export, COFFEE, "1 photo get another of the classes")],
    ids=["open", "frozen"],
)  # fmt: skip
def test_the_command_says_how_many_positions_integers_change(
    export: Callable[[], Export],
    photos: Path,
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, out = export(), tmp_path / "small.onnx"
    made.made_before(monkeypatch)
    assert run(["export", *made.options, "--out", str(out), "--int8", str(photos)]) == 0
    share = rf"8-bit integers: \d\.\d% of the positions of {what} than in single precision"
    assert re.fullmatch(share, capsys.readouterr().out.splitlines()[-2])
    assert OnnxSession(out).about == OnnxSession(made.path).about
    check_sums_of_pairs(out.read_bytes())


def test_ranges_need_photos_and_an_encoder_and_are_measured_on_photos_spread_over_the_list(
    frozen: Export, tmp_path: Path
) -> None:
    import onnx

    with pytest.raises(ConfigError, match="name some, a dozen or more"):
        quantize(frozen.path.read_bytes(), [])
    model = onnx.load(frozen.path)
    for node in model.graph.node:
        del node.metadata_props[:]
    with pytest.raises(ConfigError, match="no convolutions in its encoder"):
        quantize(model.SerializeToString(), [{"image": np.zeros((1, 3, 64, 64), dtype=np.float32)}])
    photos = [tmp_path / f"{number:03}.png" for number in range(2 * MOST_PHOTOS + 1)]
    for number, photo in enumerate(photos):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(photo)
    inputs = calibration_inputs(photos, OnnxSession(frozen.path).about, {})
    reds = [float(one["image"][0, 0].mean()) * 255 for one in inputs]
    np.testing.assert_allclose(reds, range(0, 2 * MOST_PHOTOS + 1, 3), atol=0.01)


@pytest.mark.slow
@pytest.mark.numeric
def test_dpseg_lite_labels_as_with_torch_and_nearly_so_in_8_bits(
    lite: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, small = lite_export(), tmp_path / "lite8.onnx"
    result = lite(COFFEE, prompts=lite.prompts(list(whole.options[1::2])), refine=False)
    found = OnnxRunner(whole.path)(COFFEE)
    assert found.names == ("cat", "coffee cup", "spoon", "wooden table", "wall")
    assert len(result.areas) > 2
    assert (found.labels == result.labels).mean() > 0.995
    assert np.abs(found.logits - result.logits).max() < 1e-3 * np.abs(result.logits).max()
    whole.made_before(monkeypatch)
    assert run(["export", *whole.options, "--out", str(small), "--int8", str(EXAMPLES)]) == 0
    before, after = whole.path.read_bytes(), small.read_bytes()
    check_sums_of_pairs(after)
    assert len(after) < 0.4 * len(before)
    same = agreement(before, after, calibration_inputs(PHOTOS, OnnxSession(after).about, {}))
    assert LITE_AGREEMENT <= same < 1
    line = f"8-bit integers: {1 - same:.1%} of the positions of 3 photos get another of the classes"
    assert capsys.readouterr().out.splitlines()[-2] == f"{line} than in single precision"
    assert 0.95 < (found.labels == OnnxRunner(small)(COFFEE).labels).mean() < 1
    assert "cat" in OnnxRunner(small)(CAT).areas


@pytest.mark.numeric
def test_the_runner_labels_as_the_segmenter_without_torch(opened: Export, place: tuple[Path, PromptSet]) -> None:
    folder, prompts = place
    (folder / "blocked").mkdir()
    (folder / "blocked" / "torch.py").write_text("raise ImportError('torch is not for the runner')\n")
    paths = os.pathsep.join([str(folder / "blocked"), *(path for path in sys.path if path)])
    command = [sys.executable, "-m", "dpseg.onnx_runner", str(opened.path), "photo.png"]
    command += ["--prompts", "set.safetensors", "--out", "out", "--size", "192", "--format", "png,json,overlay"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("photo.png: ")
    result = Segmenter(exportable())(folder / "photo.png", prompts=prompts, size=192)
    labels = np.array(Image.open(folder / "out" / "photo_labels.png"))
    assert labels.shape == (200, 300)
    assert max(result.areas.values()) < 0.95  # not one class alone
    assert (labels == result.labels).mean() > 0.995
    assert (folder / "out" / "photo_overlay.png").is_file()
    read = Prompts.load(folder / "set.safetensors")
    found = OnnxRunner(opened.path)(folder / "photo.png", read, size=192).to_dict()
    assert [entry["name"] for entry in found["classes"]] == list(result.areas)
    for entry in found["classes"]:
        assert entry["confidence"] == pytest.approx(result.confidences[entry["name"]], abs=2e-3)
        assert entry["prompts"] == list(result.prompts[entry["index"]])


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
    for small in ((9, 31), (7, 12), (3, 5), (1, 1)):
        resized = F.interpolate(logits[None, :3, :7, :12], small, mode="bilinear", align_corners=False)[0]
        np.testing.assert_allclose(pixels.resize(logits[:3, :7, :12].numpy(), small), resized.numpy(), atol=1e-5)


def test_prompts_that_do_not_fit_the_runner_are_refused(opened: Export, place: tuple[Path, PromptSet]) -> None:
    runner, frozen_in = OnnxRunner(opened.path), OnnxRunner(opened.path)
    prompts = Prompts.load(place[0] / "set.safetensors")
    frozen_in.about = replace(runner.about, names=("a",))
    three_templates = replace(prompts, tensors=prompts.tensors | {"text": np.zeros((4, 3, 24), np.float32)})
    for wrong, of, text in (
        (None, runner, "give --prompts"),
        (replace(prompts, encoder="x"), runner, "another model"),
        (three_templates, runner, "3 templates"),
        (prompts, frozen_in, "has its 1 classes in it"),
    ):
        with pytest.raises(PromptError, match=text):
            of.check(wrong)
    with pytest.raises(ConfigError, match="background 2 is out of range"):
        runner(place[0] / "photo.png", prompts, background=2)


def test_mistakes_of_the_runner_are_one_line(
    opened: Export,
    place: tuple[Path, PromptSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnx import TensorProto, helper, save

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    foreign = tmp_path / "foreign.onnx"
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), foreign)
    photo, prompts, model = (str(path) for path in (place[0] / "photo.png", place[0] / "set.safetensors", opened.path))
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
    assert About.from_json(ABOUT.to_json(), "it") == ABOUT
    for text, expected in (("{", "damaged"), ('{"version": 9}', "newer than 1"), ('{"version": 1}', "damaged")):
        with pytest.raises(WeightsError, match=expected) as caught:
            About.from_json(text, "it")
        assert isinstance(caught.value, DPSegError)
