r"""DPSeg: the paper's main figure, readable top to bottom.

image   -> encoder -> E_2, E_3, E_4 and E          words    -> T  \
                                                    pictures -> V, V_j  -> PromptEmbeddings
F_c   = cosine(E, R),  R = Avg(T + V)              dual-prompt cost volume
F_v^j = cosine(E_j, GAP(V_j)),  j = 4, 3, 2        visual cost volumes, one a scale
logits = decoder(F_c, E_j, F_v^j)                  one a category and position
"""

# No `from __future__ import annotations`: HubModel's mixin looks at the real types of __init__'s arguments.
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from dpseg.config import ModelConfig
from dpseg.errors import PromptError
from dpseg.model.block_decoder import BlockDecoder
from dpseg.model.blocks import resize_to
from dpseg.model.build import build_encoder
from dpseg.model.class_logits import UNDECODED, ClassLogits, Decoded, all_logits, collect
from dpseg.model.cost_guidance import Classes
from dpseg.model.cost_volume import best_classes, dual_cost_volume, mean_cosines, visual_cost_volumes
from dpseg.model.decoder import Decoder, EncoderShape
from dpseg.model.encoders import Encoder, Pyramid
from dpseg.model.hub import HubModel
from dpseg.model.label_map import LabelMap
from dpseg.model.matching import with_whole
from dpseg.model.preprocess import mirror, scaled_size
from dpseg.model.rejection import Survivors
from dpseg.precision import Precision
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.rejection import Rejection


class DPSeg(HubModel):
    """Dual-prompt cost volume segmentation: an image and K prompted categories -> K logit maps.

    Nothing in it depends on a vocabulary, and it never knows where a prompt came from.

    Attributes:
        precision: what `set_precision` set.
    """

    precision: Precision = "32"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder: Encoder = build_encoder(config)
        self.decoder = Decoder(config, EncoderShape(self.encoder.stage_dims, self.encoder.strides))
        self.baseline = Baseline(config.logit_scale) if config.logit_scale > 0 else None

    def forward(self, images: Tensor, prompts: PromptEmbeddings) -> Tensor:
        """Segments images.

        Args:
            images: (B, 3, H, W), RGB in [0, 1], sides multiples of the encoder's coarsest stride.
            prompts: of K categories.

        Returns:
            Logits (B, K, h, w) at the decoder's resolution; their sigmoid is the score of a category.
        """
        return self.decode(self.encode(images), prompts)

    @property
    def reads_pictures(self) -> bool:
        """Whether visual prompts change the result; where they do not, as in SED, there is nothing to refine."""
        return self.config.fusion != "text" or bool(self.decoder.guided)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes activations again in the backward pass (gradient checkpointing): less memory, more time."""
        self.decoder.grad_checkpointing = enable
        self.encoder.set_grad_checkpointing(enable)

    def set_precision(self, precision: Precision) -> None:
        """Computes in other numbers from now on; with "bf16" only for testing, the decoder's weights are rounded."""
        self.precision = precision
        self.decoder.to(torch.bfloat16 if precision == "bf16" else torch.float32)

    def encode(self, images: Tensor) -> Pyramid:
        """Encodes images once, for any number of decodings; when testing, in all views of the config."""
        if self.precision == "32":
            return self._encode_views(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            return self._encode_views(images).float()

    def _encode_views(self, images: Tensor) -> Pyramid:
        pyramid = self.encoder.pyramid(images)
        if self.training or not self.config.mirrored_scales:
            return pyramid
        sizes = [
            scaled_size(images.shape[-2:], scale, self.encoder.strides[3]) for scale in self.config.mirrored_scales
        ]
        return replace(pyramid, mirrored=tuple(self.encoder.pyramid(mirror(images, size)) for size in sizes))

    def decode(self, pyramid: Pyramid, prompts: PromptEmbeddings) -> Tensor:
        """Decodes encoded images; the arguments and the result are those of `forward`.

        Without gradients it runs block by block (`decode_blocks`), else as the formulas stand (`decode_plainly`), which
        takes no notice of the config's `rejection`.

        Raises:
            PromptError: The prompts have another number of templates than the model.
        """
        if self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(pyramid.dense.device.type):
            return self.decode_plainly(pyramid, prompts)
        count, batched = prompts.text.shape[-3], prompts.text.dim() == 4
        images = []
        for index in range(len(pyramid.dense)):
            mine = prompts.map(lambda t, index=index: t[index]) if batched else prompts  # type: ignore[misc]
            images.append(all_logits(self.decode_blocks(pyramid.image(index), mine), count))
        return torch.stack(images)

    def decode_plainly(self, pyramid: Pyramid, prompts: PromptEmbeddings) -> Tensor:
        """Decodes as the formulas stand, with whole tensors; `decode` gives the same. For arguments see there."""
        self._check(prompts)
        limit = self.config.decode_classes
        count = prompts.text.shape[-3]
        if limit is None or self.training or count <= limit:
            return self._decode_views(pyramid, prompts)
        cost = dual_cost_volume(pyramid.dense, prompts, self.config.fusion)
        best = cost.mean(dim=2).amax(dim=(2, 3)).topk(limit, dim=1).indices  # (B, limit)
        rows = torch.arange(len(best), device=best.device)[:, None]
        batched = prompts.text.dim() == 4
        some = self._decode_views(pyramid, prompts.map(lambda t: t[rows, best] if batched else t[best]))
        logits = some.new_full((len(best), count, *some.shape[-2:]), UNDECODED)
        logits[rows, best] = some
        return logits

    def decode_blocks(
        self, pyramid: Pyramid, prompts: PromptEmbeddings, among: Tensor | None = None
    ) -> Iterator[ClassLogits]:
        """Decodes one image, some classes at a time, in memory that does not grow with K; only without gradients.

        Args:
            pyramid: one encoded image, a batch of one.
            prompts: of K categories, without a batch dimension.
            among: (n,) int64, only these classes are decoded; None: those that the config's `decode_classes` and
                `rejection` leave.

        Returns:
            An iterator over blocks, each class in one of them at most; those that are not decoded in none.

        Raises:
            PromptError: The prompts have another number of templates than the model.
        """
        self._check(prompts)
        rejection = self.config.rejection if among is None else Rejection()
        within = bool(self.decoder.auxiliary) and rejection.applies(len(prompts.text))  # before each stage, by its head
        chosen = self._likely(pyramid.dense, prompts) if among is None else among
        if len(chosen) < len(prompts.text):
            prompts = prompts.map(lambda t: t[chosen])
        first = BlockDecoder(
            self.decoder, self.config.fusion, pyramid, prompts, rejection=rejection if within else None
        )
        if within and pyramid.mirrored:  # the first view decides for all
            left = first.prepare()
            prompts = prompts.map(lambda t: t[left])
        others = [BlockDecoder(self.decoder, self.config.fusion, view, prompts) for view in pyramid.mirrored]
        views = [self._blocks(view) for view in (first, *others)]
        for (classes, logits), *mirrored in zip(*views, strict=True):
            for _, other in mirrored:
                logits += resize_to(other[None].flip(-1), logits.shape[-2:])[0]
            yield ClassLogits(chosen[classes], logits / len(views))

    def decode_photo(
        self,
        pyramid: Pyramid,
        prompts: PromptEmbeddings,
        size: tuple[int, int],
        background: float | None = None,
        before: Decoded | None = None,
    ) -> Decoded:
        """Decodes one photo to labels, and to the logits of all classes or, of very many, of those that it found.

        Args:
            pyramid: as `decode_blocks`.
            prompts: as `decode_blocks`.
            size: height and width of the photo in pixels.
            background: threshold in [0, 1] below which a pixel's best score means none; None: there is none.
            before: what Inference I returned, for Inference II; with `rejection` that decodes what I did not give up.
        """
        pyramid = with_whole(pyramid, prompts, self.config.fusion, self.config.matching.whole)
        labelling = LabelMap(size, background, self.config.resize_scores)
        count = len(prompts.text)
        among = None
        if before is not None and self.config.rejection.applies(count):
            among = torch.arange(count, device=prompts.text.device) if before.kept is None else before.kept
        blocks = self.decode_blocks(pyramid, prompts, among)
        return collect(blocks, count, labelling, self.config.presence, prompts.adjustment)

    def decode_with_auxiliary(self, pyramid: Pyramid, prompts: PromptEmbeddings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decodes all categories for training, and returns the auxiliary heads' logits too; see `decode`.

        Returns:
            What `decode` returns; and logits (B, K, H, W) at the resolution of each decoder stage's input, the coarsest
            first; none where the config has no `auxiliary_heads`.
        """
        self._check(prompts)
        cost = dual_cost_volume(pyramid.dense, prompts, self.config.fusion)  # F_c
        visual = visual_cost_volumes(pyramid.stages, prompts, self.decoder.guided)  # F_v^j
        logits, auxiliary = self.decoder.with_auxiliary(cost, pyramid.stages, visual)
        return self._with_baseline(logits, cost, prompts), auxiliary

    def packaged(self) -> tuple[str, ...]:
        """See `HubModel.packaged`: the encoder knows them."""
        return tuple(f"encoder.{prefix}" for prefix in self.encoder.packaged)

    def _decode_views(self, pyramid: Pyramid, prompts: PromptEmbeddings) -> Tensor:
        """Decodes each view, and averages their logits at the first one's resolution."""
        logits = self._decode(pyramid, prompts)
        for view in pyramid.mirrored:
            logits = logits + resize_to(self._decode(view, prompts).flip(-1), logits.shape[-2:])
        return logits / (1 + len(pyramid.mirrored))

    def _decode(self, pyramid: Pyramid, prompts: PromptEmbeddings) -> Tensor:
        cost = dual_cost_volume(pyramid.dense, prompts, self.config.fusion)  # F_c
        visual = visual_cost_volumes(pyramid.stages, prompts, self.decoder.guided)  # F_v^j
        return self._with_baseline(self.decoder(cost, pyramid.stages, visual), cost, prompts)

    def _likely(self, dense: Tensor, prompts: PromptEmbeddings) -> Tensor:
        """Returns the classes of one image that the decoder gets, (n,) int64, by their cosines alone."""
        count, fusion, rejection = len(prompts.text), self.config.fusion, self.config.rejection
        limit = self.config.decode_classes
        if rejection.applies(count) and not self.decoder.auxiliary:
            if rejection.keep_top is not None:
                survivors = Survivors(rejection)
                for classes, cosines in mean_cosines(dense, prompts, fusion):
                    some = prompts.map(lambda t, classes=classes: t[classes])  # type: ignore[misc]
                    cost = cosines[None, :, None]
                    guesses = cosines if self.baseline is None else self.baseline(cost, some, cosines.shape[-2:])[0]
                    survivors.add(torch.arange(count, device=cosines.device)[classes], guesses)
                return survivors.result()
            limit = rejection.max_classes
        if limit is None or count <= limit:
            return torch.arange(count, device=prompts.text.device)
        return best_classes(dense, prompts, fusion, limit)

    def _blocks(self, decoder: BlockDecoder) -> Iterator[tuple[Classes, Tensor]]:
        """Decodes one view of one image: (classes, their logits (k, h, w))."""
        for classes, logits in decoder:
            if self.baseline is not None:
                some = decoder.prompts.map(lambda t, classes=classes: t[classes])  # type: ignore[misc]
                logits += self.baseline(decoder.mean_cosines(classes), some, logits.shape[-2:])[0]
            yield classes, logits

    def _with_baseline(self, logits: Tensor, cost: Tensor, prompts: PromptEmbeddings) -> Tensor:
        return logits if self.baseline is None else logits + self.baseline(cost, prompts, logits.shape[-2:])

    def _check(self, prompts: PromptEmbeddings) -> None:
        templates = prompts.text.shape[-2]
        if templates != self.config.templates:
            raise PromptError(
                f"the prompts have {templates} templates and the model has {self.config.templates};"
                " make them again with this model"
            )


class Baseline(nn.Module):
    """The plain cosine as logits (ours): `scale * cosine + bias`, what a model with `logit_scale` starts from.

    Cosines with text, with pictures and with both lie in different ranges (the modality gap, Liang et al., NeurIPS
    2022), so each of the three cases has a scale and a bias of its own; classes of all kinds compete in one picture.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), scale))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, cost: Tensor, prompts: PromptEmbeddings, size: torch.Size) -> Tensor:
        """Maps F_c (B, K, C, H, W) to logits (B, K, *size)."""
        case = prompts.has_text.long() + 2 * prompts.has_visual.long() - 1  # text 0, pictures 1, both 2
        case = case.clamp_min(0)
        scale, bias = self.scale[case][..., None, None], self.bias[case][..., None, None]
        return resize_to(cost.mean(dim=2), size) * scale + bias
