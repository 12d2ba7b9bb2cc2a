"""`dpseg export`: what is written computes what the model computes, for any size and number of classes."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dpseg.cli import run
from dpseg.errors import ConfigError
from dpseg.exporting import graph, parity
from dpseg.exporting.about import KEY, PROMPT_INPUTS, About
from dpseg.exporting.quantize import MOST_PHOTOS, agreement, calibration_inputs, quantize
from dpseg.exporting.session import OnnxSession
from dpseg.matching import Matching
from dpseg.model.dpseg import DPSeg
from dpseg.onnx_runner import OnnxRunner
from dpseg.prompts.prompt_set import PromptSet
from support.exported import (
    SED,
    Export,
    exportable,
    frozen_export,
    lite_export,
    needs_exporter,
    one_worker,
    open_export,
    prompts_of_both_kinds,
)
from support.pictures import CAT, COFFEE, EXAMPLES

pytestmark = [needs_exporter, one_worker]
PHOTOS = sorted(EXAMPLES.glob("*.jpg"))

LITE_AGREEMENT = 0.85
"""Share of the positions of the example photos to which dpseg-lite in 8-bit integers gives the same class, at least."""


@pytest.fixture(scope="module")
def opened() -> Export:
    return open_export()


@pytest.fixture(scope="module")
def frozen() -> Export:
    return frozen_export()


@pytest.mark.numeric
@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 64), (2, 32, 32), (40, 32, 160), (5, 160, 96)])
def test_size_and_number_of_classes_are_free(opened: Export, count: int, height: int, width: int) -> None:
    model, image = exportable(), torch.rand(1, 3, height, width)
    prompts = graph.random_prompts(model, count, seed=9)
    tensors = {name: t.numpy() for name, t in zip(PROMPT_INPUTS, graph.prompt_tensors(prompts), strict=True)}
    with torch.no_grad():
        plain = DPSeg.decode_plainly(graph.one_view(model), model.encoder.pyramid(image), prompts)
    found = OnnxSession(opened.path)(image.numpy(), tensors)
    assert found.shape == (1, count, height // 16, width // 16)
    assert float(plain.std()) > 0.1
    assert parity.difference(plain, torch.from_numpy(found)) < parity.TOLERANCE


def test_the_file_says_what_it_is(opened: Export) -> None:
    about = OnnxSession(opened.path).about
    assert about.names is None
    assert about == graph.about(exportable(), about.model, None)
    assert (about.stride, about.templates, about.mirrored_scales, about.presence) == (32, 2, (0.75,), 0.5)


@pytest.mark.numeric
def test_sed_with_frozen_classes_is_exported(frozen: Export) -> None:
    assert OnnxSession(frozen.path).about.names == ("a", "b", "c", "d")
    model = exportable(**SED)
    prompts = prompts_of_both_kinds(model, 4).embeddings
    found = parity.compare(model, prompts, parity.onnx_runner(frozen.path.read_bytes()))
    assert [(one.classes, one.width) for one in found] == [(4, 64), (4, 96)]
    assert max(one.difference for one in found) < parity.TOLERANCE


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


@pytest.mark.numeric
def test_torch_reads_the_other_format(opened: Export) -> None:
    model = exportable()
    content, extra = graph.to_torch(opened.program, graph.about(model, "tiny", None)), {KEY: ""}
    loaded = torch.export.load(io.BytesIO(content), extra_files=extra)
    assert About.from_json(str(extra[KEY]), "it").image_size == 64
    assert not any("text_projection" in name for name in loaded.state_dict)  # nothing that the graph does not read
    image, prompts = torch.rand(1, 3, 96, 64), graph.random_prompts(model, 11)
    with torch.no_grad():
        plain = graph.one_view(model).decode_plainly(model.encoder.pyramid(image), prompts)
        found = loaded.module()(image, *graph.prompt_tensors(prompts))
    assert parity.difference(plain, found) < parity.TOLERANCE


def test_a_file_that_differs_is_not_written(
    opened: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.made_before(monkeypatch)
    monkeypatch.setattr(parity, "difference", lambda *_: 2e-4)
    words = ("--out", str(tmp_path / "model.pt2"), "--format", "torch-export")
    assert run(["export", *opened.options, *words]) == 1
    said = capsys.readouterr()
    assert "20 classes at 96 x 64: differs by 2.0e-04 of the largest logit" in said.out
    assert said.err.endswith("differs from the model by 2.0e-04, and at most 0.0001 is let pass; nothing is written\n")
    assert list(tmp_path.iterdir()) == []


def test_differences_are_seen() -> None:
    ones = torch.ones(1, 2, 4, 4)
    wrong = ones.clone()
    wrong[0, 1, 2, 3] = 0.5
    assert parity.difference(ones, wrong) == 0.5
    wrong[0, 0, 0, 0] = float("nan")
    assert parity.difference(ones, wrong) == float("inf")
    assert parity.difference(ones, ones[:, :1]) == float("inf")


def test_mistakes_are_one_line(
    opened: Export, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exportable(matching=Matching(whole=1.0)).save_pretrained(tmp_path / "whole")
    foreign = PromptSet(("a", "b"), graph.random_prompts(exportable(), 2), "another")
    prompts = str(foreign.save(tmp_path / "set.safetensors"))
    out = ("--out", str(tmp_path / "m.onnx"))
    for options, text in (
        ((*out, "--format", "onxx"), "'onxx' is unknown; did you mean 'onnx'"),
        (("--out", str(tmp_path)), "is a folder; name a file in it"),
        ((*out, "--model", str(tmp_path / "whole")), "exports do not have"),
        ((*out, *opened.options, "--prompts", prompts), "another model"),
        ((*out, "--int8", str(EXAMPLES), "--format", "torch-export"), "--int8 does not go with --format torch-export"),
        ((*out, "--int8", str(tmp_path / "none")), "no such file or folder"),
    ):
        assert text in refused("export", *options)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'dpseg[export]'" in refused("export", *opened.options, *out)
    assert not (tmp_path / "m.onnx").exists()


def scopes_of(content: bytes, integers: bool) -> list[str]:
    """The modules of the weighted operations; of those alone whose inputs come from integers, where they are asked."""
    import onnx

    graph = onnx.load_from_string(content).graph
    turned = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    found = [node for node in weighted if not integers or turned.issuperset(node.input[:2])]
    return [entry.value for node in found for entry in node.metadata_props if entry.key == "namespace"]


def integer_weights(content: bytes) -> list[NDArray[np.int8]]:
    """The weights of signed 8 bits that are turned into numbers, an array for each operation."""
    import onnx

    graph = onnx.load_from_string(content).graph
    stored = {one.name: one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8}
    names = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    return [onnx.numpy_helper.to_array(stored[name]) for name in names if name in stored]


def check_sums_of_pairs(content: bytes) -> None:
    """Kernels without VNNI add products of an activation, 0 to 255, and a weight in pairs, in 16 bits, and saturate."""
    weights = integer_weights(content)
    assert len(weights) == len(scopes_of(content, integers=True)) > 0
    largest = max(int(np.abs(values.astype(int)).max()) for values in weights)
    assert 2 * 255 * largest <= 32767


@pytest.mark.numeric
def test_the_encoder_alone_is_quantised_and_no_sum_of_a_pair_of_products_saturates(frozen: Export) -> None:
    content = frozen.path.read_bytes()
    about = OnnxSession(content).about
    inputs = calibration_inputs(PHOTOS, about, {})
    small = quantize(content, inputs)
    check_sums_of_pairs(small)
    assert scopes_of(content, integers=True) == []
    encoder = [scope for scope in scopes_of(content, integers=False) if "model.encoder." in scope]
    assert sorted(scopes_of(small, integers=True)) == sorted(encoder[1:])  # the first convolution stays
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
    assert integer_weights(out.read_bytes())


def test_no_photos_and_no_encoder_are_told(frozen: Export) -> None:
    import onnx

    with pytest.raises(ConfigError, match="name some, a dozen or more"):
        quantize(frozen.path.read_bytes(), [])
    model = onnx.load(frozen.path)
    for node in model.graph.node:
        del node.metadata_props[:]
    image = np.zeros((1, 3, 64, 64), dtype=np.float32)
    with pytest.raises(ConfigError, match="no convolutions in its encoder"):
        quantize(model.SerializeToString(), [{"image": image}])


def test_ranges_are_measured_on_photos_spread_over_the_list(frozen: Export, tmp_path: Path) -> None:
    photos = [tmp_path / f"{number:03}.png" for number in range(2 * MOST_PHOTOS + 1)]
    for number, photo in enumerate(photos):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(photo)
    inputs = calibration_inputs(photos, OnnxSession(frozen.path).about, {})
    reds = [float(one["image"][0, 0].mean()) * 255 for one in inputs]
    np.testing.assert_allclose(reds, range(0, 2 * MOST_PHOTOS + 1, 3), atol=0.01)


@pytest.mark.slow
@pytest.mark.numeric
def test_dpseg_lite_in_8_bits_labels_nearly_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, small = lite_export(), tmp_path / "lite8.onnx"
    whole.made_before(monkeypatch)
    assert run(["export", *whole.options, "--out", str(small), "--int8", str(EXAMPLES)]) == 0
    before, after = whole.path.read_bytes(), small.read_bytes()
    check_sums_of_pairs(after)
    assert len(after) < 0.4 * len(before)
    same = agreement(before, after, calibration_inputs(PHOTOS, OnnxSession(after).about, {}))
    assert LITE_AGREEMENT <= same < 1
    line = f"8-bit integers: {1 - same:.1%} of the positions of 3 photos get another of the classes"
    assert capsys.readouterr().out.splitlines()[-2] == f"{line} than in single precision"
    labels = [OnnxRunner(path)(COFFEE).labels for path in (whole.path, small)]
    assert 0.95 < (labels[0] == labels[1]).mean() < 1
    assert "cat" in OnnxRunner(small)(CAT).areas
