"""An exported ONNX file whose image encoder computes in 8-bit integers, by onnxruntime's static quantisation.

Ranges of activations are measured on photos (calibration), those of weights for each output channel (Jacob et al.,
CVPR 2018). The decoder, which tells apart classes by small differences, and the first convolution, which sees the
photo's own values, keep single precision.
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
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )
        return out.read_bytes()


def _encoder_nodes(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the encoder's nodes that are quantised: all but the first convolution and its bound."""
    found = []
    for node in model.graph.node:
        where = next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")
        if node.op_type in (*_WEIGHTED, *_BOUNDED) and _ENCODER in where:
            found.append(node)
    first = next((index for index, node in enumerate(found) if node.op_type in _WEIGHTED), len(found))
    rest = found[first + 1 :]
    while rest and rest[0].op_type in _BOUNDED:
        del rest[0]
    return [node.name for node in rest]


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
