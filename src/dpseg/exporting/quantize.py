"""An exported ONNX file whose image encoder computes in 8-bit integers, by onnxruntime's static quantisation.

Ranges of activations are measured on photos (calibration), those of weights for each output channel (Jacob et al.,
CVPR 2018). Weights use 7 of the 8 bits: a processor without VNNI adds products of 8-bit integers in pairs and cuts the
sum off at 16 bits, and two products of an activation (0 to 255) and a weight of at most `LARGEST_WEIGHT` stay below
that. The decoder, which tells apart classes by small differences, the first convolution, which sees the photo's own
values, and depthwise convolutions, whose few weights have nobody to average their rounding, keep single precision.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from dpseg.errors import ConfigError
from dpseg.exporting.about import About
from dpseg.exporting.pixels import input_of
from dpseg.exporting.session import OnnxSession
from dpseg.images import load_image

if TYPE_CHECKING:
    import onnx

Inputs = dict[str, npt.NDArray[Any]]
"""Of the graph: `image`, and by name the prompts where they are inputs."""

MOST_PHOTOS = 64
"""Ranges are measured on so many photos at most."""

LARGEST_WEIGHT = 64
"""Of the integers: 2 * 255 * 64 = 32,640, and a signed integer of 16 bits holds 32,767."""

_WEIGHTED = ("Conv", "MatMul", "Gemm")
_BOUNDED = ("Clip", "Relu")  # they say in which range what a convolution returns is needed
_ENCODER = "model.encoder."


def calibration_inputs(photos: Sequence[Path], about: About, prompts: Mapping[str, npt.NDArray[Any]]) -> list[Inputs]:
    """Reads photos for `quantize`, `MOST_PHOTOS` at most, evenly spread over the list.

    Args:
        photos: files.
        about: of the graph.
        prompts: by name, as `PROMPT_INPUTS`; empty where they are frozen in.

    Raises:
        ImageError: a photo cannot be read.
    """
    chosen = photos[:: math.ceil(len(photos) / MOST_PHOTOS)]
    return [{"image": input_of(load_image(photo), about, None), **prompts} for photo in chosen]


def agreement(content: bytes, quantised: bytes, inputs: Sequence[Inputs]) -> float:
    """Returns the share of positions of all photos to which two files give the same class; the arguments as above."""
    first, second, same, count = OnnxSession(content), OnnxSession(quantised), 0, 0
    for one in inputs:
        labels, others = (session(one["image"], one).argmax(axis=1) for session in (first, second))
        same, count = same + int((labels == others).sum()), count + labels.size
    return same / count


def quantize(content: bytes, inputs: Sequence[Inputs]) -> bytes:
    """Returns an ONNX file of the same inputs and outputs whose encoder computes in 8-bit integers.

    Args:
        content: of the file that `graph.to_onnx` returned.
        inputs: what `calibration_inputs` returned.

    Raises:
        ConfigError: there is nothing to measure, or no encoder in the graph.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(inputs)

        def get_next(self) -> Inputs | None:
            return next(self.rest, None)

    if not inputs:
        raise ConfigError("8-bit integers need photos to measure ranges on; name some, a dozen or more")
    model = onnx.load_from_string(content)
    nodes = _encoder_nodes(model)
    if not nodes:
        raise ConfigError("the model has no convolutions in its encoder, all that 8-bit integers are for")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / "model.onnx"
        quantize_static(
            model,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_WEIGHTED, *_BOUNDED],
            per_channel=True,
            reduce_range=True,  # weights within +-LARGEST_WEIGHT
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )
        quantised: bytes = _keep_depthwise(onnx.load(out)).SerializeToString()
        return quantised


def _encoder_nodes(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the encoder's nodes that are quantised.

    They are all but depthwise convolutions, and the first convolution and its bound.
    """
    found = []
    for node in model.graph.node:
        where = next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")
        if node.op_type in (*_WEIGHTED, *_BOUNDED) and _ENCODER in where and not _is_depthwise(node):
            found.append(node)
    first = next((index for index, node in enumerate(found) if node.op_type in _WEIGHTED), len(found))
    rest = found[first + 1 :]
    while rest and rest[0].op_type in _BOUNDED:
        del rest[0]
    return [node.name for node in rest]


def _is_depthwise(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and any(entry.name == "group" and entry.i > 1 for entry in node.attribute)


def _keep_depthwise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Puts a bound that changes nothing before each depthwise convolution of integers that were made floats again.

    Without it onnxruntime (1.32) sees a convolution between two quantised tensors and quantises its weights after all,
    with one scale for all channels, which changes more than twice as many of dpseg-lite's labels.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    floats = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes = []
    for node in graph.node:
        made = floats.get(node.input[0]) if _is_depthwise(node) else None
        if made is not None:
            scale, zero = (numpy_helper.to_array(tensors[name]).astype(np.float32) for name in made.input[1:3])
            bounds = [f"{node.name}_least", f"{node.name}_most"]
            for name, integer in zip(bounds, (0, 255), strict=True):
                graph.initializer.append(numpy_helper.from_array((integer - zero) * scale, name))
            nodes.append(
                helper.make_node("Clip", [node.input[0], *bounds], [f"{node.name}_input"], f"{node.name}_bound")
            )
            node.input[0] = f"{node.name}_input"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps onnxruntime from advising a preparation that an exported graph does not need."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
