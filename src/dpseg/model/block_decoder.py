"""The decoder for testing: classes by blocks, in memory that does not grow with K, the same logits as `Decoder`.

`Decoder.forward` is the definition, and what is trained; this is the same function of the same weights. Attention
couples all classes, but only by sums: a stage goes over all classes once for the sums and once more for the results.
What goes into the second pass is kept as far as a bound on memory allows, and computed again beyond it.

With a `Rejection` it is no longer the same function: before each stage, the decoder's auxiliary heads say which classes
go on (SED's idea), and the sums from there on are those of the classes that are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpseg.config import Fusion
from dpseg.model.cost_guidance import Classes, CostGuidance
from dpseg.model.cost_volume import prompt_rows
from dpseg.model.decoder import Decoder, DecoderStage
from dpseg.model.encoders import Pyramid
from dpseg.model.rejection import Survivors
from dpseg.model.stage_run import CACHED, UNCACHED, StageRun
from dpseg.model.template_embedding import template_embedding
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.rejection import Rejection

BLOCK = 8
"""Classes a block on a CPU; with fewer, the small products of the attention do not pay."""

GPU_BLOCK = 64

KEPT_BYTES = 2**29
"""Of each block a stage's input is kept, the last one that fits: so many bytes for all classes together. What does not
fit is computed again, from the stage that is kept; with nothing kept, decoding takes about twice as long.
"""

KEPT_CLASSES = 384
"""Nor is more kept than the largest inputs of so many classes take: of a small model little, beside which the same
bytes would be much.
"""


@dataclass
class _Block:
    """Some classes, and what is kept of their way through the decoder.

    Attributes:
        classes: k of the K classes.
        stage: whose input is kept.
        x: that input, (k, C, H, W); None: nothing is kept.
        entering: it has not been through the stage's `spatial` yet.
    """

    classes: Classes
    stage: int = 0
    x: Tensor | None = None
    entering: bool = False


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
        rejection: Rejection | None = None,
    ) -> None:
        """Computes what is the same for all classes.

        Args:
            decoder: its weights.
            fusion: how T and V meet.
            pyramid: one encoded image, a batch of one.
            prompts: of K classes, without a batch dimension.
            block: classes a block; None: what suits the device.
            kept_bytes: None: `KEPT_BYTES` at most, and those of `KEPT_CLASSES`.
            rejection: gives up classes, in a decoder that has auxiliary heads; None: all are decoded.
        """
        weight = decoder.embed.weight
        on_cpu = weight.device.type == "cpu"
        cached = CACHED if on_cpu else UNCACHED
        self.fusion, self.prompts, self.head = fusion, prompts, decoder.head
        self.count = len(prompts.text)
        self.block = block or (BLOCK if on_cpu else GPU_BLOCK)
        self.rejection, self.heads = rejection, decoder.auxiliary
        self.blocks = [_Block(slice(a, min(a + self.block, self.count))) for a in range(0, self.count, self.block)]
        self._prepared = False
        self.guidance = CostGuidance(decoder, pyramid, prompts)
        self.dense = self.guidance.dense
        self.embed = template_embedding(decoder.embed, self.dense)
        self.runs: list[StageRun] = []
        size = pyramid.dense.shape[-2:]
        for stage, j in zip(decoder.stages, decoder.order, strict=True):
            assert isinstance(stage, DecoderStage)
            image = pyramid.stages[j - 2].to(weight.dtype)
            self.runs.append(StageRun(stage, image, size, self.count, cached))
            size = image.shape[-2:]
        largest = max(run.values for run in self.runs) * weight.element_size()
        self.kept_bytes = min(KEPT_BYTES, KEPT_CLASSES * largest) if kept_bytes is None else kept_bytes

    def __iter__(self) -> Iterator[tuple[Classes, Tensor]]:
        self.prepare()
        last = len(self.runs) - 1
        for block in self.blocks:
            mixed = self.runs[last].mix(self._input(last, block, forget=True))
            pieces = self._rise(last, block.classes, mixed)
            yield block.classes, torch.cat([_head(self.head, piece) for piece in pieces])

    def prepare(self) -> Tensor:
        """Goes through all stages for the sums of their attention; iterating does it too.

        Returns:
            The classes that are left, ascending int64: all, but for rejection.
        """
        if not self._prepared:
            for number, run in enumerate(self.runs):
                if self.rejection is not None:
                    self._reject(number, self.rejection)
                for block in self.blocks:
                    keep = self._may_keep(number, block)
                    x = self._input(number, block, forget=keep)
                    run.add(x)
                    if keep:
                        block.stage, block.x = number, x
            self._prepared = True
        return self._left()

    def mean_cosines(self, classes: Classes) -> Tensor:
        """Returns F_c of some classes, averaged over its channels, (1, k, 1, H, W), for the baseline."""
        cosines = self._rows(classes).mean(dim=1) @ self.dense.flatten(1)
        return cosines.view(1, -1, 1, *self.dense.shape[1:])

    def _input(self, number: int, block: _Block, forget: bool) -> Tensor:
        """Returns what a stage's attention reads of a block, (k, C, H, W).

        It starts from what is kept of the block, else from its prompts. The sums of all stages before are complete.

        Args:
            number: of the stage.
            block: some classes.
            forget: what is kept is not needed any more.
        """
        if block.x is None:
            at, x = 0, self.runs[0].spatial(self.embed(self._rows(block.classes)))
        else:
            at, x = block.stage, block.x
            if block.entering:
                x, block.entering = self.runs[at].spatial(x), False
            if forget:
                block.x = None
            elif at < number:
                x = x.clone()  # a stage writes over it
        for before in range(at, number):
            x = self.runs[before + 1].spatial(self._output(before, block.classes, x))
        return x

    def _output(self, number: int, classes: Classes, x: Tensor) -> Tensor:
        """Runs a stage on what `_input` returned."""
        run = self.runs[number]
        raised = x.new_empty(len(x), *run.size, run.outputs).permute(0, 3, 1, 2)
        start = 0
        for piece in self._rise(number, classes, run.mix(x)):
            raised[start : start + len(piece)] = piece
            start += len(piece)
        return raised

    def _rise(self, number: int, classes: Classes, mixed: Tensor) -> Iterator[Tensor]:
        """Runs the last part of a stage, some classes at a time: (k, C, H, W) -> several (k', C', H_j, W_j)."""
        run = self.runs[number]
        guidance = self.guidance(number, classes, self._rows, run.step)
        for part, guide in zip(mixed.split(run.step), guidance, strict=False):  # what guides nothing has no end
            yield run.rise(part, guide, self.guidance.without.get(self.guidance.decoder.order[number]))

    def _reject(self, number: int, rejection: Rejection) -> None:
        """Gives up classes by what a stage's auxiliary head says of what enters the stage."""
        before = self._left()
        if rejection.max_classes is None or (rejection.keep_top is None and len(before) <= rejection.max_classes):
            return
        head, survivors, parts = self.heads[number], Survivors(rejection), deque[Tensor]()
        assert isinstance(head, nn.Conv2d)
        values = 2 * len(before) * self.runs[number].values  # twice: while blocks are made anew
        hold = number > 0 and values * head.weight.element_size() <= self.kept_bytes  # embedding again costs little
        for block in self.blocks:
            if number == 0:
                x = self.embed(self._rows(block.classes))
            else:
                x = self._output(number - 1, block.classes, self._input(number - 1, block, forget=hold))
            survivors.add(_indices(block.classes).to(x.device), _head(head, x))
            if hold:
                parts.append(x.permute(0, 2, 3, 1))
            del x
        left = survivors.result()
        self.blocks = [_Block(part, number) for part in left.split(self.block)]
        if not hold:
            return
        rows, passed = torch.searchsorted(before.to(left.device), left), 0
        for block, mine in zip(self.blocks, rows.split(self.block), strict=True):
            while mine[0] >= passed + self.block:  # no survivor is left in there
                passed += len(parts.popleft())
            places = [divmod(row - passed, self.block) for row in mine.tolist()]
            block.x = torch.stack([parts[part][row] for part, row in places]).permute(0, 3, 1, 2)
            block.entering = True

    def _left(self) -> Tensor:
        """Returns the classes of all blocks, ascending int64."""
        return torch.cat([_indices(block.classes) for block in self.blocks])

    def _may_keep(self, number: int, block: _Block) -> bool:
        """Whether a stage's input of a block fits, in place of what is kept of the block."""
        values = sum(other.x.numel() for other in self.blocks if other.x is not None and other is not block)
        values += _length(block.classes) * self.runs[number].values
        fits: bool = values * self.head.weight.element_size() <= self.kept_bytes
        return fits

    def _rows(self, classes: Classes) -> Tensor:
        """Returns the prompt rows of some classes, (k, C, D); see `prompt_rows`."""
        return prompt_rows(self.prompts.map(lambda t: t[classes]), self.fusion).float()


def _indices(classes: Classes) -> Tensor:
    return torch.arange(classes.start, classes.stop) if isinstance(classes, slice) else classes


def _length(classes: Classes) -> int:
    return classes.stop - classes.start if isinstance(classes, slice) else len(classes)


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
