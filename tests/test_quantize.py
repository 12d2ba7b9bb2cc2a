"""`dpseg export --int8`: the encoder in 8-bit integers, the decoder as it was, and nearly the same labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpseg.cli import run
from dpseg.errors import ConfigError
from dpseg.exporting.quantize import MOST_PHOTOS, agreement, calibration_inputs, quantize
from dpseg.exporting.session import OnnxSession
from dpseg.onnx_runner import OnnxRunner
from support.exported import exported_folder

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("cat", "coffee cup, cup", "spoon", "wooden table")


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tiny model with four classes in it."""
    path = tmp_path_factory.mktemp("frozen") / "tiny.onnx"
    words = [word for name in NAMES for word in ("--text", name)]
    assert run(["export", "--model", str(exported_folder() / "tiny"), "--out", str(path), *words]) == 0
    return path.read_bytes()


def scopes_of_integers(content: bytes) -> list[str]:
    """The modules of the weighted operations whose inputs come from integers."""
    graph = onnx.load_from_string(content).graph
    integers = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    found = [node for node in weighted if integers.issuperset(node.input[:2])]
    return [entry.value for node in found for entry in node.metadata_props if entry.key == "namespace"]


def test_the_encoder_alone_is_quantised(frozen: bytes) -> None:
    about = OnnxSession(frozen).about
    inputs = calibration_inputs(sorted(EXAMPLES.glob("*.jpg")), about, {})
    small = quantize(frozen, inputs)
    assert scopes_of_integers(frozen) == []
    scopes = scopes_of_integers(small)
    assert scopes
    assert all("model.encoder." in scope for scope in scopes)
    weighted = [n for n in onnx.load_from_string(frozen).graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    encoder = [n for n in weighted if any("model.encoder." in entry.value for entry in n.metadata_props)]
    assert len(scopes) == len(encoder) - 1  # the first convolution stays
    assert OnnxSession(small).about == about
    assert agreement(frozen, small, inputs) > 0.9
    before, after = (OnnxSession(one)(inputs[0]["image"], {}) for one in (frozen, small))
    assert 0 < np.abs(before - after).max() < 0.1 * np.abs(before).max()
    assert agreement(frozen, frozen, inputs) == 1


def test_no_photos_and_no_encoder_are_told(frozen: bytes) -> None:
    with pytest.raises(ConfigError, match="name some, a dozen or more"):
        quantize(frozen, [])
    graph = onnx.load_from_string(frozen)
    for node in graph.graph.node:
        del node.metadata_props[:]
    image = np.zeros((1, 3, 64, 64), dtype=np.float32)
    with pytest.raises(ConfigError, match="no convolutions in its encoder"):
        quantize(graph.SerializeToString(), [{"image": image}])


def test_ranges_are_measured_on_photos_spread_over_the_list(frozen: bytes, tmp_path: Path) -> None:
    photos = []
    for number in range(2 * MOST_PHOTOS + 1):
        photos.append(tmp_path / f"{number:03}.png")
        Image.new("RGB", (32, 32), (number, 0, 0)).save(photos[-1])
    reds = [float(one["image"][0, 0].mean()) * 255 for one in calibration_inputs(photos, OnnxSession(frozen).about, {})]
    np.testing.assert_allclose(reds, range(0, 2 * MOST_PHOTOS + 1, 3), atol=0.01)


def test_dpseg_lite_in_8_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for name in NAMES for word in ("--text", name)]
    whole, small, photo = tmp_path / "lite.onnx", tmp_path / "lite8.onnx", EXAMPLES / "coffee.jpg"
    assert run(["export", "--out", str(whole), *words]) == 0
    assert run(["export", "--out", str(small), *words, "--int8", str(EXAMPLES)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("8-bit integers: of the classes, 9")
    assert small.stat().st_size < 0.4 * whole.stat().st_size
    before, after = OnnxRunner(whole)(photo), OnnxRunner(small)(photo)
    same = float((before.labels == after.labels).mean())
    assert 0.95 < same < 1
    assert {"cat"} & set(OnnxRunner(small)(EXAMPLES / "chelsea.jpg").areas)


def test_prompts_may_stay_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "open.onnx"
    assert run(["export", "--model", str(exported_folder() / "tiny"), "--out", str(out), "--int8", str(EXAMPLES)]) == 0
    assert "of COCO's 133 names" in capsys.readouterr().out
    assert OnnxSession(out).about.names is None


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "m.onnx")]
    assert run(["export", *out, "--int8", str(EXAMPLES), "--format", "torch-export"]) == 2
    assert "--int8 does not go with --format torch-export" in capsys.readouterr().err
    assert run(["export", *out, "--int8", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such file or folder" in line
    assert not (tmp_path / "m.onnx").exists()
