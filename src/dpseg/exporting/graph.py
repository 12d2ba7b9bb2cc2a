"""A model as one graph: photo and prompts -> logits of one view, for any K and size.

The graph is `DPSeg.decode_plainly`, the definition: all K classes are decoded, whatever the config's `decode_classes`
and `rejection` say. Mirrored views, what classes gain when they compete, and the labels are the business of whoever
runs it.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from dpseg import __version__
from dpseg.errors import ConfigError
from dpseg.exporting.about import KEY, PROMPT_INPUTS, VERSION, About
from dpseg.model.dpseg import DPSeg
from dpseg.model.preprocess import MAX_ASPECT, MAX_SIZE
from dpseg.model.prompt_encoding import prompt_fingerprint
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet

MAX_CLASSES = 65_536
"""K of an export is at most this."""


class OpenGraph(nn.Module):
    """A model that takes its prompts as inputs, so that its vocabulary stays open."""

    def __init__(self, model: DPSeg) -> None:
        """Takes a model, which stays as it is."""
        super().__init__()
        self.model = one_view(model)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        visual: Tensor,
        stage2: Tensor,
        stage3: Tensor,
        stage4: Tensor,
        has_text: Tensor,
        has_visual: Tensor,
    ) -> Tensor:
        """Segments one image.

        Args:
            image: (1, 3, H, W), RGB in [0, 1], sides multiples of the encoder's coarsest stride.
            text: T, (K, M, D).
            visual: V, (K, Mv, D).
            stage2: GAP(V_2), (K, Mv, D_2).
            stage3: GAP(V_3), (K, Mv, D_3).
            stage4: GAP(V_4), (K, Mv, D_4).
            has_text: (K,) bool.
            has_visual: (K,) bool.

        Returns:
            Logits (1, K, h, w) at the decoder's resolution.
        """
        prompts = PromptEmbeddings(text, visual, (stage2, stage3, stage4), has_text, has_visual)
        return self.model.decode_plainly(self.model.encode(image), prompts)


class FrozenGraph(nn.Module):
    """A model with the prompts of K classes in it."""

    def __init__(self, model: DPSeg, prompts: PromptEmbeddings) -> None:
        """Takes a model, which stays as it is, and prompts without a batch dimension."""
        super().__init__()
        self.model = one_view(model)
        for name, tensor in zip(PROMPT_INPUTS, prompt_tensors(prompts), strict=True):
            self.register_buffer(name, tensor)

    def forward(self, image: Tensor) -> Tensor:
        """Segments one image (1, 3, H, W): logits (1, K, h, w); see `OpenGraph`."""
        text, visual, stage2, stage3, stage4, has_text, has_visual = (self.get_buffer(name) for name in PROMPT_INPUTS)
        prompts = PromptEmbeddings(text, visual, (stage2, stage3, stage4), has_text, has_visual)
        return self.model.decode_plainly(self.model.encode(image), prompts)


def one_view(model: DPSeg) -> DPSeg:
    """Returns a model of the same tensors that sees a photo once and decodes all classes.

    Raises:
        ConfigError: The model does what a graph has not.
    """
    if model.config.matching.whole:
        raise ConfigError(
            f"the model's matching adds what a photo shows as a whole ({model.config.matching.whole:g}), which exports"
            " do not have; export it with matching.whole 0"
        )
    same = copy.copy(model)
    same.config = replace(model.config, mirrored_scales=(), decode_classes=None)
    return same.eval()


def about(model: DPSeg, name: str, prompts: PromptSet | None) -> About:
    """Returns what an exported file says of itself.

    Args:
        model: what is exported.
        name: as the user gave it.
        prompts: those that are frozen in; None: they are inputs.
    """
    config, adjustment = model.config, None if prompts is None else prompts.embeddings.adjustment
    return About(
        version=VERSION,
        dpseg=__version__,
        model=name,
        prompts=prompt_fingerprint(model.encoder),
        image_size=config.image_size,
        keep_aspect=config.keep_aspect,
        shortest_edge=config.shortest_edge,
        stride=model.encoder.strides[-1],
        templates=config.templates,
        visual_prompts=1 if prompts is None else prompts.embeddings.visual.shape[-2],
        mirrored_scales=config.mirrored_scales,
        presence=config.presence,
        resize_scores=config.resize_scores,
        names=None if prompts is None else prompts.names,
        sources=() if prompts is None else prompts.sources,
        adjustment=() if adjustment is None else tuple(adjustment.tolist()),
    )


def prompt_tensors(prompts: PromptEmbeddings) -> tuple[Tensor, ...]:
    """Returns the tensors in the order of `PROMPT_INPUTS`."""
    return (prompts.text, prompts.visual, *prompts.stages, prompts.has_text, prompts.has_visual)


def random_prompts(model: DPSeg, count: int, seed: int = 0) -> PromptEmbeddings:
    """Returns prompts to trace and compare with: classes in turn with both kinds, with text and with pictures alone."""
    encoder, generator = model.encoder, torch.Generator().manual_seed(seed)
    has_text, has_visual = (torch.arange(count) % 3 != 2), (torch.arange(count) % 3 != 1)

    def rows(size: int, prompts: int, there: Tensor) -> Tensor:
        vectors = torch.randn(count, prompts, size, generator=generator)
        return nn.functional.normalize(vectors, dim=-1) * there[:, None, None]

    text = rows(encoder.embed_dim, model.config.templates, has_text)
    visual = rows(encoder.embed_dim, 1, has_visual)
    s2, s3, s4 = (rows(size, 1, has_visual) for size in encoder.stage_dims)
    return PromptEmbeddings(text, visual, (s2, s3, s4), has_text, has_visual)


@torch.no_grad()
def trace(model: DPSeg, prompts: PromptEmbeddings | None) -> ExportedProgram:
    """Traces a model on the CPU.

    Args:
        model: in evaluation mode.
        prompts: frozen in; None: they become inputs.

    Raises:
        ConfigError: As `one_view`.
    """
    stride = model.encoder.strides[-1]  # an ONNX file takes one row and one class too, torch.export guards against them
    most = MAX_ASPECT * MAX_SIZE // stride
    height, width = stride * Dim("rows", min=2, max=most), stride * Dim("columns", min=2, max=most)
    shapes: list[dict[int, object]] = [{2: height, 3: width}]
    image = torch.rand(1, 3, 3 * stride, 5 * stride, generator=torch.Generator().manual_seed(0))
    inputs: tuple[Tensor, ...] = (image,)
    graph: nn.Module = OpenGraph(model) if prompts is None else FrozenGraph(model, prompts)
    if prompts is None:
        classes = Dim("classes", min=2, max=MAX_CLASSES)
        inputs += prompt_tensors(random_prompts(model, 7))
        shapes += [{0: classes} for _ in PROMPT_INPUTS]
    return _without_unused(torch.export.export(graph, inputs, dynamic_shapes=tuple(shapes), strict=False))


def _without_unused(program: ExportedProgram) -> ExportedProgram:
    """Drops the tensors that the graph does not read, in place: the text encoder's, and those of visual prompts."""
    nodes = {node.name: node for node in program.graph.nodes}
    specs = program.graph_signature.input_specs
    for spec in list(specs):
        node = nodes[spec.arg.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not node.users:
            assert spec.target is not None
            program.graph.erase_node(node)
            specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)  # where buffers are that are not saved
    program.graph_module.recompile()
    return program


def to_onnx(program: ExportedProgram, facts: About) -> bytes:
    """Returns the content of an ONNX file; needs the extra `export`.

    Args:
        program: what `trace` returned.
        facts: what the file says of itself.
    """
    with _quiet():
        exported = torch.onnx.export(program, output_names=["logits"], dynamo=True, verbose=False, external_data=False)
    assert exported is not None
    exported.model.metadata_props[KEY] = facts.to_json()
    content: bytes = exported.model_proto.SerializeToString()
    return content


def to_torch(program: ExportedProgram, facts: About) -> bytes:
    """Returns the content of a file that `torch.export.load` reads; the arguments are those of `to_onnx`."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={KEY: facts.to_json()})
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's exporter from talking of what does not concern the user, such as its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
