"""Which parts of an export compute in 8-bit integers, on an encoder of four convolutions."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from dpseg.exporting.quantize import quantize
from support.exported import check_sums_of_pairs

pytestmark = pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxruntime")), reason="extras are missing")


def small_encoder() -> bytes:
    """Convolutions as in lite's encoder: a first one, a widening one, a depthwise one and a narrowing one."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    tensors, nodes, last, channels = [], [], "image", 3
    for name, outputs, side, groups in (
        ("first", 8, 3, 1),
        ("widen", 16, 1, 1),
        ("deep", 16, 3, 16),
        ("narrow", 4, 1, 1),
    ):
        weights = random.normal(size=(outputs, channels // groups, side, side)).astype(np.float32)
        weights *= np.geomspace(0.1, 10, outputs, dtype=np.float32)[:, None, None, None]  # channels of many ranges
        tensors.append(numpy_helper.from_array(weights / weights[0].size, f"{name}.weight"))
        pads = {"pads": [side // 2] * 4, "group": groups}
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}.sum"], name, **pads))
        nodes.append(helper.make_node("Clip", [f"{name}.sum", "least", "most"], [f"{name}.out"], f"{name}.clip"))
        last, channels = f"{name}.out", outputs
    for node in nodes:
        node.metadata_props.add(key="namespace", value="model.encoder.block")
    tensors += [numpy_helper.from_array(np.float32(value), name) for name, value in (("least", -6), ("most", 6))]
    image, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size, 16, 16])
        for name, size in (("image", 3), (last, 4))
    )
    graph = helper.make_graph(nodes, "small", [image], [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def test_depthwise_convolutions_stay_in_single_precision_whatever_onnxruntime_optimises() -> None:
    import onnx
    import onnxruntime

    image = np.random.default_rng(1).random((1, 3, 16, 16), dtype=np.float32)
    small = quantize(small_encoder(), [{"image": image}])
    check_sums_of_pairs(small)
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(small).graph.initializer}
    assert kinds["deep.weight"] == onnx.TensorProto.FLOAT
    assert "widen.weight" not in kinds
    answers = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"image": image})[0])
    step = np.ptp(answers[0]) / 255  # of the last rounding
    assert np.abs(answers[0] - answers[1]).max() <= 1.01 * step
