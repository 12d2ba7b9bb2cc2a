"""Whether an exported file computes what the model computes: both are run, at several sizes and numbers of classes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpseg.exporting.about import PROMPT_INPUTS
from dpseg.exporting.graph import one_view, prompt_tensors, random_prompts
from dpseg.exporting.session import OnnxSession
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptEmbeddings

TOLERANCE = 1e-4
"""The largest `Comparison.difference` that is let pass."""

CLASS_COUNTS = (3, 20)
"""So many classes are compared where the prompts are inputs."""

Runner = Callable[[Tensor, PromptEmbeddings | None], Tensor]
"""Takes an image (1, 3, H, W), and the prompts where they are inputs, to logits (1, K, h, w)."""


@dataclass(frozen=True)
class Comparison:
    """One run of both.

    Attributes:
        height: of the image, in pixels.
        width: of the image, in pixels.
        classes: K.
        difference: largest difference of two logits, as a share of the largest one.
    """

    height: int
    width: int
    classes: int
    difference: float


def onnx_runner(content: bytes) -> Runner:
    """Returns what runs an ONNX file's content with onnxruntime.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    session = OnnxSession(content)

    def run(image: Tensor, prompts: PromptEmbeddings | None) -> Tensor:
        tensors = () if prompts is None else prompt_tensors(prompts)
        values = {name: tensor.numpy() for name, tensor in zip(PROMPT_INPUTS, tensors, strict=False)}
        return torch.from_numpy(np.array(session(image.numpy(), values)))

    return run


def torch_runner(content: bytes) -> Runner:
    """Returns what runs the content of a torch.export file."""
    graph = torch.export.load(io.BytesIO(content)).module()

    def run(image: Tensor, prompts: PromptEmbeddings | None) -> Tensor:
        logits: Tensor = graph(image, *(() if prompts is None else prompt_tensors(prompts)))
        return logits

    return run


@torch.inference_mode()
def compare(model: DPSeg, frozen: PromptEmbeddings | None, run: Runner) -> list[Comparison]:
    """Runs the model and an exported file at two sizes and, where the prompts are inputs, with two numbers of classes.

    Args:
        model: on the CPU, in evaluation mode.
        frozen: the prompts that are frozen in; None: they are inputs, and are drawn at random here.
        run: the exported file.
    """
    plain, generator = one_view(model), torch.Generator().manual_seed(1)
    prompts = [random_prompts(model, count, seed=count) for count in CLASS_COUNTS] if frozen is None else [frozen]
    found = []
    for height, width in _sizes(model):
        image = torch.rand(1, 3, height, width, generator=generator)
        for each in prompts:
            ours = plain.decode_plainly(plain.encode(image), each)
            theirs = run(image, each if frozen is None else None)
            found.append(Comparison(height, width, len(each.text), difference(ours, theirs)))
    return found


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest difference of two logits as a share of the largest one; infinite where shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    share = float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-12))
    return share if share == share else float("inf")  # NaN is no number at all


def _sizes(model: DPSeg) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns heights and widths in pixels: the model's square, and something small and broad."""
    stride = model.encoder.strides[-1]
    side = max(1, round(model.config.image_size / stride))
    low, broad = max(2, side // 3), max(3, side // 2 + 1)
    return (side * stride, side * stride), (low * stride, broad * stride)
