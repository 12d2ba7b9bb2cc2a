"""The decoder for testing: classes by blocks, in memory that does not grow with K, the same logits as `Decoder`.

`Decoder.forward` is the definition, and what is trained; this is the same function of the same weights. Attention
couples all classes, but only by sums: a stage goes over all classes once for the sums and once more for the results.
What goes into the second pass is kept as far as a bound on memory allows, and computed again beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpseg.config import Fusion
from dpseg.model.cost_guidance import CostGuidance
from dpseg.model.cost_volume import prompt_rows
from dpseg.model.decoder import Decoder, DecoderStage
from dpseg.model.encoders import Pyramid
from dpseg.model.stage_run import CACHED, UNCACHED, StageRun
from dpseg.model.template_embedding import template_embedding, unit_vectors
from dpseg.prompts.prompt_set import PromptEmbeddings

BLOCK = 8
"""Classes a block on a CPU; with fewer, the small products of the attention do not pay."""

GPU_BLOCK = 64

KEPT_BYTES = 2**29
"""Of each block a stage's input is kept, the last one that fits: so many bytes for all classes together. What does not
fit is computed again, from the stage that is kept; with nothing kept, decoding takes about twice as long.
"""

_AT_ONCE = 256  # classes whose cosines are compared at a time


class BlockDecoder:
    """One image's decoding, prepared; iterating, which can be done once, gives (classes, logits (k, h, w)) in order."""

    def __init__(
        self,
        decoder: Decoder,
        fusion: Fusion,
        pyramid: Pyramid,
        prompts: PromptEmbeddings,
        block: int | None = None,
        kept_bytes: int | None = None,
    ) -> None:
        """Computes what is the same for all classes.

        Args:
            decoder: its weights.
            fusion: how T and V meet.
            pyramid: one encoded image, a batch of one.
            prompts: of K classes, without a batch dimension.
            block: classes a block; None: what suits the device.
            kept_bytes: None: `KEPT_BYTES`.
        """
        weight = decoder.embed.weight
        on_cpu = weight.device.type == "cpu"
        cached = CACHED if on_cpu else UNCACHED
        self.fusion, self.prompts, self.head = fusion, prompts, decoder.head
        self.count = len(prompts.text)
        self.block = block or (BLOCK if on_cpu else GPU_BLOCK)
        self.kept_bytes = KEPT_BYTES if kept_bytes is None else kept_bytes
        self._kept: dict[int, tuple[int, Tensor]] = {}  # by a block's first class: a stage, and its input
        self.guidance = CostGuidance(decoder, pyramid, prompts, cached)
        self.dense = self.guidance.dense
        self.embed = template_embedding(decoder.embed, self.dense)
        self.runs: list[StageRun] = []
        size = pyramid.dense.shape[-2:]
        for stage, j in zip(decoder.stages, decoder.order, strict=True):
            assert isinstance(stage, DecoderStage)
            image = pyramid.stages[j - 2].to(weight.dtype)
            self.runs.append(StageRun(stage, image, size, self.count, cached))
            size = image.shape[-2:]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        blocks = [slice(a, min(a + self.block, self.count)) for a in range(0, self.count, self.block)]
        last = len(self.runs) - 1
        for number, run in enumerate(self.runs):
            for classes in blocks:
                keep = self._may_keep(number, classes)
                x = self._input(number, classes, forget=keep)
                run.add(x)
                if keep:
                    self._kept[classes.start] = number, x
        for classes in blocks:
            yield classes, _head(self.head, self._output(last, classes, self._input(last, classes, forget=True)))

    def mean_cosines(self, classes: slice) -> Tensor:
        """Returns F_c of some classes, averaged over its channels, (1, k, 1, H, W), for the baseline."""
        cosines = self._rows(classes).mean(dim=1) @ self.dense.flatten(1)
        return cosines.view(1, -1, 1, *self.dense.shape[1:])

    def _input(self, number: int, classes: slice, forget: bool) -> Tensor:
        """Returns what a stage's attention reads of a block, (k, C, H, W).

        It starts from what is kept of the block, else from its prompts. The sums of all stages before are complete.

        Args:
            number: of the stage.
            classes: the block.
            forget: what is kept is not needed any more.
        """
        if classes.start not in self._kept:
            at, x = 0, self.runs[0].spatial(self.embed(self._rows(classes)))
        elif forget:
            at, x = self._kept.pop(classes.start)
        else:
            at, x = self._kept[classes.start]
            x = x.clone() if at < number else x  # a stage writes over it
        for before in range(at, number):
            x = self.runs[before + 1].spatial(self._output(before, classes, x))
        return x

    def _output(self, number: int, classes: slice, x: Tensor) -> Tensor:
        """Runs a stage on what `_input` returned."""
        run = self.runs[number]
        return run.rise(run.mix(x), self.guidance(number, classes, self._rows))

    def _may_keep(self, number: int, classes: slice) -> bool:
        """Whether a stage's input of a block fits, in place of what is kept of the block."""
        others = [kept.numel() for start, (_, kept) in self._kept.items() if start != classes.start]
        values = sum(others) + (classes.stop - classes.start) * self.runs[number].values
        fits: bool = values * self.head.weight.element_size() <= self.kept_bytes
        return fits

    def _rows(self, classes: slice) -> Tensor:
        """Returns the prompt rows of some classes, (k, C, D); see `prompt_rows`."""
        return prompt_rows(self.prompts.map(lambda t: t[classes]), self.fusion).float()


@torch.no_grad()
def best_classes(dense: Tensor, prompts: PromptEmbeddings, fusion: Fusion, count: int) -> Tensor:
    """Returns the classes with the best maximum of F_c, averaged over its channels, best first: (count,) int64.

    Args:
        dense: E of one image, (1, D, H, W).
        prompts: of K classes, without a batch dimension.
        fusion: how T and V meet.
        count: so many, K at most.
    """
    features = unit_vectors(dense).flatten(1)
    maxima = []
    for start in range(0, len(prompts.text), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        rows = prompt_rows(prompts.map(lambda t, part=part: t[part]), fusion).float()  # type: ignore[misc]
        maxima.append((rows.mean(dim=1) @ features).amax(dim=1))
    return torch.cat(maxima).topk(count).indices


def _head(head: nn.Conv2d, x: Tensor) -> Tensor:
    """Applies the last 3 x 3 convolution, (k, C, H, W) -> (k, H, W): a product for each tap, summed where it belongs.

    The same as torch's convolution to one channel, which is slower. In float32, whatever x is: logits lie near each
    other.
    """
    assert head.bias is not None
    height, width = x.shape[-2:]
    kernel = head.weight[0].flatten(1).T.float()  # (9, C)
    logits = head.bias.float().expand(len(x), height, width).clone()
    for one, out in zip(x, logits, strict=True):
        taps = (kernel @ one.permute(1, 2, 0).flatten(0, 1).T.float()).view(9, height, width)
        taps = F.pad(taps, (1, 1, 1, 1))
        for tap in range(9):
            out += taps[tap, tap // 3 : tap // 3 + height, tap % 3 : tap % 3 + width]
    return logits
