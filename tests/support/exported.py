"""Exports of a tiny model, each made once for all tests of a process, because torch's exporter takes seconds."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from dpseg.cli import run
from dpseg.exporting import graph
from dpseg.model.dpseg import DPSeg
from dpseg.model.prompt_encoding import prompt_fingerprint
from dpseg.prompts.prompt_set import PromptSet
from support.tiny import tiny_model

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SED: dict[str, Any] = {"fusion": "text", "guidance": "cost_chain", "spatial": "depthwise9", "logit_scale": 0.0}

_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the tests end


class Export(NamedTuple):
    """A file that `dpseg export` made, its options without --out, and what was traced."""

    path: Path
    options: tuple[str, ...]
    program: ExportedProgram

    def made_before(self, patch: pytest.MonkeyPatch) -> None:
        """Lets the command take what it made of the same options, in place of making it again."""
        content = self.path.read_bytes()
        patch.setattr(graph, "trace", lambda *_: self.program)
        patch.setattr(graph, "to_onnx", lambda *_: content)


def exportable(**changes: Any) -> DPSeg:
    """A model whose decoder says something, and that has what a graph leaves to whoever runs it."""
    plain: dict[str, Any] = {
        "templates": 2, "logit_scale": 20.0, "widths": (12, 8), "image_widths": (4,), "heads": 2,
        "mirrored_scales": (0.75,), "decode_classes": 4, "presence": 0.5,
    }  # fmt: skip
    return tiny_model(trained=True, **plain | changes)


def random_set(model: DPSeg, names: str) -> PromptSet:
    """Prompts of classes of a letter each: in turn with both kinds, with text and with pictures alone."""
    return PromptSet(tuple(names), graph.random_prompts(model, len(names)), prompt_fingerprint(model.encoder))


@cache
def open_export() -> Export:
    """The tiny model, which takes its prompts as inputs."""
    folder = _new_folder()
    exportable().save_pretrained(folder / "tiny")
    return _exported(folder, "--model", str(folder / "tiny"))


@cache
def frozen_export() -> Export:
    """A tiny SED with four classes in it."""
    folder, model = _new_folder(), exportable(**SED)
    model.save_pretrained(folder / "tiny")
    prompts = random_set(model, "abcd").save(folder / "abcd.safetensors")
    return _exported(folder, "--model", str(folder / "tiny"), "--prompts", str(prompts))


@cache
def lite_export() -> Export:
    """dpseg-lite with five classes in it."""
    names = ("cat", "coffee cup, cup", "spoon", "wooden table", "wall")
    return _exported(_new_folder(), *(word for name in names for word in ("--text", name)))


def _new_folder() -> Path:
    _kept.append(tempfile.TemporaryDirectory())
    return Path(_kept[-1].name)


def _exported(folder: Path, *options: str) -> Export:
    trace, path = graph.trace, folder / "model.onnx"
    traced: list[ExportedProgram] = []

    def recorded(*arguments: Any) -> ExportedProgram:
        traced.append(trace(*arguments))
        return traced[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", recorded)
        assert run(["export", *options, "--out", str(path)]) == 0
    return Export(path, options, traced[0])


def weighted(content: bytes) -> list[tuple[str, NDArray[np.int8] | None]]:
    """The module of each weighted operation, and its weights where it computes in 8-bit integers."""
    import onnx

    model = onnx.load_from_string(content).graph
    turned = {node.output[0]: node.input[0] for node in model.node if node.op_type == "DequantizeLinear"}
    integers = {one.name: one for one in model.initializer if one.data_type == onnx.TensorProto.INT8}

    def weights(node: onnx.NodeProto) -> NDArray[np.int8] | None:
        both = turned.keys() >= set(node.input[:2])
        return onnx.numpy_helper.to_array(integers[turned[node.input[1]]]) if both else None

    nodes = [node for node in model.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    modules = [next(entry.value for entry in node.metadata_props if entry.key == "namespace") for node in nodes]
    return [(module, weights(node)) for module, node in zip(modules, nodes, strict=True)]


def check_sums_of_pairs(content: bytes) -> None:
    """Kernels without VNNI add products of an activation, 0 to 255, and a weight in pairs, in 16 bits, and saturate."""
    largest = max(int(np.abs(values.astype(int)).max()) for _, values in weighted(content) if values is not None)
    assert 2 * 255 * largest <= 32767
